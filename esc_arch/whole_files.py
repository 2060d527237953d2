"""Writing files that are there whole or not at all, and that nobody can lead elsewhere.

The files of this package go through here: beside their place under a name that cannot be guessed,
created exclusively, and renamed once they are complete. So a link planted in the folder is replaced
and never followed, a run killed at any moment leaves the older file or the new one, and what it was
writing is removed by the next run that writes into the folder.
"""

import hashlib
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.esc-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")
# Where this process has already removed what killed ones left.
_swept: set[Path] = set()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of another once it is complete.

    The name beside it is short, since the target's may be as long as can be, and cannot be
    guessed, so that nobody can plant a link there. The mode of an older file is kept.

    Args:
        path: Where the file goes; the folder must exist.

    Yields:
        The file, to be written and read; after an exception the older file is as it was.

    Raises:
        OSError: The disk is full, the folder is missing, ...; nothing is left behind.
    """
    path = Path(path)
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)
    name = f".esc-{_this_machine()}-{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    temporary = path.with_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if hasattr(os, "fchmod") and path.is_file():
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(
    path: str | os.PathLike, content: bytes | memoryview | Iterable[bytes]
) -> None:
    """Write a file so that it is either absent (or as before) or complete, even after a power cut.

    Args:
        path: Where to write; a missing folder is made.
        content: All of the file, or its parts in order.

    Raises:
        OSError: The disk is full or not writable, ...; nothing is left behind.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if isinstance(content, (bytes, memoryview)):
            file.write(content)
        else:
            file.writelines(content)


def open_resumable(path: str | os.PathLike) -> BinaryIO:
    """Open a file that a later run goes on with, at its end; it is made where it is missing.

    Its name has to be one that the next run finds, and so others can guess it too: no link there is
    followed, neither a symbolic one nor a second name of another file.

    Args:
        path: The file; the folder must exist.

    Raises:
        OSError: It cannot be opened, or is a link or no regular file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    # Windows has neither flag, and asks for a right of its own to make a link.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.path.islink(path):
        raise OSError(None, "is a link, which is not written through; remove it")
    descriptor = os.open(path, flags, 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or is_of_others(path):
        os.close(descriptor)
        raise OSError(None, "is not a file of its own, and is not written to; remove it")
    return os.fdopen(descriptor, "a+b")


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 16):
        digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    with open(path, "rb") as file:
        return sha256_of(file)


def remove_link(path: str | os.PathLike) -> None:
    """Remove a link, or a second name of a file, where others are about to write through it.

    Args:
        path: Where they write; need not exist.
    """
    with suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
            os.unlink(path)


def is_of_others(path: str | os.PathLike) -> bool:
    """Whether somebody else put a file into a folder that all may write to, as /tmp is."""
    if not hasattr(os, "geteuid"):
        return False
    folder, found = os.stat(os.path.dirname(path) or "."), os.lstat(path)
    open_to_all = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    return bool(open_to_all) and found.st_uid not in (os.geteuid(), folder.st_uid)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed runs were writing when they were killed, in a folder that is ours alone.

    Args:
        folder: Where they wrote; need not exist.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (found[1] == _this_machine() and not _is_running(int(found[2]))):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """As `remove_temporary_files`, for a folder of the user's: only what has our kind of name."""
    for path in folder.glob(f".esc-*{TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found[1] == _this_machine() and not _is_running(int(found[2])):
            path.unlink(missing_ok=True)


def _this_machine() -> str:
    import platform

    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return True
    if os.name != "posix":
        return True  # Where asking might end it.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; Windows cannot open folders, and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
