"""BasicSR's registries where two packages bring a class of one name."""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from esc_arch.errors import nearest_first
from esc_arch.plugin.compat.patching import log, patch


def names_taken_by_others(registry: ModuleType) -> None:
    """A second class of a name ends the import with an AssertionError that names neither.

    A fork of BasicSR, or the authors' own repository, may register `ESC` itself, after this
    package has: theirs then takes the place of ours.
    """

    def wrap(do_register: Callable) -> Callable:
        def wrapper(self: Any, name: str, obj: Any, suffix: str | None = None) -> None:
            ours = self._obj_map.get(name)
            if suffix is None and ours is not obj and _is_ours(ours) and not _is_ours(obj):
                tell_whose_it_is(name, obj)
                del self._obj_map[name]
            # Forks before 1.4 have no suffix.
            do_register(self, name, obj, *(() if suffix is None else (suffix,)))

        return wrapper

    patch(registry.Registry, "_do_register", wrap)


def names_that_there_are(registry: ModuleType) -> None:
    """The error about a name that is not registered tells none of those that are."""

    def wrap(get: Callable) -> Callable:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return get(self, *args, **kwargs)
            except KeyError as error:
                name = args[0] if args else kwargs.get("name")
                names = (known.removesuffix("_basicsr") for known in self.keys())
                told = f"{error.args[0]} In it {nearest_first(name, names)}"
                raise KeyError(told) from None

        return wrapper

    patch(registry.Registry, "get", wrap)


def tell_whose_it_is(name: str, other: Any) -> None:
    """Say in one line that a name stands for somebody else's class.

    Args:
        name: The name.
        other: What it stands for.
    """
    file = getattr(sys.modules.get(other.__module__), "__file__", None)
    log.warning(
        "esc_arch: '%s' is registered by %s (%s): that one is used, not esc_arch's",
        name,
        other.__module__,
        os.path.abspath(file) if file else "no file",
    )


def _is_ours(obj: Any) -> bool:
    return getattr(obj, "__module__", "").startswith("esc_arch.")
