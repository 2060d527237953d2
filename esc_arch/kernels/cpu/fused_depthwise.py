"""A convolution of each channel of each image with a kernel of its own."""

from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.kernels.cpu import operators
from esc_arch.kernels.operator import operator
from esc_arch.ops import convolutions
from esc_arch.ops.faults import depthwise_fault, same_shape_fault

TILE = (16, 64)  # Rows and columns.


def _check(x: Tensor, kernels: Tensor) -> None:
    operators.check("esc::depthwise_conv", (x, kernels), depthwise_fault(x, kernels))


def _check_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> None:
    fault = same_shape_fault("grad_out", grad_out, x) or operators.side_fault(kernel_size)
    operators.check("esc::depthwise_conv_weight", (x, grad_out), fault)


@choose.register("separable_dynamic_conv", "cpu")
@operator("esc::depthwise_conv", "cpu")
def depthwise_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Compute `ops.separable_dynamic_conv`; the result has its channels last.

    It is in float32; torch's goes through layouts that take ten times as long as the convolution.
    """
    _check(x, kernels)
    return _depthwise_conv(x, kernels)


@cpu_kernels.in_float32
def _depthwise_conv(x: Tensor, kernels: Tensor) -> Tensor:
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


@torch.library.register_fake(depthwise_conv)
def _(x: Tensor, kernels: Tensor) -> Tensor:
    _check(x, kernels)
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator("esc::depthwise_conv_weight", "cpu")
def depthwise_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> Tensor:
    """Return the gradient of `depthwise_conv`'s kernels."""
    _check_weight(x, grad_out, kernel_size)
    return _depthwise_conv_weight(x, grad_out, kernel_size)


@cpu_kernels.in_float32
def _depthwise_conv_weight(x: Tensor, grad_out: Tensor, kernel_size: int) -> Tensor:
    x, grad_out = cpu_kernels.channels_last(x), cpu_kernels.channels_last(grad_out)
    grad_kernels = x.new_zeros(*x.shape[:2], kernel_size, kernel_size)
    cpu_kernels.library().esc_convolve_depthwise_backward(
        cpu_kernels.vector_width(),
        cpu_kernels.threads_for(x.numel() * kernel_size**2),
        kernel_size,
        cpu_kernels.CTiles.of(x, *TILE),
        cpu_kernels.CTensor.of(x),
        cpu_kernels.CTensor.of(grad_out),
        grad_kernels.data_ptr(),
    )
    return grad_kernels


@torch.library.register_fake(depthwise_conv_weight)
def _(x: Tensor, grad_out: Tensor, kernel_size: int) -> Tensor:
    _check_weight(x, grad_out, kernel_size)
    return x.new_empty(*x.shape[:2], kernel_size, kernel_size)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    def kernel(grad_out: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_kernels = None
        if ctx.needs_input_grad[0]:
            grad_x = depthwise_conv(grad_out, kernels.flip(2, 3))
        if ctx.needs_input_grad[1]:
            grad_kernels = depthwise_conv_weight(x, grad_out, kernels.shape[-1])
        return grad_x, grad_kernels

    formula = convolutions.separable_dynamic_conv.__wrapped__
    return operators.gradients(ctx, formula, kernel, ctx.saved_tensors, grad_out)


torch.library.register_autograd(depthwise_conv, _backward, setup_context=_save)
