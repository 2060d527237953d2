"""Optimizers by name."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from esc_arch.errors import UserError


def optimizer_names() -> list[str]:
    """Names of the optimizers in torch.optim that take (params, lr) and one step a call."""
    # LBFGS wants to evaluate the loss itself, several times a step: BasicSR's loop cannot.
    # SparseAdam takes sparse gradients alone, which no network of pictures has.
    unfit = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value not in unfit
    )


def any_torch_optimizer(
    optim_type: str, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, **kwargs: Any
) -> torch.optim.Optimizer:
    """Build an optimizer of torch.optim; BasicSR 1.4.2's own `get_optimizer` knows only Adam.

    Args:
        optim_type: Name of a class in torch.optim, such as `AdamW`.
        params: Parameters, or parameter groups.
        lr: Learning rate.
        **kwargs: The other options of that class.

    Returns:
        The optimizer.

    Raises:
        UserError: There is no such optimizer, or it does not take these options.
    """
    names = optimizer_names()
    if optim_type not in names:
        close = difflib.get_close_matches(str(optim_type), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"torch.optim has {', '.join(names)}"
        raise UserError(f"train: optim_g: type: no optimizer '{optim_type}' in torch.optim; {hint}")
    try:
        return getattr(torch.optim, optim_type)(params, lr=lr, **kwargs)
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{key}={value}" for key, value in {"lr": lr, **kwargs}.items())
        raise UserError(f"train: optim_g: {optim_type} does not take {options}: {error}") from None
