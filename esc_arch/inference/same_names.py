"""Names that a file system takes for one: other letter case, another Unicode normal form."""

import tempfile
import unicodedata
from collections.abc import Iterable
from os.path import exists
from pathlib import Path


class Names:
    """Paths that are taken, and whether another is one of them.

    Whether `a.png` and `A.png` are one file depends on the folder, not on the system, so it is
    tried there.

    Args:
        paths: The first ones, resolved as all later ones are.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._alike: dict[str, list[Path]] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Take one more."""
        alike = self._alike.setdefault(_folded(path), [])
        if path not in alike:
            alike.append(path)

    def alike(self, path: Path) -> list[Path]:
        """Those that some file system takes for it, itself among them."""
        return self._alike.get(_folded(path), [])

    def find(self, path: Path) -> Path | None:
        """The one that is the same file here."""
        alike = self.alike(path)
        if path in alike:
            return path
        return next((other for other in alike if _are_one(path, other)), None)


def resolved(path: Path) -> Path:
    """Where a path leads, through all links; itself where these lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _folded(path: Path) -> str:
    """The same text for all spellings that any file system might take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).casefold())


def _are_one(first: Path, second: Path) -> bool:
    """Whether two spellings are one file, found out in the nearest folder that exists."""
    folder = first.parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".esc-", dir=folder) as name:
            for one, other in zip(first.parts, second.parts, strict=True):
                if one != other:
                    Path(name, one).touch()
                    if not exists(Path(name, other)):
                        return False
            return True
    except (OSError, ValueError):  # Nothing can be written there, or they have other folders.
        return False
