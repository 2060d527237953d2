"""Imports that BasicSR makes and newer libraries, or machines without graphics, do not fulfil."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

# Modules that BasicSR 1.4.2 imports and newer libraries lack -> what has the same functions.
MOVED_MODULES = {
    "torchvision.transforms.functional_tensor": "torchvision.transforms.functional",
    "scipy.ndimage.filters": "scipy.ndimage",
}
OPENCV_ADVICE = (
    "where the system has no graphics libraries, "
    "'pip install --force-reinstall --no-deps opencv-python-headless' gives one that can"
)


def watch_imports() -> None:
    """Find moved modules, and say what helps where OpenCV cannot be loaded."""
    # Asked last: a module that is still where it was is taken from there.
    sys.meta_path.append(_MovedModules())
    sys.meta_path.insert(0, _Wrapped(("cv2",), _explained))


def load_elsewhere(*names: str) -> None:
    """Import modules away from the current folder, for what they take from there as they load.

    Args:
        names: Top-level modules.
    """
    sys.meta_path.insert(0, _Wrapped(names, _elsewhere))


def when_looked_for(name: str, prepare: Callable[[], None]) -> None:
    """Call a function when a top-level module is first looked for; at once if it is there.

    Args:
        name: The module.
        prepare: May change how modules are found: the module is found afterwards.
    """
    if name in sys.modules:
        prepare()
    else:
        sys.meta_path.insert(0, _LookedFor(name, prepare))


class _LookedFor:
    """Finds nothing itself; it is there once."""

    def __init__(self, name: str, prepare: Callable[[], None]) -> None:
        self._name, self._prepare = name, prepare

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        self._prepare()
        # The loop that called this one has passed by finders that were added in front.
        return importlib.util.find_spec(name)


class _MovedModules:
    """Finds modules under names that they no longer have."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MOVED_MODULES:
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        moved = importlib.import_module(MOVED_MODULES[spec.name])
        module.__dict__.update({k: v for k, v in vars(moved).items() if not k.startswith("__")})
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Wrapped:
    """Lets modules be found as always, and be loaded within a context.

    Args:
        names: The modules.
        around: Makes the context.
    """

    def __init__(
        self, names: Sequence[str], around: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._names, self._around = names, around

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None:
                spec.loader = spec.loader and _WrappedLoader(spec.loader, self._around)
                return spec
        return None


class _WrappedLoader:
    """A module's own loader, within a context."""

    def __init__(self, loader: Any, around: Callable[[], AbstractContextManager[None]]) -> None:
        self._loader, self._around = loader, around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        with self._around():
            return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with self._around():
            self._loader.exec_module(module)


@contextmanager
def _explained() -> Iterator[None]:
    """What helps where OpenCV cannot be loaded.

    BasicSR requires opencv-python, which does not load without the system's libGL and glib.
    """
    try:
        yield
    except ImportError as error:
        # OpenCV's folder loads the library within itself: once said is enough.
        if OPENCV_ADVICE in str(error):
            raise
        raise ImportError(f"OpenCV cannot be loaded ({error}); {OPENCV_ADVICE}") from error


@contextmanager
def _elsewhere() -> Iterator[None]:
    from esc_arch.children import away_from_the_current_folder

    with away_from_the_current_folder():
        yield
