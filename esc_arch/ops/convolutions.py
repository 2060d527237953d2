"""The convolutions of ConvFFN and ConvAttn."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.ops.faults import conv_attn_fault, conv_fault, depthwise_fault, refuse_fault
from esc_arch.ops.fusible import fusible
from esc_arch.ops.geometry import embed_kernel

Layer = Callable[[Tensor], Tensor]


@fusible
def conv_ffn(x: Tensor, proj: Layer, dwc: Layer, aggr: Layer) -> Tensor:
    """Compute aggr(h + GELU(dwc(h))) with h = GELU(proj(x)).

    Args:
        x: Features (B, C, H, W).
        proj: 1x1 convolution from C to hidden channels.
        dwc: Depthwise convolution of these, zero padding.
        aggr: 1x1 convolution back to C.

    Returns:
        (B, C, H, W).
    """
    x = F.gelu(proj(x))
    x = x + F.gelu(dwc(x))
    return aggr(x)


def conv_ffn_of_weights(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute `conv_ffn` of the layers' weights, always by the formula: what kernels stand for."""
    x = F.gelu(F.conv2d(x, proj, proj_bias))
    padding, groups = dwc.shape[-1] // 2, dwc.shape[0]
    x = x + F.gelu(F.conv2d(x, dwc, dwc_bias, padding=padding, groups=groups))
    return F.conv2d(x, aggr, aggr_bias)


@fusible
def conv_attn(
    x: Tensor, large_kernel: Tensor, conv: Callable[[Tensor, Tensor], Tensor], aggr: Layer
) -> Tensor:
    """Convolve the first channels of features, and mix them with the others.

    Args:
        x: Features (B, C, H, W).
        large_kernel: (pdim, pdim, K, K), as for `long_range_dynamic_conv`.
        conv: Convolves (B, pdim, H, W) with the kernel, and with what it makes for each image.
        aggr: 1x1 convolution from C to C.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: Shapes do not fit.
    """
    refuse_fault(conv_attn_fault, x, large_kernel)
    pdim = large_kernel.shape[0]
    convolved, rest = x.split((pdim, x.shape[1] - pdim), dim=1)
    return aggr(torch.cat([conv(convolved, large_kernel), rest], dim=1))


@fusible
def long_range_dynamic_conv(x: Tensor, large_kernel: Tensor, kernels: Tensor) -> Tensor:
    """Convolve with a kernel that all images share, and with each image's own; add both.

    Args:
        x: Features (B, C, H, W).
        large_kernel: (C, C, K, K), K odd, equal to its flips and quarter turns, as `d4_mean`
            returns it; nothing tests this.
        kernels: (B, C, 3, 3), depthwise.

    Returns:
        (B, C, H, W); zero padding.

    Raises:
        ValueError: Shapes do not fit.
    """
    refuse_fault(conv_fault, x, large_kernel, kernels)
    batch, channels, height, width = x.shape
    kernel_size = large_kernel.shape[-1]
    padding = (kernel_size // 2,) * 2  # One number for both cannot be traced before PyTorch 2.5.
    # A trace serves any batch, so it must not take what is for one image only.
    if not torch.jit.is_tracing() and batch == 1 and kernel_size >= 3:
        identity = torch.eye(channels, dtype=x.dtype, device=x.device)[:, :, None, None]
        dynamic = embed_kernel(kernels.view(channels, 1, 3, 3), kernel_size)
        return F.conv2d(x, large_kernel + identity * dynamic, padding=padding)
    samples = x.reshape(1, batch * channels, height, width)
    depthwise = kernels.view(batch * channels, 1, 3, 3)
    dynamic = F.conv2d(samples, depthwise, padding=1, groups=batch * channels)
    long_range = F.conv2d(x, large_kernel, padding=padding)
    return long_range + dynamic.view_as(long_range)


@fusible
def separable_dynamic_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each channel of each image with a kernel of its own.

    Args:
        x: Features (B, C, H, W).
        kernels: (B, C, K, K), K odd.

    Returns:
        (B, C, H, W); zero padding.

    Raises:
        ValueError: Shapes do not fit.
    """
    refuse_fault(depthwise_fault, x, kernels)
    batch, channels, height, width = x.shape
    kernel_size = kernels.shape[-1]
    samples = x.reshape(1, batch * channels, height, width)
    weights = kernels.reshape(batch * channels, 1, kernel_size, kernel_size)
    out = F.conv2d(samples, weights, padding=(kernel_size // 2,) * 2, groups=batch * channels)
    return out.view(batch, channels, height, width)


@fusible
def factored_dynamic_conv(x: Tensor, spatial: Tensor, dynamic: Tensor) -> Tensor:
    """Convolve each channel with a kernel that all images share, and with each image's own 3x3.

    Args:
        x: Features (B, C, H, W).
        spatial: (C, 1, K, K), K odd.
        dynamic: (B, C, 3, 3).

    Returns:
        The sum of both, (B, C, H, W); zero padding.
    """
    kernels = spatial.squeeze(1) + embed_kernel(dynamic, spatial.shape[-1])
    return separable_dynamic_conv(x, kernels)
