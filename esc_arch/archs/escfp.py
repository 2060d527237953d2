"""ESCFP: ESC with few parameters."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_odd, require_positive_int
from esc_arch.archs.layers import Block, BlockOptions, LayerNorm, ToImage
from esc_arch.errors import UserError


class SeparableDynamicConv(nn.Module):
    """ConvAttn's convolution, its large kernel factored into channels and space.

    Args:
        pdim: Number of channels C.
    """

    def __init__(self, pdim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(pdim, pdim // 4, 1),
            nn.GELU(),
            nn.Conv2d(pdim // 4, 9 * pdim, 1),
        )

    def forward(self, x: Tensor, lk_channel: Tensor, lk_spatial: Tensor) -> Tensor:
        """Convolve (B, C, H, W) with (C, C, 1, 1), then with (C, 1, K, K) and each sample's 3x3."""
        batch, channels = x.shape[:2]
        dynamic = self.proj(x).view(batch, channels, 3, 3)
        return ops.factored_dynamic_conv(F.conv2d(x, lk_channel), lk_spatial, dynamic)


class SeparableConvAttn(nn.Module):
    """ConvAttn on the factored large kernel that the network shares.

    Args:
        dim: Number of channels C.
        pdim: Channels convolved; the others pass through.
    """

    def __init__(self, dim: int, pdim: int) -> None:
        super().__init__()
        self.pdim = pdim
        self.plk = SeparableDynamicConv(pdim)
        self.aggr = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, lk_channel: Tensor, lk_spatial: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        convolved, rest = x.split((self.pdim, x.shape[1] - self.pdim), dim=1)
        convolved = self.plk(convolved, lk_channel, lk_spatial)
        return self.aggr(torch.cat([convolved, rest], dim=1))


class ESCFP(nn.Module):
    """ESC-FP of the paper: the large kernel factored, the input skip bicubic.

    A checkpoint of another scale can be loaded: its last convolution is resized.

    Args:
        dim: Number of channels C.
        pdim: Channels that each ConvAttn convolves, at least 4 and at most `dim`.
        kernel_size: Odd side K of the large kernel, at least 3.
        n_blocks: Number of blocks.
        conv_blocks: ConvAttn in each block, after its one self-attention.
        window_size: Side of the attention windows in pixels.
        num_heads: Number of attention heads; divides `dim`.
        upscaling_factor: Scale s.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
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
        upscaling_factor: int,
        exp_ratio: float = 2,
        attn_type: str = "Auto",
        flashbias_rank: int | None = None,
    ) -> None:
        super().__init__()
        options = BlockOptions.among(locals(), proj_ratio=1.5)
        require_positive_int(n_blocks=n_blocks, upscaling_factor=upscaling_factor)
        require_odd(kernel_size=kernel_size)
        if not 4 <= pdim <= dim:
            raise UserError(f"pdim is {pdim}; it must be at least 4 and at most dim, here {dim}")
        if kernel_size < 3:
            raise UserError(f"kernel_size is {kernel_size}; it must be at least 3")
        self.window_size = window_size
        self.upscaling_factor = upscaling_factor

        self.lk_channel = nn.Parameter(torch.empty(pdim, pdim, 1, 1))
        self.lk_spatial = nn.Parameter(torch.empty(pdim, 1, kernel_size, kernel_size))
        nn.init.orthogonal_(self.lk_channel)
        nn.init.orthogonal_(self.lk_spatial)
        self.proj = nn.Conv2d(3, dim, 3, padding=1)
        self.blocks = nn.ModuleList(Block(options, SeparableConvAttn) for _ in range(n_blocks))
        self.ln_last = LayerNorm(dim)
        self.last = nn.Conv2d(dim, dim, 3, padding=1)
        self.to_img = ToImage(dim, upscaling_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: LR images (B, 3, H, W), RGB in [0, 1], any H and W.

        Returns:
            SR images (B, 3, s * H, s * W), not clipped.
        """
        shallow = self.proj(x.contiguous(memory_format=torch.channels_last))
        feat = shallow
        for block in self.blocks:
            feat = block(feat, self.lk_channel, self.lk_spatial)
        feat = self.last(self.ln_last(feat)) + shallow
        residual = ops.pixel_shuffle(self.to_img(feat), self.upscaling_factor)
        return residual + F.interpolate(
            x, scale_factor=self.upscaling_factor, mode="bicubic", align_corners=False
        )
