"""ConvAttn's convolutions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.kernels.cpu import operators
from esc_arch.kernels.operator import operator
from esc_arch.ops import convolutions
from esc_arch.ops.faults import conv_attn_layers_fault, conv_fault, same_shape_fault, taps_fault
from esc_arch.ops.geometry import embed_kernel

TILE = (16, 64)  # Rows and columns.
TILE_BFLOAT16 = (32, 64)


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


def _spread(taps: Tensor, kernel_size: int) -> Tensor:
    """Undo `distinct_taps`: (T, C in, C out) to (C out, C in, K, K)."""
    away = torch.arange(kernel_size, device=taps.device).sub(kernel_size // 2).abs()
    near = torch.minimum(away[:, None], away)
    far = torch.maximum(away[:, None], away)
    side = kernel_size // 2 + 1
    # Rows of the triangle before `near` hold side, side - 1, ... taps.
    return taps[near * side - near * (near - 1) // 2 + far - near].permute(3, 2, 0, 1)


@choose.register("long_range_dynamic_conv", "cpu")
def fused_conv(x: Tensor, large_kernel: Tensor, kernels: Tensor) -> Tensor:
    """Compute `ops.long_range_dynamic_conv`.

    The pixels that the symmetric kernel weighs equally are added before they are multiplied: with
    K = 13, 28 products in place of 169.
    """
    return symmetric_conv(x, distinct_taps(large_kernel), kernels, large_kernel.shape[-1])


def _formula(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    large_kernel = _spread(taps, kernel_size)
    return convolutions.long_range_dynamic_conv.__wrapped__(x, large_kernel, kernels)


def _check(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> None:
    fault = operators.side_fault(kernel_size)
    fault = fault or taps_fault(x, taps, kernels, _tap_count(kernel_size))
    operators.check("esc::symmetric_conv", (x, taps, kernels), fault)


def _check_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> None:
    fault = same_shape_fault("grad_out", grad_out, x) or operators.side_fault(kernel_size)
    operators.check("esc::symmetric_conv_weight", (x, grad_out), fault)


@operator("esc::symmetric_conv", "cpu")
def symmetric_conv(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Compute `ops.long_range_dynamic_conv` from `distinct_taps` of the large kernel.

    Args:
        x: Features (B, C, H, W), all of float32 or all of bfloat16.
        taps: (T, C in, C out), C in = C out = C.
        kernels: (B, C, 3, 3).
        kernel_size: Odd side K of the large kernel.

    Returns:
        (B, C, H, W), channels last.
    """
    _check(x, taps, kernels, kernel_size)
    return _symmetric_conv(x, taps, kernels, kernel_size)


