"""ConvAttn: convolutions that emulate self-attention."""

import torch
import torch.nn as nn
from torch import Tensor

from esc_arch import ops
from esc_arch.archs.checks import require_odd, require_positive_int
from esc_arch.errors import UserError


@ops.replaceable
class LongRangeDynamicConv(nn.Module):
    """Long-range and instance-dependent convolution: the two properties of self-attention.

    Args:
        pdim: Number of channels C.
    """

    def __init__(self, pdim: int) -> None:
        super().__init__()
        self.dwc_proj = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(pdim, pdim // 2, 1),
            nn.GELU(),
            nn.Conv2d(pdim // 2, 9 * pdim, 1),
        )
        nn.init.zeros_(self.dwc_proj[-1].weight)
        nn.init.zeros_(self.dwc_proj[-1].bias)

    def forward(self, x: Tensor, large_kernel: Tensor) -> Tensor:
        """Convolve (B, C, H, W) with `large_kernel` (C, C, K, K) and with each sample's own 3x3."""
        return ops.long_range_dynamic_conv(x, large_kernel, self.kernels(x))

    def kernels(self, x: Tensor) -> Tensor:
        """Make each sample's own depthwise kernels (B, C, 3, 3) from (B, C, H, W)."""
        batch, channels = x.shape[:2]
        return self.dwc_proj(x).view(batch, channels, 3, 3)


class ConvAttn(nn.Module):
    """Emulates self-attention by convolution, on the first `pdim` channels.

    Args:
        dim: Number of channels C.
        pdim: Channels convolved; the others pass through. An even number of at most `dim`.
        kernel_size: Odd side K of the large kernel that this module then owns. None if the kernel
            is shared and given to `forward`, as within ESC.

    Raises:
        UserError: An option has a value that cannot be.
    """

    def __init__(self, dim: int, pdim: int, kernel_size: int | None = 13) -> None:
        super().__init__()
        require_positive_int(dim=dim, pdim=pdim)
        if pdim > dim or pdim < 2:
            raise UserError(f"pdim is {pdim}; it must be at least 2 and at most dim, here {dim}")
        self.pdim = pdim
        if kernel_size is not None:
            self.plk_filter = large_kernel_parameter(pdim, kernel_size)
        self.plk = LongRangeDynamicConv(pdim)
        self.aggr = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, large_kernel: Tensor | None = None) -> Tensor:
        """Emulate self-attention.

        Args:
            x: Features (B, C, H, W).
            large_kernel: The shared kernel (pdim, pdim, K, K), already averaged over D4; needed
                if and only if the module owns none.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: Shapes do not fit.
        """
        if large_kernel is None:
            large_kernel = ops.d4_mean(self.plk_filter)
        return ops.conv_attn(x, large_kernel, self.plk, self.aggr)


def large_kernel_parameter(pdim: int, kernel_size: int) -> nn.Parameter:
    """Make a large kernel (pdim, pdim, K, K) that starts orthogonal; K must be odd."""
    require_odd(kernel_size=kernel_size)
    kernel = nn.Parameter(torch.empty(pdim, pdim, kernel_size, kernel_size))
    nn.init.orthogonal_(kernel)
    return kernel
