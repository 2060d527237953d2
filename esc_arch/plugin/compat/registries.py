"""BasicSR's registries where two packages bring a class of one name."""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

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
