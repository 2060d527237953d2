"""Derivatives that kernels do not have: those of the formula stand in for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

# Before PyTorch 2.7 torch.compile breaks its graph at the question.
_can_ask_in_graphs = hasattr(torch.compiler, "is_exporting")


def only_formulas_differentiate() -> bool:
    """Tell whether derivatives are being taken that none but formulas have.

    That is so in forward mode (`torch.func.jvp`, `torch.autograd.forward_ad`) and within any other
    transform of `torch.func`.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling() and not _can_ask_in_graphs:
        return False
    return torch._C._are_functorch_transforms_active()


def refuse_forward_mode(operator: str, *tensors: Tensor) -> None:
    """Refuse to lose a derivative in silence.

    Args:
        operator: Name of an operator that has none in forward mode.
        *tensors: What it is given.

    Raises:
        NotImplementedError: One of the tensors carries a derivative in forward mode.
    """
    if forward_ad._current_level < 0:
        return
    # What torch.func has wrapped cannot be asked below autograd.
    wrapped = torch._C._functorch.is_gradtrackingtensor
    if any(wrapped(x) or forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(f"{operator} has no derivative in forward mode; its formula has")


def gradients_of_formula(
    formula: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    """Differentiate a formula so that its gradients can be differentiated again.

    Args:
        formula: Maps the inputs to a tensor.
        inputs: Tensors, and what else it takes.
        needed: Whether the gradient of each input is wanted.
        grad_out: Gradient of the result.

    Returns:
        The gradients wanted; None for the other inputs.
    """
    with torch.enable_grad():
        # In views of their own, so that one tensor given twice counts twice.
        leaves = [x.view_as(x) if want else x for x, want in zip(inputs, needed, strict=True)]
        wanted = [leaf for leaf, want in zip(leaves, needed, strict=True) if want]
        grads = torch.autograd.grad(
            formula(*leaves), wanted, grad_out, create_graph=True, allow_unused=True
        )
    found = iter(grads)
    return tuple(next(found) if want else None for want in needed)
