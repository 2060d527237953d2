"""FlashWindowAttn: self-attention in large windows, affordable through flash attention."""

import torch
import torch.nn as nn
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_positive_int
from esc_arch.errors import UserError
from esc_arch.ops.attention import canonical_attn_type


class FlashWindowAttn(nn.Module):
    """Multi-head self-attention within non-overlapping windows, with a relative position bias.

    Args:
        dim: Number of channels C.
        window_size: Side w of a window in pixels.
        num_heads: Number of heads; divides `dim`.
        attn_type: Backend, see `esc_arch.ops.attention`. All but `FlashBias` have the same
            parameters and results.
        flashbias_rank: Rank R of the bias for `attn_type="FlashBias"`, which replaces the table by
            two factors; 256 - C / num_heads unless given.

    Raises:
        UserError: An option has a value that cannot be.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        attn_type: str = "Auto",
        flashbias_rank: int | None = None,
    ) -> None:
        super().__init__()
        require_positive_int(dim=dim, window_size=window_size, num_heads=num_heads)
        if dim % num_heads:
            raise UserError(f"num_heads is {num_heads}; it must divide dim, which is {dim}")
        self.window_size = window_size
        self.num_heads = num_heads
        self.attn_type = canonical_attn_type(attn_type)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)
        if self.attn_type == "FlashBias":
            widest = 256 - dim // num_heads  # Flash kernels take vectors of up to 256.
            rank = widest if flashbias_rank is None else flashbias_rank
            require_positive_int(flashbias_rank=rank)
            if rank > widest:
                raise UserError(
                    f"flashbias_rank is {rank}; it must be at most 256 - dim / num_heads = {widest}"
                )
            factor = torch.zeros(num_heads, window_size**2, rank)
            self.flashbias_q = nn.Parameter(factor)
            self.flashbias_k = nn.Parameter(factor.clone())
        else:
            table = torch.randn(num_heads, (2 * window_size - 1) ** 2)
            self.relative_position_bias = nn.Parameter(0.001 * table)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows.

        Args:
            x: Features (B, C, H, W), any H and W; padded to whole windows by reflection.

        Returns:
            (B, C, H, W).
        """
        if self.attn_type == "FlashBias":
            bias = self.flashbias_q, self.flashbias_k
            out = ops.flashbias_self_attention(x, self.to_qkv, *bias, self.window_size)
        else:
            table = self.relative_position_bias
            out = ops.self_attention(x, self.to_qkv, table, self.window_size, self.attn_type)
        return self.to_out(out)
