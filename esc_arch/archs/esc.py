"""ESC: Emulating Self-attention with Convolution for Efficient Image Super-Resolution.

ICCV 2025, https://arxiv.org/abs/2503.06671
"""

import torch
import torch.nn as nn
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_positive_int
from esc_arch.archs.conv_attn import large_kernel_parameter
from esc_arch.archs.layers import Block, BlockOptions, ToImage


class ESC(nn.Module):
    """The network of the paper.

    A checkpoint of another scale can be loaded: its last convolution is resized.

    Args:
        dim: Number of channels C.
        pdim: Channels that each ConvAttn convolves.
        kernel_size: Odd side K of the large kernel, which all layers share.
        n_blocks: Number of blocks.
        conv_blocks: ConvAttn in each block, after its one self-attention.
        window_size: Side of the attention windows in pixels.
        num_heads: Number of attention heads; divides `dim`.
        upscaling_factor: Scale s.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
        use_ln: Whether each of these ConvFFN is preceded by a LayerNorm.
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
        use_ln: bool = False,
        flashbias_rank: int | None = None,
    ) -> None:
        super().__init__()
        options = BlockOptions.among(locals())
        require_positive_int(n_blocks=n_blocks, upscaling_factor=upscaling_factor)
        self.window_size = window_size
        self.upscaling_factor = upscaling_factor

        self.plk_filter = large_kernel_parameter(pdim, kernel_size)
        self.proj = nn.Conv2d(3, dim, 3, padding=1)
        self.blocks = nn.ModuleList(Block(options) for _ in range(n_blocks))
        self.last = nn.Conv2d(dim, dim, 3, padding=1)
        self.to_img = ToImage(dim, upscaling_factor)

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
        feat = self.last(feat) + shallow
        # Repeating each channel s * s times makes the shuffle a nearest-neighbour upsampling.
        nearest = x.repeat_interleave(self.upscaling_factor**2, dim=1)
        return ops.pixel_shuffle(self.to_img(feat) + nearest, self.upscaling_factor)
