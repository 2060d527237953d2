"""ESCRealM: ESCReal with the upsamplers that traiNNer-redux and neosr give it."""

import torch
import torch.nn as nn
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_bool, require_positive_int
from esc_arch.archs.conv_attn import large_kernel_parameter
from esc_arch.archs.escreal import ReflectDepthwiseConv
from esc_arch.archs.layers import Block, BlockOptions
from esc_arch.archs.upsamplers import Upsampler
from esc_arch.errors import UserError
from esc_arch.ops.windows import pad_to_multiple

# With `unshuffle_mod` the body sees smaller pictures, from which the tail always upscales by 4.
_UNSHUFFLED_SCALE = 4


class ESCRealM(nn.Module):
    """The body of ESCReal with a choice of upsamplers, for any scale.

    Args:
        dim: Number of channels C.
        pdim: Channels that each ConvAttn convolves.
        kernel_size: Odd side K of the large kernel, which all layers share.
        n_blocks: Number of blocks.
        conv_blocks: ConvAttn in each block, after its one self-attention.
        window_size: Side of the attention windows, in pixels of what the body sees.
        num_heads: Number of attention heads; divides `dim`.
        upscaling_factor: Scale s; 4 unless given.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
        mid_dim: Channels within the upsampler, for those that have such.
        upsampler: One of `esc_arch.archs.upsamplers.UPSAMPLERS`.
        unshuffle_mod: At x1 and x2, fold the input's pixels into channels by 4 / s, which makes
            the body that much cheaper.
        flashbias_rank: Rank of the bias for `attn_type="FlashBias"`.
        scale: traiNNer-redux's word for `upscaling_factor`.

    Attributes:
        window_size: Side of the attention windows in LR pixels.

    Raises:
        UserError: An option has a value that cannot be.
    """

    def __init__(
        self,
        dim: int = 64,
        pdim: int = 16,
        kernel_size: int = 13,
        n_blocks: int = 10,
        conv_blocks: int = 5,
        window_size: int = 32,
        num_heads: int = 4,
        upscaling_factor: int | None = None,
        exp_ratio: float = 2,
        attn_type: str = "Auto",
        mid_dim: int = 64,
        upsampler: str = "transpose+conv",
        unshuffle_mod: bool = False,
        flashbias_rank: int | None = None,
        scale: int | None = None,
    ) -> None:
        super().__init__()
        options = BlockOptions.among(locals())
        upscaling_factor = one_scale(upscaling_factor, scale)
        require_positive_int(n_blocks=n_blocks, upscaling_factor=upscaling_factor)
        require_bool(unshuffle_mod=unshuffle_mod)
        self.upscaling_factor = upscaling_factor
        self.unshuffle = 1
        if unshuffle_mod and upscaling_factor < 3:
            self.unshuffle = _UNSHUFFLED_SCALE // upscaling_factor
        self.window_size = window_size * self.unshuffle

        channels = 3 * self.unshuffle**2
        folding = [] if self.unshuffle == 1 else [nn.PixelUnshuffle(self.unshuffle)]
        proj = nn.Conv2d(channels, dim, 3, padding=1)
        self.plk_filter = large_kernel_parameter(pdim, kernel_size)
        self.proj = nn.Sequential(*folding, proj) if folding else proj
        self.skip = nn.Sequential(
            *folding,
            nn.Conv2d(channels, 2 * dim, 1),
            ReflectDepthwiseConv(2 * dim, 7),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * dim, dim, 1),
        )
        self.blocks = nn.ModuleList(Block(options) for _ in range(n_blocks))
        self.last = nn.Conv2d(dim, dim, 3, padding=1)
        self.to_img = Upsampler(upsampler, dim, mid_dim, upscaling_factor * self.unshuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale.

        Args:
            x: LR images (B, 3, H, W), RGB in [0, 1], any H and W.

        Returns:
            SR images (B, 3, s * H, s * W), not clipped.
        """
        height, width = (side * self.upscaling_factor for side in x.shape[-2:])
        x = pad_to_multiple(x, self.unshuffle)
        large_kernel = ops.d4_mean(self.plk_filter)
        shallow = self.proj(x.contiguous(memory_format=torch.channels_last))
        feat = shallow
        for block in self.blocks:
            feat = block(feat, large_kernel)
        sr = self.to_img(self.last(feat) + shallow + self.skip(x))
        return sr[..., :height, :width].contiguous()


def one_scale(upscaling_factor: int | None, scale: int | None) -> int:
    """The scale under either of its names; 4 where there is neither.

    Raises:
        UserError: The two differ.
    """
    if upscaling_factor is not None and scale is not None and upscaling_factor != scale:
        raise UserError(
            f"upscaling_factor is {upscaling_factor} and scale {scale}; they mean the same, "
            "give one of them"
        )
    if scale is None:
        return 4 if upscaling_factor is None else upscaling_factor
    return scale
