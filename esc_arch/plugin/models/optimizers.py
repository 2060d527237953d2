"""Optimizers by name."""

import difflib
import importlib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from esc_arch.errors import UserError, nearest_first

# A package of a hundred more, https://pypi.org/project/pytorch-optimizer, where it is installed.
LIBRARY = "pytorch_optimizer"


def optimizer_names() -> list[str]:
    """Names of the optimizers in torch.optim that take (params, lr) and one step a call."""
    # LBFGS wants to evaluate the loss itself, several times a step: BasicSR's loop cannot.
    # SparseAdam takes sparse gradients alone, which no network of pictures has.
    unfit = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    return [name for name in _names_in(torch.optim) if getattr(torch.optim, name) not in unfit]


def _names_in(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    )


def optimizer_class(optim_type: str) -> type[torch.optim.Optimizer]:
    """The optimizer that an option file names.

    Args:
        optim_type: Name of a class in torch.optim, such as `AdamW`, or of one of the package
            pytorch_optimizer with its name before it, such as `pytorch_optimizer.SOAP`.

    Returns:
        The class.

    Raises:
        UserError: There is none, its package is not installed, or BasicSR's loop cannot use it.
    """
    names = optimizer_names()
    if optim_type in names:
        return getattr(torch.optim, optim_type)
    package, dot, name = str(optim_type).partition(".")
    if package == LIBRARY and dot:
        return _of_library(name)
    close = difflib.get_close_matches(str(optim_type), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"torch.optim has {', '.join(names)}"
    raise UserError(
        f"no optimizer '{optim_type}' in torch.optim; {hint}{hint_of_library(optim_type)}"
    )


def _of_library(name: str) -> type[torch.optim.Optimizer]:
    try:
        library = importlib.import_module(LIBRARY)
    except ImportError as error:
        raise UserError(
            f"{LIBRARY}.{name} needs the package {LIBRARY} (pip install {LIBRARY}): {error}"
        ) from None
    names = _names_in(library)
    if name not in names:
        raise UserError(f"no optimizer '{name}' in {LIBRARY}; {nearest_first(name, names)}")
    found = getattr(library, name)
    if hasattr(found, "eval"):
        raise UserError(
            f"{LIBRARY}.{name} has other weights for validation than for training and must be told "
            "of each, which BasicSR does not; take another one"
        )
    return found


def hint_of_library(optim_type: object) -> str:
    """The end of an error about a name that torch.optim has not: the package that has it.

    Args:
        optim_type: What the user wrote.

    Returns:
        Nothing, unless that package is installed.
    """
    try:
        library = importlib.import_module(LIBRARY)
    except ImportError:
        return ""
    name = {name.lower(): name for name in _names_in(library)}.get(str(optim_type).lower())
    return f"; or {LIBRARY}.{name}" if name else ""


def any_optimizer(
    optim_type: str, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, **kwargs: Any
) -> torch.optim.Optimizer:
    """Build an optimizer by its name; BasicSR 1.4.2's own `get_optimizer` knows only Adam.

    Args:
        optim_type: See `optimizer_class`.
        params: Parameters, or parameter groups.
        lr: Learning rate.
        **kwargs: The other options of that class.

    Returns:
        The optimizer.

    Raises:
        UserError: There is no such optimizer, or it does not take these options.
    """
    try:
        kind = optimizer_class(optim_type)
    except UserError as error:
        raise UserError(f"train: optim_g: type: {error}") from None
    try:
        return kind(params, lr=lr, **kwargs)
    except Exception as error:
        # As many kinds as there are optimizers.
        options = ", ".join(f"{key}={value}" for key, value in {"lr": lr, **kwargs}.items())
        raise UserError(f"train: optim_g: {optim_type} does not take {options}: {error}") from None
