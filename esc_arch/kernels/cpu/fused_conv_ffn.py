"""The ConvFFN in one pass over the image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.kernels.cpu import operators
from esc_arch.kernels.operator import operator
from esc_arch.ops.convolutions import conv_ffn_of_weights
from esc_arch.ops.faults import conv_ffn_fault, same_shape_fault

# Rows and columns.
TILE = (32, 64)
TILE_BACKWARD = (32, 64)
TILE_BFLOAT16 = (32, 62)  # With the neighbours of a 3x3 kernel, whole tiles of a matrix unit.


def _takes(x: Tensor, *_: Tensor) -> bool:
    return x.shape[1] % cpu_kernels.MULTIPLE == 0


def _check(x: Tensor, *weights: Tensor) -> None:
    fault = conv_ffn_fault(x, *weights) or operators.multiple_fault(x)
    operators.check("esc::conv_ffn", (x, *weights), fault)


@choose.register("conv_ffn", "cpu", takes=_takes)
@operator("esc::conv_ffn", "cpu")
def fused_conv_ffn(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute `ops.conv_ffn`.

    No more than a few rows of the hidden channels h exist at any time; the backward computes them
    again. GELU is exact to 3e-8 of what it is given: below -5.6, where the formula tends to 0, it
    is up to so much. Where the formula gives NaN or an infinity, so do the kernels.

    Args:
        x: Features (B, C, H, W), C a multiple of 16, all of float32 or all of bfloat16.
        proj: Weights of a 1x1 convolution (hidden, C, 1, 1).
        proj_bias: (hidden,).
        dwc: Weights of a depthwise convolution (hidden, 1, k, k), k odd, zero padding.
        dwc_bias: (hidden,).
        aggr: Weights of a 1x1 convolution (C, hidden, 1, 1).
        aggr_bias: (C,).

    Returns:
        (B, C, H, W), channels last.
    """
    weights = proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias
    _check(x, *weights)
    if x.dtype == torch.bfloat16 and cpu_kernels.has_amx():
        return _conv_ffn_in_bfloat16(x, *weights)
    return _conv_ffn(x, *weights)


@cpu_kernels.in_float32
def _conv_ffn(x: Tensor, *weights: Tensor) -> Tensor:
    x = cpu_kernels.channels_last(x)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    tensors, packed = _pack(*weights)
    cpu_kernels.library().esc_conv_ffn(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(2 * x.numel() * packed.hidden),
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        packed,
        cpu_kernels.CTensor.of(out),
    )
    return out


def _conv_ffn_in_bfloat16(x: Tensor, *weights: Tensor) -> Tensor:
    x = cpu_kernels.channels_last(x)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    tensors, packed = _pack(*(weight.float() for weight in weights))
    tiles = [
        cpu_kernels.operand_tiles(weight.flatten(1).t()) for weight in (weights[0], weights[4])
    ]
    packed.proj_tiles, packed.aggr_tiles = (t.data_ptr() for t in tiles)
    cpu_kernels.library().esc_amx_conv_ffn(
        cpu_kernels.threads_for(2 * x.numel() * packed.hidden),
        cpu_kernels.CTiles.of(x, *TILE_BFLOAT16),
        cpu_kernels.CTensor.of(x),
        packed,
        cpu_kernels.CTensor.of(out),
    )
    return out


def _pack(
    proj: Tensor, proj_bias: Tensor, dwc: Tensor, dwc_bias: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> tuple[list[Tensor], cpu_kernels.CConvFfn]:
    """Pad the hidden channels to whole vectors and lay them last, but for what wants C last.

    Returns:
        The tensors, which must outlive the other: their description.
    """
    hidden = proj.shape[0]
    padding = -hidden % cpu_kernels.MULTIPLE
    columns = [
        F.pad(weight.reshape(hidden, -1).t(), (0, padding))
        for weight in (proj, proj_bias, dwc, dwc_bias, dwc.flip(2, 3))
    ]
    proj_rows = F.pad(proj.flatten(1), (0, 0, 0, padding))
    aggr_columns = F.pad(aggr.flatten(1), (0, padding))
    weights = [*columns[:4], aggr_columns.t(), aggr_bias, proj_rows, columns[4], aggr_columns]
    weights = [weight.contiguous() for weight in weights]
    pointers = (weight.data_ptr() for weight in weights)
    sizes = {"hidden": hidden + padding, "kernel_size": dwc.shape[-1]}
    return weights, cpu_kernels.CConvFfn(*pointers, **sizes)


@torch.library.register_fake(fused_conv_ffn)
def _(x: Tensor, *weights: Tensor) -> Tensor:
    _check(x, *weights)
    return torch.empty_like(x, memory_format=torch.channels_last)


def _check_backward(grad_out: Tensor, x: Tensor, *weights: Tensor) -> None:
    fault = conv_ffn_fault(x, *weights) or operators.multiple_fault(x)
    fault = fault or same_shape_fault("grad_out", grad_out, x)
    operators.check("esc::conv_ffn_backward", (grad_out, x, *weights), fault)


@operator("esc::conv_ffn_backward", "cpu")
def fused_conv_ffn_backward(
    grad_out: Tensor,
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `fused_conv_ffn`'s arguments, shapes as there."""
    _check_backward(grad_out, x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias)
    return _conv_ffn_backward(grad_out, x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias)


@cpu_kernels.in_float32
def _conv_ffn_backward(grad_out: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    x, grad_out = cpu_kernels.channels_last(x), cpu_kernels.channels_last(grad_out)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    *by_hidden, aggr, _ = weights
    hidden = aggr.shape[1]
    tensors, packed = _pack(*weights)
    sizes = [tensor.numel() for tensor in tensors[:6]]
    sums = x.new_zeros(sum(sizes))
    cpu_kernels.library().esc_conv_ffn_backward(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(5 * x.numel() * hidden),
        cpu_kernels.CTiles.of(x, *TILE_BACKWARD),
        cpu_kernels.CTensor.of(x),
        packed,
        cpu_kernels.CTensor.of(grad_out),
        cpu_kernels.CTensor.of(grad_x),
        sums.data_ptr(),
    )
    *columns, aggr_columns, grad_aggr_bias = (
        grad.view_as(tensor) for grad, tensor in zip(sums.split(sizes), tensors[:6], strict=True)
    )
    grads = [
        grad[:, :hidden].t().reshape(weight.shape)
        for grad, weight in zip(columns, by_hidden, strict=True)
    ]
    grads += [aggr_columns[:hidden].t().reshape(aggr.shape), grad_aggr_bias]
    return grad_x, *(grad.clone(memory_format=torch.contiguous_format) for grad in grads)


@torch.library.register_fake(fused_conv_ffn_backward)
def _(grad_out: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    _check_backward(grad_out, x, *weights)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(
        ctx, conv_ffn_of_weights, fused_conv_ffn_backward, ctx.saved_tensors, grad_out
    )


torch.library.register_autograd(fused_conv_ffn, _backward, setup_context=_save)
