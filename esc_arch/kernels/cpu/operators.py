"""What the operators have in common: checks before C sees a pointer, and derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels.cpu.library import MULTIPLE
from esc_arch.ops.derivatives import gradients_of_formula

DTYPES = (torch.float32, torch.bfloat16)
# Sizes and strides are told to C in 32 or 64 bits; what is larger than this fits no memory.
LARGEST_SIZE = 2**31 - 1


def check(
    operator: str, tensors: Sequence[Tensor], fault: str | None, dtypes: Sequence = DTYPES
) -> None:
    """Refuse what an operator cannot compute; in its fake, too.

    Args:
        operator: Its name.
        tensors: What it is given: all of one dtype, on one device.
        fault: What `ops.faults` says of them.
        dtypes: Dtypes that it takes.

    Raises:
        ValueError: It cannot compute these.
    """
    first = tensors[0]
    if fault is None and first.dtype not in dtypes:
        fault = f"dtype is {first.dtype}; it must be {' or '.join(str(d) for d in dtypes)}"
    for tensor in tensors if fault is None else ():
        if tensor.dtype != first.dtype:
            fault = f"dtypes are {first.dtype} and {tensor.dtype}; they must be the same"
        elif tensor.layout != torch.strided:
            fault = f"layout is {tensor.layout}; it must be torch.strided"
        elif tensor.numel() == 0:
            fault = f"a tensor of shape {tuple(tensor.shape)} is empty"
        elif any(size > LARGEST_SIZE for size in tensor.shape):
            fault = f"a tensor of shape {tuple(tensor.shape)} is larger than {LARGEST_SIZE}"
    if fault is not None:
        raise ValueError(f"{operator}: {fault}")
    check_devices(operator, tensors)


def check_devices(operator: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors on several devices.

    Raises:
        ValueError: They are.
    """
    devices = {str(tensor.device): None for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"{operator}: devices are {', '.join(devices)}; they must be the same")


def multiple_fault(x: Tensor) -> str | None:
    """Check that channels, which are read and written in place, fill the widest vectors."""
    if x.shape[1] % MULTIPLE:
        return f"x has {x.shape[1]} channels; they must be a multiple of {MULTIPLE}"
    return None


def side_fault(kernel_size: int) -> str | None:
    """Check the side of a kernel."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        return f"kernel_size is {kernel_size}; it must be odd"
    return None


def gradients(
    ctx: Any,
    formula: Callable[..., Tensor],
    kernel: Callable[..., Sequence[Tensor | None]] | None,
    inputs: Sequence[Any],
    grad_out: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute an operator's gradients.

    Args:
        ctx: Its context.
        formula: What it computes, in torch operations, for gradients that will be differentiated.
        kernel: Computes the gradients from grad_out and the inputs, or None.
        inputs: What it was given.
        grad_out: Gradient of the result.

    Returns:
        A gradient or None for each input.
    """
    if kernel is None or torch.is_grad_enabled():
        return gradients_of_formula(formula, inputs, ctx.needs_input_grad, grad_out)
    return tuple(kernel(grad_out, *inputs))
