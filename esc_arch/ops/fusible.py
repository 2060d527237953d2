"""Formulas for which a kernel may stand.

What networks compute is written here, in `ops`, in torch operations and layers. A kernel computes
the same in one go on one kind of device. `esc_arch.kernels.choose` decides which runs; neither a
network nor a formula asks.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Function = Callable[..., Tensor]
# Returns what computes an operation on these arguments, or None where its formula does.
Chooser = Callable[[str, tuple[Any, ...]], Callable[[], Tensor] | None]
Layer = TypeVar("Layer", bound=type[nn.Module])

_choose: Chooser | None = None
_stand_ins: Mapping[str, Function] = {}
_replaceable: set[type[nn.Module]] = {nn.Conv2d}


def set_chooser(chooser: Chooser) -> None:
    """Let `chooser` decide what runs, from now on."""
    global _choose
    _choose = chooser


@contextlib.contextmanager
def standing_in(functions: Mapping[str, Function]) -> Iterator[None]:
    """Let other formulas of the same results stand for operations: those an export can hold.

    Args:
        functions: By the operations' names; each takes all of an operation's arguments.
    """
    global _stand_ins
    before, _stand_ins = _stand_ins, {**_stand_ins, **functions}
    try:
        yield
    finally:
        _stand_ins = before


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
        if name in _stand_ins:
            return _stand_ins[name](*args)
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
