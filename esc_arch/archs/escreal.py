"""ESCReal: ESC for real-world super-resolution, x4."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_bool, require_positive_int
from esc_arch.archs.conv_attn import large_kernel_parameter
from esc_arch.archs.layers import Block, BlockOptions
from esc_arch.errors import UserError
from esc_arch.ops.windows import reflect_margin


class ReflectDepthwiseConv(nn.Conv2d):
    """Depthwise convolution with reflect padding on all sides, of images of any size.

    Args:
        dim: Number of channels C.
        kernel_size: Odd side of the kernel.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return super().forward(reflect_margin(x, self.kernel_size[0] // 2))


class DySample(nn.Module):
    """Upsampler that learns where to sample ("Learning to Upsample by Learning to Sample").

    Each output pixel samples the features bilinearly, at its nearest-neighbour position plus an
    offset predicted for each group of channels. So is its scope, up to half an LR pixel; it starts
    at a quarter.

    Args:
        dim: Number of channels C of the features.
        out_channels: Number of channels of the result.
        scale: Scale s.
        groups: Groups of channels, each with offsets of its own; divides `dim`.
    """

    def __init__(self, dim: int, out_channels: int, scale: int, groups: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.groups = groups
        self.offset = nn.Conv2d(dim, 2 * groups * scale**2, 1)
        self.end_conv = nn.Conv2d(dim, out_channels, 1)
        self.scope = nn.Conv2d(dim, 2 * groups * scale**2, 1, bias=False)
        nn.init.trunc_normal_(self.offset.weight, std=0.02)
        nn.init.zeros_(self.offset.bias)
        nn.init.zeros_(self.scope.weight)
        # Centres of the s x s subpixels relative to that of their LR pixel, x then y.
        centres = (torch.arange(scale) - (scale - 1) / 2) / scale
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        position = torch.stack([x, y]).view(2, 1, scale**2).repeat(1, groups, 1)
        self.register_buffer("init_pos", position.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (B, C, H, W) to (B, out_channels, s * H, s * W)."""
        batch, _, height, width = x.shape
        offset = self.offset(x) * 0.5 * self.scope(x).sigmoid() + self.init_pos
        # (B, 2, groups, s * H, s * W), in LR pixels.
        # Places in a picture are too many for half precision.
        exact = torch.promote_types(x.dtype, torch.float32)
        offset = F.pixel_shuffle(offset, self.scale).to(exact)
        offset = offset.view(batch, 2, self.groups, self.scale * height, self.scale * width)
        base_x = self._lr_coordinates(width, offset).view(1, 1, 1, -1)
        base_y = self._lr_coordinates(height, offset).view(1, 1, -1, 1)
        # grid_sample measures from -1 to 1 over the whole picture.
        grid_x = 2 * (offset[:, 0] + base_x) / width - 1
        grid_y = 2 * (offset[:, 1] + base_y) / height - 1
        grid = torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)
        sampled = F.grid_sample(
            x.reshape(batch * self.groups, -1, height, width).to(exact),
            grid,
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return self.end_conv(sampled.view(batch, -1, *sampled.shape[-2:]).to(x.dtype))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Files from when the scope was a quarter for all.
        key = f"{prefix}scope.weight"
        if key not in state_dict and f"{prefix}offset.weight" in state_dict:
            state_dict[key] = torch.zeros_like(self.scope.weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _lr_coordinates(self, size: int, offset: Tensor) -> Tensor:
        """Centre of the LR pixel that each of `scale * size` output pixels lies in."""
        centres = torch.arange(size, device=offset.device, dtype=offset.dtype) + 0.5
        return centres.repeat_interleave(self.scale)


class ESCReal(nn.Module):
    """ESC-Real of the paper, for pictures with unknown degradations.

    Args:
        dim: Number of channels C.
        pdim: Channels that each ConvAttn convolves.
        kernel_size: Odd side K of the large kernel, which all layers share.
        n_blocks: Number of blocks.
        conv_blocks: ConvAttn in each block, after its one self-attention.
        window_size: Side of the attention windows in pixels.
        num_heads: Number of attention heads; divides `dim`.
        upscaling_factor: Scale s: 4, or any with `use_dysample`.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
        use_dysample: Whether DySample upsamples in place of nearest neighbour and convolutions.
        flashbias_rank: Rank of the bias for `attn_type="FlashBias"`.

    Raises:
        UserError: An option has a value that cannot be.
    """

    def __init__(
        self,
        dim: int,
        pdim: int,
        kernel_size: int,
        n_blocks: int,
        conv_blocks: int,
        window_size: int,
        num_heads: int,
        upscaling_factor: int = 4,
        exp_ratio: float = 2,
        attn_type: str = "Auto",
        use_dysample: bool = False,
        flashbias_rank: int | None = None,
    ) -> None:
        super().__init__()
        options = BlockOptions.among(locals())
        require_positive_int(n_blocks=n_blocks)
        require_bool(use_dysample=use_dysample)
        require_positive_int(upscaling_factor=upscaling_factor)
        if upscaling_factor != 4 and not use_dysample:
            raise UserError(
                f"upscaling_factor is {upscaling_factor}; ESCReal upscales by 4, and by others "
                "with use_dysample alone"
            )
        if use_dysample and dim % 4:
            raise UserError(f"dim is {dim}; with use_dysample it must be a multiple of 4")
        self.window_size = window_size
        self.upscaling_factor = upscaling_factor

        self.plk_filter = large_kernel_parameter(pdim, kernel_size)
        self.proj = nn.Conv2d(3, dim, 3, padding=1)
        self.skip = nn.Sequential(
            nn.Conv2d(3, 2 * dim, 1),
            ReflectDepthwiseConv(2 * dim, 7),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * dim, dim, 1),
        )
        self.blocks = nn.ModuleList(Block(options) for _ in range(n_blocks))
        self.last = nn.Conv2d(dim, dim, 3, padding=1)
        if use_dysample:
            self.to_img = DySample(dim, 3, upscaling_factor)
        else:
            self.to_img = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(dim, dim, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(dim, dim, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(dim, dim, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(dim, 3, 3, padding=1),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: LR images (B, 3, H, W), RGB in [0, 1], any H and W.

        Returns:
            SR images (B, 3, s * H, s * W), not clipped.
        """
        large_kernel = ops.d4_mean(self.plk_filter)
        shallow = self.proj(x.contiguous(memory_format=torch.channels_last))
        feat = shallow
        for block in self.blocks:
            feat = block(feat, large_kernel)
        return self.to_img(self.last(feat) + shallow + self.skip(x)).contiguous()
