"""Formulas for which a kernel may stand.

What networks compute is written here, in `ops`, in torch operations and layers. A kernel computes
the same in one go on one kind of device. `esc_arch.kernels.choose` decides which runs; neither a
network nor a formula asks.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Function = Callable[..., Tensor]
# Returns what computes an operation on these arguments, or None where its formula does.
Chooser = Callable[[str, tuple[Any, ...]], Callable[[], Tensor] | None]
Layer = TypeVar("Layer", bound=type[nn.Module])

_choose: Chooser | None = None
_replaceable: set[type[nn.Module]] = {nn.Conv2d}


def set_chooser(chooser: Chooser) -> None:
    """Let `chooser` decide what runs, from now on."""
    global _choose
    _choose = chooser


def fusible(formula: Function) -> Function:
    """Let a kernel stand for a function, where one can.

    Args:
        formula: Maps a tensor, other tensors and layers to a tensor, all positional.
    """
    name = formula.__name__
    defaults = formula.__defaults__ or ()
    count = formula.__code__.co_argcount

    @functools.wraps(formula)
    def operation(*args: Any) -> Tensor:
        missing = count - len(args)
        if missing > 0:
            args += defaults[len(defaults) - missing :]
        kernel = None if _choose is None else _choose(name, args)
        return formula(*args) if kernel is None else kernel()

    return operation


def replaceable(layer: Layer) -> Layer:
    """Let kernels stand for layers of a class: those that are neither wrapped nor listened to."""
    _replaceable.add(layer)
    return layer


def is_replaceable(layer: nn.Module) -> bool:
    """Tell whether a layer is of a class that kernels know, not of one derived from it."""
    return type(layer) in _replaceable
