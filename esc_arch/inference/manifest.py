"""A record beside results of what made them, so that a second run goes on where one ended."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esc_arch.errors import UserError, printable
from esc_arch.inference.work import Job
from esc_arch.whole_files import open_resumable, write_atomically

NAME = ".basicsr-upscaled"


class Manifest:
    """What was made in a folder, by which weights and options, and from what.

    One JSON object a line, appended once a result is in its place. A line that a kill cut off is
    passed over; its picture is then judged as one that nothing is known of.

    Args:
        folder: Where the results are.
        model: The sha256 of the file that the weights are from.
        options: All else that results depend on.
        part: Told apart from other parts of the work, which are written at the same time.
    """

    def __init__(
        self, folder: Path, model: str, options: Mapping[str, Any], part: tuple[int, int] = (1, 1)
    ) -> None:
        self._folder = folder
        ending = "" if part == (1, 1) else f"-{part[0]}-of-{part[1]}"
        self._file = folder / f"{NAME}{ending}.jsonl"
        self._made_by = {"model": model, "options": dict(options)}
        text = json.dumps(self._made_by, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._makers: dict[str, Any] = {}
        self._entries: dict[str, dict] = {}
        for file in sorted(folder.glob(f"{NAME}*.jsonl")):
            self._read(file)
        self._begun_with: dict[Path, list[Any] | None] = {}
        self._begun = False

    def _read(self, file: Path) -> None:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(
                f"{printable(file)}: cannot be read: {error.strerror}; without it everything is "
                "judged by sizes and dates"
            ) from None
        for line in lines:
            try:
                entry = json.loads(line)
                if "made_by" in entry:
                    self._makers[str(entry["key"])] = entry["made_by"]
                elif {"result", "bytes", "source", "key"} <= entry.keys():
                    self._entries[entry["result"]] = {**entry, "key": str(entry["key"])}
            except (ValueError, TypeError, AttributeError, KeyError):
                continue  # A line that was cut off, or something else's.

    def verdict(self, job: Job) -> str | bool | None:
        """Whether a result that is there is the one that this run would make.

        Returns:
            True if it is; None if nothing is known of it; else why it is not.
        """
        entry = self._entries.get(self._name(job))
        if entry is None or job.target.stat().st_size != entry["bytes"]:
            return None
        if entry["key"] != self._key:
            return self._difference(self._makers.get(entry["key"]))
        same = entry["source"] == _identity(job.source)
        return True if same else "the source is another than it was"

    def begin(self, job: Job) -> None:
        """Take down which source it is, before it is read: it may change while it is upscaled."""
        self._begun_with[job.target] = _identity(job.source)

    def _difference(self, maker: Any) -> str:
        try:
            if maker["model"] != self._made_by["model"]:
                return "what is there was made by other weights"
            for name, value in self._made_by["options"].items():
                if maker["options"].get(name) != value:
                    return f"what is there was made with another {name}"
        except (TypeError, KeyError, AttributeError):
            pass
        return "what is there was made with other options"

    def done(self, job: Job) -> None:
        """Write down that a result is in its place.

        Raises:
            UserError: It cannot be written.
        """
        try:
            entry = {
                "result": self._name(job),
                "bytes": job.target.stat().st_size,
                "source": self._begun_with.pop(job.target, None),
                "key": self._key,
            }
            lines = [entry]
            if not self._begun:
                lines = [{"key": self._key, "made_by": self._made_by}, entry]
                if not self._file.exists():
                    write_atomically(self._file, b"")
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            # The first of a run also ends what a kill may have cut off.
            with open_resumable(self._file) as file:
                file.write((text if self._begun else f"\n{text}").encode())
        except OSError as error:
            raise UserError(
                f"{printable(self._file)}: cannot be written: {error.strerror or error}"
            ) from None
        self._begun = True
        self._entries[entry["result"]] = entry

    def _name(self, job: Job) -> str:
        return Path(os.path.relpath(job.target, self._folder)).as_posix()


def _identity(source: Path) -> list[Any] | None:
    try:
        status = os.stat(source)
    except OSError:
        return None  # Who reads it will tell.
    return [source.name, status.st_size, status.st_mtime_ns]
