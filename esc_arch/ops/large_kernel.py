"""ConvAttn's convolutions: one large kernel for all, and a 3x3 kernel for each image."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.geometry import embed_kernel

TILE = (16, 64)  # Rows and columns.
TILE_BFLOAT16 = (32, 64)


def long_range_dynamic_conv(x: Tensor, large_kernel: Tensor, kernels: Tensor) -> Tensor:
    """Convolve with a kernel that all images share, and with each image's own; add both.

    On the CPU our own function runs, if it was built, in float32. It adds the pixels that the
    symmetric kernel weighs equally before it multiplies them: with K = 13, 28 products in place of
    169. Elsewhere torch's convolutions do.

    Args:
        x: Features (B, C, H, W).
        large_kernel: (C, C, K, K), K odd, equal to its flips and quarter turns, as `d4_mean`
            returns it; nothing tests this.
        kernels: (B, C, 3, 3), depthwise.

    Returns:
        (B, C, H, W); zero padding.
    """
    batch, channels, height, width = x.shape
    kernel_size = large_kernel.shape[-1]
    padding = kernel_size // 2
    if cpu_kernels.can_run(x, large_kernel, kernels):
        taps = distinct_taps(large_kernel)
        return symmetric_conv(*cpu_kernels.as_computed(x, taps, kernels), kernel_size)
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


def can_fuse(x: Tensor, large_kernel: Tensor, skip: Tensor, *layers: nn.Module) -> bool:
    """Tell whether `fused_conv_attn` can stand for the layers of a ConvAttn.

    Args:
        x: Features (B, C, H, W).
        large_kernel: (pdim, pdim, K, K).
        skip: What is added to the result, (B, C, H, W).
        layers: Its 1x1 convolution. One that is wrapped or has hooks must be called itself.
    """
    weights = [weight for layer in layers for weight in layer.parameters()]
    tensors = (x, large_kernel, skip, *weights)
    return (
        not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and x.shape[1] % cpu_kernels.MULTIPLE == 0
        and cpu_kernels.can_replace(*layers)
        and cpu_kernels.can_run(*tensors)
    )


def separable_dynamic_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each channel of each image with a kernel of its own.

    On the CPU our own function runs, if it was built, in float32; torch's goes through layouts
    that take ten times as long as the convolution.

    Args:
        x: Features (B, C, H, W).
        kernels: (B, C, K, K), K odd.

    Returns:
        (B, C, H, W); zero padding.
    """
    if cpu_kernels.can_run(x, kernels):
        return depthwise_conv(*cpu_kernels.as_computed(x, kernels))
    batch, channels, height, width = x.shape
    kernel_size = kernels.shape[-1]
    samples = x.reshape(1, batch * channels, height, width)
    weights = kernels.reshape(batch * channels, 1, kernel_size, kernel_size)
    out = F.conv2d(samples, weights, padding=kernel_size // 2, groups=batch * channels)
    return out.view(batch, channels, height, width)


def distinct_taps(kernel: Tensor) -> Tensor:
    """Take one of each set of weights that a symmetric kernel has in common.

    Args:
        kernel: (C out, C in, K, K), equal to its flips and quarter turns.

    Returns:
        (n (n + 1) / 2, C in, C out) with n = (K + 1) / 2: the weights e rows and d columns from
        the centre, for d >= e >= 0.
    """
    centre = kernel.shape[-1] // 2
    rows, columns = torch.triu_indices(centre + 1, centre + 1, device=kernel.device) + centre
    return kernel[:, :, rows, columns].permute(2, 1, 0).contiguous()


@torch.library.custom_op("esc::symmetric_conv", mutates_args=(), device_types="cpu")
@cpu_kernels.in_float32
def symmetric_conv(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Compute `long_range_dynamic_conv` from `distinct_taps` of the large kernel.

    Args:
        x: Features (B, C, H, W), all of float32 or all of bfloat16.
        taps: (T, C in, C out), C in = C out = C.
        kernels: (B, C, 3, 3).
        kernel_size: Odd side K of the large kernel.

    Returns:
        (B, C, H, W), channels last.
    """
    x, taps, kernels = cpu_kernels.channels_last(x), taps.contiguous(), kernels.contiguous()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    cpu_kernels.library().esc_convolve(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(x.numel() * taps.shape[0] * taps.shape[1]),
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        taps.data_ptr(),
        kernels.data_ptr(),
        cpu_kernels.CTensor.of(out),
    )
    return out


@symmetric_conv.register_fake
def _(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("esc::symmetric_conv_weight", mutates_args=(), device_types="cpu")
@cpu_kernels.in_float32
def symmetric_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of `symmetric_conv`'s taps and kernels; shapes as there."""
    x, grad_out = cpu_kernels.channels_last(x), cpu_kernels.channels_last(grad_out)
    batch, channels = x.shape[:2]
    count = _tap_count(kernel_size)
    threads = cpu_kernels.threads_for(x.numel() * count * channels)
    grad_taps = x.new_zeros(threads, count, channels, channels)
    grad_kernels = x.new_zeros(threads, batch, channels, 3, 3)
    cpu_kernels.library().esc_convolve_backward(
        cpu_kernels.vector_width(),
        threads,
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        cpu_kernels.CTensor.of(grad_out),
        grad_taps.data_ptr(),
        grad_kernels.data_ptr(),
    )
    return grad_taps.sum(0), grad_kernels.sum(0)


@symmetric_conv_weight.register_fake
def _(x: Tensor, grad_out: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    batch, channels = x.shape[:2]
    taps = x.new_empty(_tap_count(kernel_size), channels, channels)
    return taps, x.new_empty(batch, channels, 3, 3)


def _tap_count(kernel_size: int) -> int:
    side = kernel_size // 2 + 1
    return side * (side + 1) // 2


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kernel_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, taps, kernels = ctx.saved_tensors
    grad_x = grad_taps = grad_kernels = None
    if ctx.needs_input_grad[0]:
        # Symmetric kernels are their own flips.
        turned = taps.transpose(1, 2), kernels.flip(2, 3)
        grad_x = symmetric_conv(grad_out, *turned, ctx.kernel_size)
    if any(ctx.needs_input_grad[1:3]):
        grad_taps, grad_kernels = symmetric_conv_weight(x, grad_out, ctx.kernel_size)
    return grad_x, grad_taps, grad_kernels, None


symmetric_conv.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("esc::conv_attn", mutates_args=(), device_types="cpu")
def fused_conv_attn(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
    skip: Tensor,
) -> Tensor:
    """Compute all of a ConvAttn, without gradients.

    Args:
        x: Features (B, C, H, W), C a multiple of 16, all of float32 or all of bfloat16.
        large_kernel: (pdim, pdim, K, K), as for `long_range_dynamic_conv`.
        kernels: (B, pdim, 3, 3).
        aggr: Weights of the 1x1 convolution (C, C, 1, 1).
        aggr_bias: (C,).
        skip: Added to the result, (B, C, H, W).

    Returns:
        (B, C, H, W), channels last.
    """
    function = _conv_attn
    if x.dtype == torch.bfloat16 and large_kernel.shape[0] == 16 and cpu_kernels.has_amx():
        function = _conv_attn_in_bfloat16
    return function(x, large_kernel, kernels, aggr, aggr_bias, skip)


@cpu_kernels.in_float32
def _conv_attn(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
    skip: Tensor,
) -> Tensor:
    x, skip = cpu_kernels.channels_last(x), cpu_kernels.channels_last(skip)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    taps, kernels = distinct_taps(large_kernel), kernels.contiguous()
    aggr, aggr_bias = aggr.flatten(1).t().contiguous(), aggr_bias.contiguous()
    cpu_kernels.library().esc_conv_attn(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(x.numel() * taps.shape[0]),
        large_kernel.shape[-1],
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        large_kernel.shape[0],
        taps.data_ptr(),
        kernels.data_ptr(),
        aggr.data_ptr(),
        aggr_bias.data_ptr(),
        cpu_kernels.CTensor.of(skip),
        cpu_kernels.CTensor.of(out),
    )
    return out


def _conv_attn_in_bfloat16(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
    skip: Tensor,
) -> Tensor:
    x, skip = cpu_kernels.channels_last(x), cpu_kernels.channels_last(skip)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    kernel_size = max(large_kernel.shape[-1], 3)
    taps = _tiles_of_taps(embed_kernel(large_kernel, kernel_size), kernels)
    aggr, aggr_bias = cpu_kernels.operand_tiles(aggr.flatten(1).t()), aggr_bias.float()
    cpu_kernels.library().esc_amx_conv_attn(
        cpu_kernels.threads_for(x.numel() * kernel_size**2),
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE_BFLOAT16),
        cpu_kernels.CTensor.of(x),
        taps.data_ptr(),
        aggr.data_ptr(),
        aggr_bias.data_ptr(),
        cpu_kernels.CTensor.of(skip),
        cpu_kernels.CTensor.of(out),
    )
    return out


def _tiles_of_taps(large_kernel: Tensor, kernels: Tensor) -> Tensor:
    """Add each image's own kernels to the large one; two taps side by side make a tile."""
    identity = torch.eye(16)[None, :, :, None, None]
    dynamic = embed_kernel(kernels.float(), large_kernel.shape[-1])
    summed = F.pad(large_kernel.float() + identity * dynamic[:, :, None], (0, 1))
    rows = summed.permute(0, 3, 4, 2, 1)  # (B, K, K + 1, C in, C out)
    return cpu_kernels.operand_tiles(rows.unflatten(2, (-1, 2)).flatten(3, 4))


@fused_conv_attn.register_fake
def _(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("esc::depthwise_conv", mutates_args=(), device_types="cpu")
@cpu_kernels.in_float32
def depthwise_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Compute `separable_dynamic_conv` in float32; the result has its channels last."""
    x, kernels = cpu_kernels.channels_last(x), kernels.contiguous()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    cpu_kernels.library().esc_convolve_depthwise(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(x.numel() * kernels.shape[-1] ** 2),
        kernels.shape[-1],
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        kernels.data_ptr(),
        cpu_kernels.CTensor.of(out),
    )
    return out


@depthwise_conv.register_fake
def _(x: Tensor, kernels: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("esc::depthwise_conv_weight", mutates_args=(), device_types="cpu")
@cpu_kernels.in_float32
def depthwise_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> Tensor:
    """Return the gradient of `depthwise_conv`'s kernels."""
    x, grad_out = cpu_kernels.channels_last(x), cpu_kernels.channels_last(grad_out)
    threads = cpu_kernels.threads_for(x.numel() * kernel_size**2)
    grad_kernels = x.new_zeros(threads, *x.shape[:2], kernel_size, kernel_size)
    cpu_kernels.library().esc_convolve_depthwise_backward(
        cpu_kernels.vector_width(),
        threads,
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        cpu_kernels.CTensor.of(grad_out),
        grad_kernels.data_ptr(),
    )
    return grad_kernels.sum(0)


@depthwise_conv_weight.register_fake
def _(x: Tensor, grad_out: Tensor, kernel_size: int) -> Tensor:
    return x.new_empty(*x.shape[:2], kernel_size, kernel_size)


def _save_depthwise(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _depthwise_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, kernels = ctx.saved_tensors
    grad_x = grad_kernels = None
    if ctx.needs_input_grad[0]:
        grad_x = depthwise_conv(grad_out, kernels.flip(2, 3))
    if ctx.needs_input_grad[1]:
        grad_kernels = depthwise_conv_weight(x, grad_out, kernels.shape[-1])
    return grad_x, grad_kernels


depthwise_conv.register_autograd(_depthwise_backward, setup_context=_save_depthwise)
