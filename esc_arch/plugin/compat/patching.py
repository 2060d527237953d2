"""How BasicSR is patched: wrappers around its functions, told by features, put in place once."""

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Has no handler of its own, so that Python prints each warning as one line on stderr.
log = logging.getLogger("esc_arch.plugin.compat")

_PATCHED = "_patched_by_esc_arch"


def patch(owner: Any, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a function of a module, or a method of a class, by a wrapper around it; once.

    BasicSR imports functions by name, so each of its modules that has the function gets the
    wrapper.

    Args:
        owner: The module or class.
        name: The function's name in it.
        wrap: Makes the wrapper from the function.
    """
    original = getattr(owner, name)
    if hasattr(original, _PATCHED):
        return
    wrapper = functools.wraps(original)(wrap(original))
    setattr(wrapper, _PATCHED, True)
    setattr(owner, name, wrapper)
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in ("basicsr", "__main__"):
            if vars(module).get(name) is original:
                setattr(module, name, wrapper)


def names_used(function: Callable) -> tuple[str, ...]:
    """Names of the attributes and globals that a function's own code uses."""
    return inspect.unwrap(function).__code__.co_names


@contextlib.contextmanager
def swapped(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within it, attributes of a module or class have other values."""
    originals = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(owner, name, value)


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
