"""The ConvFFN in one pass over the image: our own function on the CPU, for inference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.ops import cpu_kernels

TILE = (32, 64)  # Rows and columns.
# Channels must be a multiple of the widest vector.
MULTIPLE = 16


def conv_ffn(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute aggr(h + GELU(dwc(h))) with h = GELU(proj(x)).

    On the CPU in float32 and without gradients our own function runs, if it was built: no more of
    the hidden channels than a few rows exist at any time.

    Args:
        x: Features (B, C, H, W).
        proj: Weights of a 1x1 convolution (hidden, C, 1, 1).
        proj_bias: (hidden,).
        dwc: Weights of a depthwise convolution (hidden, 1, k, k), k odd, zero padding.
        dwc_bias: (hidden,).
        aggr: Weights of a 1x1 convolution (C, hidden, 1, 1).
        aggr_bias: (C,).

    Returns:
        (B, C, H, W).
    """
    inputs = (x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias)
    needs_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if not needs_gradients and x.shape[1] % MULTIPLE == 0 and cpu_kernels.can_run(*inputs):
        return fused_conv_ffn(*inputs)
    x = F.gelu(F.conv2d(x, proj, proj_bias))
    hidden = x.shape[1]
    x = x + F.gelu(F.conv2d(x, dwc, dwc_bias, padding=dwc.shape[-1] // 2, groups=hidden))
    return F.conv2d(x, aggr, aggr_bias)


@torch.library.custom_op("esc::conv_ffn", mutates_args=(), device_types="cpu")
def fused_conv_ffn(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute `conv_ffn` for float32 and C a multiple of 16; arguments as there."""
    x = cpu_kernels.channels_last(x)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    hidden, kernel_size = proj.shape[0], dwc.shape[-1]
    padding = -hidden % MULTIPLE
    # Hidden channels last, and no fewer than whole vectors of them.
    weights = [
        F.pad(weight.reshape(hidden, -1).t(), (0, padding))
        for weight in (proj, proj_bias, dwc, dwc_bias)
    ]
    weights += [F.pad(aggr.flatten(1).t(), (0, 0, 0, padding)), aggr_bias]
    weights = [weight.contiguous() for weight in weights]
    cpu_kernels.library().esc_conv_ffn(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(2 * x.numel() * hidden),
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        cpu_kernels.CConvFfn(*(w.data_ptr() for w in weights), hidden + padding, kernel_size),
        cpu_kernels.CTensor.of(out),
    )
    return out


@fused_conv_ffn.register_fake
def _(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