@cpu_kernels.in_float32
def _symmetric_conv(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
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


@torch.library.register_fake(symmetric_conv)
def _(x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    _check(x, taps, kernels, kernel_size)
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator("esc::symmetric_conv_weight", "cpu")
def symmetric_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of `symmetric_conv`'s taps and kernels; shapes as there."""
    _check_weight(x, grad_out, kernel_size)
    return _symmetric_conv_weight(x, grad_out, kernel_size)


@cpu_kernels.in_float32
def _symmetric_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    x, grad_out = cpu_kernels.channels_last(x), cpu_kernels.channels_last(grad_out)
    batch, channels = x.shape[:2]
    count = _tap_count(kernel_size)
    grad_taps = x.new_zeros(count, channels, channels)
    grad_kernels = x.new_zeros(batch, channels, 3, 3)
    cpu_kernels.library().esc_convolve_backward(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(x.numel() * count * channels),
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        cpu_kernels.CTensor.of(grad_out),
        grad_taps.data_ptr(),
        grad_kernels.data_ptr(),
    )
    return grad_taps, grad_kernels


@torch.library.register_fake(symmetric_conv_weight)
def _(x: Tensor, grad_out: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    _check_weight(x, grad_out, kernel_size)
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
    def kernel(
        grad_out: Tensor, x: Tensor, taps: Tensor, kernels: Tensor, kernel_size: int
    ) -> tuple[Tensor | None, ...]:
        grad_x = grad_taps = grad_kernels = None
        if ctx.needs_input_grad[0]:
            # Symmetric kernels are their own flips.
            turned = taps.transpose(1, 2), kernels.flip(2, 3)
            grad_x = symmetric_conv(grad_out, *turned, kernel_size)
        if any(ctx.needs_input_grad[1:3]):
            grad_taps, grad_kernels = symmetric_conv_weight(x, grad_out, kernel_size)
        return grad_x, grad_taps, grad_kernels, None

    inputs = *ctx.saved_tensors, ctx.kernel_size
    return operators.gradients(ctx, _formula, kernel, inputs, grad_out)


torch.library.register_autograd(symmetric_conv, _backward, setup_context=_save)


def _takes(x: Tensor, *_: Any) -> bool:
    return x.shape[1] % cpu_kernels.MULTIPLE == 0


@choose.register("conv_attn", "cpu", takes=_takes, differentiable=False)
def _conv_attn_of(
    x: Tensor, large_kernel: Tensor, conv: Any, aggr: Tensor, aggr_bias: Tensor
) -> Tensor:
    kernels = conv.kernels(x[:, : large_kernel.shape[0]]).to(x.dtype)
    return fused_conv_attn(x, large_kernel, kernels, aggr, aggr_bias)


def _conv_attn_formula(
    x: Tensor, large_kernel: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> Tensor:
    convolved, rest = x.split((large_kernel.shape[0], x.shape[1] - large_kernel.shape[0]), dim=1)
    convolved = convolutions.long_range_dynamic_conv(convolved, large_kernel, kernels)
    return F.conv2d(torch.cat([convolved, rest], dim=1), aggr, aggr_bias)


def _check_conv_attn(
    x: Tensor, large_kernel: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> None:
    fault = conv_attn_layers_fault(x, large_kernel, None, aggr, aggr_bias)
    fault = fault or operators.multiple_fault(x)
    fault = fault or conv_fault(x[:, : large_kernel.shape[0]], large_kernel, kernels)
    operators.check("esc::conv_attn", (x, large_kernel, kernels, aggr, aggr_bias), fault)


@operator("esc::conv_attn", "cpu")
def fused_conv_attn(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute all of a ConvAttn.

    Args:
        x: Features (B, C, H, W), C a multiple of 16, all of float32 or all of bfloat16.
        large_kernel: (pdim, pdim, K, K), as for `long_range_dynamic_conv`.
        kernels: (B, pdim, 3, 3).
        aggr: Weights of the 1x1 convolution (C, C, 1, 1).
        aggr_bias: (C,).

    Returns:
        (B, C, H, W), channels last.
    """
    _check_conv_attn(x, large_kernel, kernels, aggr, aggr_bias)
    function = _conv_attn
    if x.dtype == torch.bfloat16 and large_kernel.shape[0] == 16 and cpu_kernels.has_amx():
        function = _conv_attn_in_bfloat16
    return function(x, large_kernel, kernels, aggr, aggr_bias)


@cpu_kernels.in_float32
def _conv_attn(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    x, nothing = cpu_kernels.channels_last(x), _nothing(x)
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
        cpu_kernels.CTensor.of(nothing),
        cpu_kernels.CTensor.of(out),
    )
    return out


def _conv_attn_in_bfloat16(
    x: Tensor,
    large_kernel: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    x, nothing = cpu_kernels.channels_last(x), _nothing(x)
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
        cpu_kernels.CTensor.of(nothing),
        cpu_kernels.CTensor.of(out),
    )
    return out


def _nothing(x: Tensor) -> Tensor:
    """What the functions add to the result: zeros for all pixels, in memory of one."""
    return x.new_zeros(1, x.shape[1], 1, 1).expand_as(x)


def _tiles_of_taps(large_kernel: Tensor, kernels: Tensor) -> Tensor:
    """Add each image's own kernels to the large one; two taps side by side make a tile."""
    identity = torch.eye(16)[None, :, :, None, None]
    dynamic = embed_kernel(kernels.float(), large_kernel.shape[-1])
    summed = F.pad(large_kernel.float() + identity * dynamic[:, :, None], (0, 1))
    rows = summed.permute(0, 3, 4, 2, 1)  # (B, K, K + 1, C in, C out)
    return cpu_kernels.operand_tiles(rows.unflatten(2, (-1, 2)).flatten(3, 4))


@torch.library.register_fake(fused_conv_attn)
def _(x: Tensor, large_kernel: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor) -> Tensor:
    _check_conv_attn(x, large_kernel, kernels, aggr, aggr_bias)
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save_conv_attn(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_conv_attn(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(ctx, _conv_attn_formula, None, ctx.saved_tensors, grad_out)


torch.library.register_autograd(fused_conv_attn, _backward_conv_attn, setup_context=_save_conv_attn)
