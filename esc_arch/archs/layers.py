"""What the networks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_bool, require_positive_int, require_ratio
from esc_arch.archs.conv_attn import ConvAttn
from esc_arch.archs.flash_window_attn import FlashWindowAttn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels at each pixel, eps 1e-6, affine.

    Args:
        dim: Number of channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution inside.

    Args:
        dim: Number of channels C.
        kernel_size: Odd side of the depthwise kernel.
        ratio: Hidden channels over `dim`.
    """

    def __init__(self, dim: int, kernel_size: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.proj = nn.Conv2d(dim, hidden, 1)
        self.dwc = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.aggr = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return ops.conv_ffn(x, self.proj, self.dwc, self.aggr)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What the blocks of a network have in common.

    Attributes:
        dim: Number of channels C.
        pdim: Channels that each ConvAttn convolves.
        conv_blocks: ConvAttn in each block, after its one self-attention.
        window_size: Side of the attention windows in pixels.
        num_heads: Number of attention heads; divides `dim`.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
        flashbias_rank: Rank of the bias for `attn_type="FlashBias"`.
        use_ln: Whether each of these ConvFFN is preceded by a LayerNorm.
        proj_ratio: Hidden channels of a block's first ConvFFN, over `dim`.

    Raises:
        UserError: An option has a value that cannot be.
    """

    dim: int
    pdim: int
    conv_blocks: int
    window_size: int
    num_heads: int
    exp_ratio: float = 2
    attn_type: str = "Auto"
    flashbias_rank: int | None = None
    use_ln: bool = True
    proj_ratio: float = 2

    def __post_init__(self) -> None:
        require_positive_int(dim=self.dim, pdim=self.pdim, conv_blocks=self.conv_blocks)
        require_ratio(self.dim, exp_ratio=self.exp_ratio)
        require_bool(use_ln=self.use_ln)

    @classmethod
    def among(cls, given: Mapping[str, Any], **others: Any) -> "BlockOptions":
        """Those among a network's options, its `locals()`, and others that it does not have."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: given[name] for name in names & given.keys()}, **others)


shared_conv_attn = partial(ConvAttn, kernel_size=None)


class Block(nn.Module):
    """One self-attention, then ConvAttn that emulate it.

    Args:
        options: Sizes.
        conv_attn: Makes a ConvAttn from `dim` and `pdim`, which is called as
            `conv_attn(x, *large_kernels)`. By default one on a kernel that all layers share.
    """

    def __init__(
        self,
        options: BlockOptions,
        conv_attn: Callable[[int, int], nn.Module] = shared_conv_attn,
    ) -> None:
        super().__init__()
        dim, layers = options.dim, range(options.conv_blocks)
        norm = LayerNorm if options.use_ln else nn.Identity
        self.ln_proj = LayerNorm(dim)
        self.proj = ConvFFN(dim, 3, options.proj_ratio)
        self.ln_attn = LayerNorm(dim)
        self.attn = FlashWindowAttn(
            dim, options.window_size, options.num_heads, options.attn_type, options.flashbias_rank
        )
        self.lns = nn.ModuleList(norm(dim) for _ in layers)
        self.pconvs = nn.ModuleList(conv_attn(dim, options.pdim) for _ in layers)
        self.convffns = nn.ModuleList(ConvFFN(dim, 3, options.exp_ratio) for _ in layers)
        self.ln_out = LayerNorm(dim)
        self.conv_out = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, *large_kernels: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, with the kernels that all layers share."""
        skip = x
        x = self.proj(self.ln_proj(x))
        x = x + self.attn(self.ln_attn(x))
        for norm, conv_ffn, conv_attn in zip(self.lns, self.convffns, self.pconvs, strict=True):
            x = x + conv_attn(conv_ffn(norm(x)), *large_kernels)
        return self.conv_out(self.ln_out(x)) + skip


class ToImage(nn.Conv2d):
    """Convolution to the s x s pixels of three colours that each LR pixel becomes.

    The weights of another scale can be loaded: the s x s grid of filters is resized bilinearly.

    Args:
        dim: Number of channels C.
        scale: Scale s.
    """

    def __init__(self, dim: int, scale: int) -> None:
        super().__init__(dim, 3 * scale**2, 3, padding=1)
        self.upscaling_factor = scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for key in (f"{prefix}weight", f"{prefix}bias"):
            if key in state_dict:
                state_dict[key] = resize_filters(state_dict[key], self.upscaling_factor)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def resize_filters(value: Tensor, scale: int) -> Tensor:
    """Resize weight (3 * s0 * s0, C, k, k) or bias (3 * s0 * s0) to a scale s; others stay."""
    old_scale = round((value.shape[0] / 3) ** 0.5)
    if old_scale == scale or value.shape[0] != 3 * old_scale**2:
        return value
    # (3, s0, s0, C, k, k) -> one "channel" per colour and input, an s0 x s0 picture each.
    rest = value.shape[1:]
    grid = value.reshape(3, old_scale, old_scale, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(scale, scale), mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(3 * scale**2, *rest).to(value.dtype)
