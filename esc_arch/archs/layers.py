"""What the networks share."""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch.archs.flash_window_attn import FlashWindowAttn
from esc_arch.kernels.cpu.library import as_computed
from esc_arch.ops.conv_ffn import can_fuse, fused_conv_ffn


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
        layers = (self.proj, self.dwc, self.aggr)
        if can_fuse(x, *layers):
            weights = (w for layer in layers for w in (layer.weight, layer.bias))
            return fused_conv_ffn(*as_computed(x, *weights))
        x = F.gelu(self.proj(x))
        x = x + F.gelu(self.dwc(x))
        return self.aggr(x)


class Block(nn.Module):
    """One self-attention, then `conv_blocks` ConvAttn that emulate it.

    Args:
        dim: Number of channels C.
        conv_blocks: Number of ConvAttn.
        conv_attn: Makes a ConvAttn, which is called as `conv_attn(x, *large_kernels, skip=...)`.
        window_size: Side of the attention windows in pixels.
        num_heads: Number of attention heads.
        exp_ratio: Hidden channels of the ConvFFN before each ConvAttn, over `dim`.
        attn_type: Attention backend, see `esc_arch.ops.attention`.
        flashbias_rank: Rank of the bias for `attn_type="FlashBias"`.
        use_ln: Whether each ConvFFN is preceded by a LayerNorm.
        proj_ratio: Hidden channels of the first ConvFFN, over `dim`.
    """

    def __init__(
        self,
        dim: int,
        conv_blocks: int,
        conv_attn: Callable[[], nn.Module],
        window_size: int,
        num_heads: int,
        exp_ratio: float,
        attn_type: str,
        flashbias_rank: int | None,
        use_ln: bool,
        proj_ratio: float = 2,
    ) -> None:
        super().__init__()
        self.ln_proj = LayerNorm(dim)
        self.proj = ConvFFN(dim, 3, proj_ratio)
        self.ln_attn = LayerNorm(dim)
        self.attn = FlashWindowAttn(dim, window_size, num_heads, attn_type, flashbias_rank)
        self.lns = nn.ModuleList(
            LayerNorm(dim) if use_ln else nn.Identity() for _ in range(conv_blocks)
        )
        self.pconvs = nn.ModuleList(conv_attn() for _ in range(conv_blocks))
        self.convffns = nn.ModuleList(ConvFFN(dim, 3, exp_ratio) for _ in range(conv_blocks))
        self.ln_out = LayerNorm(dim)
        self.conv_out = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, *large_kernels: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, with the kernels that all layers share."""
        skip = x
        x = self.proj(self.ln_proj(x))
        x = x + self.attn(self.ln_attn(x))
        for ln, convffn, pconv in zip(self.lns, self.convffns, self.pconvs, strict=True):
            x = pconv(convffn(ln(x)), *large_kernels, skip=x)
        return self.conv_out(self.ln_out(x)) + skip


def convert_to_img_scale(state_dict: dict[str, Tensor], prefix: str, scale: int) -> None:
    """Resize the last convolution of a checkpoint of another scale, in place of the dictionary.

    Its outputs are the s x s pixels that each LR pixel becomes; the s x s grid of filters is
    resized bilinearly.

    Args:
        state_dict: Holds `{prefix}to_img.weight` (3 * s0 * s0, C, k, k) and `.bias` (3 * s0 * s0);
            anything else is left alone.
        prefix: Prefix of the network's keys.
        scale: The scale s wanted.
    """
    for name in ("weight", "bias"):
        key = f"{prefix}to_img.{name}"
        value = state_dict.get(key)
        if value is None or value.shape[0] == 3 * scale**2:
            continue
        old_scale = round((value.shape[0] / 3) ** 0.5)
        if value.shape[0] != 3 * old_scale**2:
            continue
        # (3, s0, s0, C, k, k) -> one "channel" per colour and input, an s0 x s0 picture each.
        rest = value.shape[1:]
        grid = value.reshape(3, old_scale, old_scale, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid.float(), size=(scale, scale), mode="bilinear", align_corners=False
        )
        resized = grid.permute(0, 2, 3, 1).reshape(3 * scale**2, *rest)
        state_dict[key] = resized.to(value.dtype)
