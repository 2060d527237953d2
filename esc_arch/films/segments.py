"""Encoded parts of a film that is being upscaled, so that a run that was ended goes on."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esc_arch.whole_files import is_of_others, write_atomically

FRAMES = 120


class Segments:
    """A folder beside the result with what is done of it: a file for every `FRAMES` frames.

    Args:
        target: The result.
        made_by: All that it depends on. Parts of something else are removed.
    """

    def __init__(self, target: Path, made_by: Mapping[str, Any]) -> None:
        self.folder = target.with_name(f".{target.name[:200]}.parts")
        text = json.dumps({**made_by, "frames": FRAMES}, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        journal = self.folder / "made_by"
        # Others can guess its name.
        if self.folder.is_symlink():
            self.folder.unlink()
        elif self.folder.exists() and is_of_others(self.folder):
            raise OSError(None, "is somebody else's; remove it", str(self.folder))
        try:
            same = journal.is_file() and journal.read_text() == key
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob(".esc-*.tmp"):
            unfinished.unlink()
        if not same:
            write_atomically(journal, key.encode())

    def file(self, number: int) -> Path:
        """Where a part is, or will be once it is complete."""
        return self.folder / f"{number:06}.nut"

    def done(self) -> int:
        """How many there are, from the first on."""
        number = 0
        while self.file(number).is_file():
            number += 1
        return number

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
