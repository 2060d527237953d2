"""The tails that other trainers put behind the body of ESCReal, from features to a picture.

Positions in each sequence are those of the trainers' files, whose tensors are named by them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch.archs.checks import require_positive_int
from esc_arch.archs.escreal import DySample
from esc_arch.archs.layers import LayerNorm
from esc_arch.errors import UserError

Layers = list[nn.Module]


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _up(scale: int) -> nn.Upsample:
    return nn.Upsample(scale_factor=scale, mode="nearest")


def _steps(scale: int) -> list[int]:
    """The factors of an upsampler that goes step by step: doublings, or one step of 3."""
    return [3] if scale == 3 else [2] * (scale.bit_length() - 1)


class PixelAttention(nn.Module):
    """Scales each value of the features by a weight that is computed from its pixel.

    Args:
        dim: Number of channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x * self.conv(x)


class LocalDeformableAttention(nn.Module):
    """Upsampler in which every output pixel attends to nine places that it chooses itself.

    Args:
        dim: Number of channels C, a multiple of 8.
        scale: Scale s.
    """

    reduction, groups, taps, reach = 4, 2, 9, 11

    def __init__(self, dim: int, scale: int) -> None:
        super().__init__()
        if dim % 8:
            raise UserError(f"the features of lda have {dim} channels; a multiple of 8 is needed")
        self.scale = scale
        inner = dim // self.reduction
        group = inner // self.groups
        self.layer_norm = LayerNorm(dim)
        self.proj_q = nn.Conv2d(dim, inner, 1, bias=False)
        self.proj_k = nn.Conv2d(dim, inner, 1, bias=False)
        self.conv_offset = nn.Sequential(
            nn.Conv2d(group, group, 3, padding=1, groups=group, bias=False),
            LayerNorm(group),
            nn.SiLU(),
            _conv(group, 2 * self.taps),
        )
        table = torch.empty(1, 1, 1, self.taps, inner)
        nn.init.trunc_normal_(table, std=0.02)
        self.relative_position_bias_table = nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (B, C, H, W) to (B, C, s * H, s * W)."""
        normed = self.layer_norm(x)
        size = self.scale * x.shape[-2], self.scale * x.shape[-1]
        query = F.interpolate(self.proj_q(normed), size, mode="bilinear", align_corners=True)
        key = self.proj_k(normed)
        grids = self._places(query)
        bias = self.relative_position_bias_table.flatten(0, 3)
        # Tap by tap, since nine times the features would not fit the memory.
        scores = [
            (query * (self._sample(key, grid) + bias[tap].view(1, -1, 1, 1))).sum(1, keepdim=True)
            for tap, grid in enumerate(grids)
        ]
        weights = (torch.cat(scores, dim=1) / math.sqrt(query.shape[1])).softmax(dim=1)
        return sum(
            weights[:, tap : tap + 1] * self._sample(x, grid) for tap, grid in enumerate(grids)
        )

    def _places(self, query: Tensor) -> list[Tensor]:
        """Where each tap looks: grids (B * groups, s * H, s * W, 2), x then y, from -1 to 1."""
        batch, _, height, width = query.shape
        offsets = self.conv_offset(query.reshape(batch * self.groups, -1, height, width))
        # Places in a picture are too many for half precision.
        exact = torch.promote_types(query.dtype, torch.float32)
        offsets = (self.reach * offsets.tanh()).to(exact)
        rows = torch.arange(height, device=query.device, dtype=exact).view(-1, 1)
        columns = torch.arange(width, device=query.device, dtype=exact)
        grids = []
        for tap in range(self.taps):
            y = rows + offsets[:, 2 * tap] + tap // 3 - 1
            x = columns + offsets[:, 2 * tap + 1] + tap % 3 - 1
            grids.append(torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1))
        return grids

    def _sample(self, features: Tensor, grid: Tensor) -> Tensor:
        """Sample (B, C, H, W), each group of channels at its own places."""
        batch, _, height, width = features.shape
        grouped = features.reshape(batch * self.groups, -1, height, width)
        sampled = F.grid_sample(
            grouped.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return sampled.view(batch, -1, *sampled.shape[-2:]).to(features.dtype)


def _pixel_shuffle_direct(dim: int, mid_dim: int, scale: int) -> Layers:
    return [_conv(dim, 3 * scale**2), nn.PixelShuffle(scale)]


def _pixel_shuffle(dim: int, mid_dim: int, scale: int) -> Layers:
    layers: Layers = [_conv(dim, mid_dim), nn.LeakyReLU(0.01)]
    for step in _steps(scale):
        layers += [_conv(mid_dim, step**2 * mid_dim), nn.PixelShuffle(step)]
    return [*layers, _conv(mid_dim, 3)]


def _nearest_after_conv(dim: int, mid_dim: int, scale: int) -> Layers:
    layers: Layers = []
    for step in _steps(scale):
        layers += [_conv(dim, dim), _up(step), nn.LeakyReLU(0.2)]
    return [*layers, _conv(dim, dim), nn.LeakyReLU(0.2), _conv(dim, 3)]


def _nearest_before_conv(dim: int, mid_dim: int, scale: int) -> Layers:
    layers: Layers = []
    for step in _steps(scale):
        layers += [_up(step), _conv(dim, dim), nn.LeakyReLU(0.2)]
    return [*layers, _conv(dim, 3)]


def _nearest_before_two_convs(dim: int, mid_dim: int, scale: int) -> Layers:
    layers: Layers = []
    for step in _steps(scale):
        layers += [_up(step), _conv(dim, dim), nn.LeakyReLU(0.2)]
        layers += [_conv(dim, dim), nn.LeakyReLU(0.2)]
    return [*layers, _conv(dim, 3)]


def _narrowed(dim: int, mid_dim: int) -> Layers:
    return [] if mid_dim == dim else [_conv(dim, mid_dim), nn.LeakyReLU(0.01)]


def _dysample(dim: int, mid_dim: int, scale: int) -> Layers:
    if mid_dim % 4:
        raise UserError(f"mid_dim is {mid_dim}; with dysample it must be a multiple of 4")
    return [*_narrowed(dim, mid_dim), DySample(mid_dim, 3, scale)]


def _lda(dim: int, mid_dim: int, scale: int) -> Layers:
    attention = LocalDeformableAttention(mid_dim, scale)
    return [*_narrowed(dim, mid_dim), attention, _conv(mid_dim, 3)]


def _transposed(dim: int, mid_dim: int, scale: int) -> Layers:
    if scale == 3:
        return [nn.ConvTranspose2d(dim, 3, 3, 3), _conv(3, 3)]
    doubled: Layers = [nn.ConvTranspose2d(dim, 3, 4, 2, 1), _conv(3, 3)]
    if scale == 4:
        return [nn.ConvTranspose2d(dim, dim, 4, 2, 1), nn.GELU(), *doubled]
    return doubled


def _pixel_attention(dim: int, mid_dim: int, scale: int) -> Layers:
    layers: Layers = []
    channels = dim
    for step in _steps(scale):
        layers += [_up(step), _conv(channels, mid_dim), PixelAttention(mid_dim), nn.LeakyReLU(0.2)]
        layers += [_conv(mid_dim, mid_dim), nn.LeakyReLU(0.2)]
        channels = mid_dim
    return [*layers, _conv(mid_dim, 3)]


def _single_conv(dim: int, mid_dim: int, scale: int) -> Layers:
    return [_conv(dim, 3)]


_POWERS = (2, 4, 8, 16)
_STEPPED = (2, 3, 4, 8, 16)
_ANY = tuple(range(1, 65))
# Name -> the scales it has beside 1, and what makes its layers. First traiNNer-redux's eight,
# in its order, then neosr's two.
_KINDS: dict[str, tuple[tuple[int, ...], Callable[[int, int, int], Layers]]] = {
    "conv": ((), _single_conv),
    "pixelshuffledirect": (_ANY, _pixel_shuffle_direct),
    "pixelshuffle": (_STEPPED, _pixel_shuffle),
    "nearest+conv": (_STEPPED, _nearest_after_conv),
    "dysample": (_ANY, _dysample),
    "transpose+conv": ((2, 3, 4), _transposed),
    "lda": (_ANY, _lda),
    "pa_up": (_STEPPED, _pixel_attention),
    "up+conv": (_POWERS, _nearest_before_conv),
    "up+conv+conv": (_POWERS, _nearest_before_two_convs),
}
UPSAMPLERS = tuple(_KINDS)
TRAINNER_UPSAMPLERS = UPSAMPLERS[:8]
_META_VERSION = 3
_DYSAMPLE_GROUPS = 4


class Upsampler(nn.Sequential):
    """Features to a picture, in the way that `upsampler` names.

    At scale 1 every kind is one convolution. traiNNer-redux's kinds keep the buffer `MetaUpsample`,
    since not every scale shows in the shapes of the tensors; it is never taken from a file.

    Args:
        upsampler: One of `UPSAMPLERS`.
        dim: Channels C of the features.
        mid_dim: Channels within; for the kinds that have such.
        scale: Scale s.

    Raises:
        UserError: An option has a value that cannot be.
    """

    def __init__(self, upsampler: str, dim: int, mid_dim: int, scale: int) -> None:
        if upsampler not in _KINDS:
            raise UserError(f"upsampler is {upsampler!r}; it must be one of {', '.join(_KINDS)}")
        require_positive_int(mid_dim=mid_dim, upscaling_factor=scale)
        scales, make = _KINDS[upsampler]
        if scale != 1 and scale not in scales:
            right = ", ".join(map(str, (1, *scales))) if scales != _ANY else "1 to 64"
            raise UserError(f"the scale is {scale}; upsampler {upsampler} can do {right}")
        super().__init__(*(_single_conv if scale == 1 else make)(dim, mid_dim, scale))
        self.scale = scale
        if upsampler in TRAINNER_UPSAMPLERS:
            by_doubling = upsampler == "pa_up" and scale not in (1, 3)
            meta = [
                _META_VERSION,
                TRAINNER_UPSAMPLERS.index(upsampler),
                scale,
                mid_dim if by_doubling else dim,
                3,
                mid_dim,
                _DYSAMPLE_GROUPS,
            ]
            # On the CPU even where a network is built without memory, for it is no weight.
            # A byte each; more does not fit, and the shapes tell it.
            values = torch.tensor([min(v, 255) for v in meta], dtype=torch.uint8, device="cpu")
            self.register_buffer("MetaUpsample", values)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = getattr(self, "MetaUpsample", None)
        if own is None:
            state_dict.pop(f"{prefix}MetaUpsample", None)
        else:
            state_dict[f"{prefix}MetaUpsample"] = own
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
