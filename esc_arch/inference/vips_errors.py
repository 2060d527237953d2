"""What libvips says of a file, where other threads read other files meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from esc_arch.errors import UserError, printable
from esc_arch.inference.png_chunks import png_fault, read_chunks
from esc_arch.inference.regular_files import open_regular

Found = TypeVar("Found")


def run(vips: Any, work: Callable[[], Found], again: Callable[[], Found] | None = None) -> Found:
    """Let libvips work; where it fails, again while no other thread is in `run`.

    It has one buffer of errors for all threads: the first time, an error may tell of another's
    file, or nothing.

    Args:
        vips: The library.
        work: What to do; it does not call `run`.
        again: What to do the second time, where that is something else.

    Raises:
        vips.Error: It fails; what is said concerns `work`.
    """
    try:
        with _turns.together():
            return work()
    except vips.Error:
        pass
    with _turns.alone():
        vips.Error("")  # It takes out what others left.
        return (again or work)()


class _Turns:
    """Many threads together, or one alone, which waits for none that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._inside)
                yield
            finally:
                self._waiting -= 1
                self._changed.notify_all()


_turns = _Turns()


def damaged(path: Path, error: Exception) -> Exception:
    """What to raise for what a library says of a file: its want of memory, or one line."""
    reason = first_line(error)
    if tells_of_memory(reason):
        return MemoryError(reason)
    if reason == type(error).__name__:  # Of the header of a PNG, libvips says nothing.
        with open_regular(path) as file:
            reason = png_fault(read_chunks(file)) or "its header cannot be read"
    return UserError(f"{printable(path)}: damaged, or not a picture: {reason}")


def tells_of_memory(reason: str) -> bool:
    """Whether an error of libvips is for want of memory."""
    return any(word in reason for word in ("out of memory", "allocate memory", "creating thread"))


def first_line(error: Exception) -> str:
    """What libvips says, of which the first line is the reason; of others the class if nothing."""
    lines = [line.strip() for line in str(getattr(error, "detail", error)).splitlines()]
    return printable(next((line for line in lines if line), type(error).__name__))
