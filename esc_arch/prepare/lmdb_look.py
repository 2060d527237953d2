"""Looking an LMDB through in a process of its own, which a damaged or crafted one may kill."""

import os
import signal

from esc_arch.children import run_python

# Of each value the first and the last byte: what lies between is in the file if they are. A tree
# whose branches lead to the same pages again and again has no end: an entry takes ten bytes. With
# room taken for a value and given back, since what is free is listed, too.
_LOOK = """
import os, sys, lmdb
path, change = sys.argv[1], sys.argv[2] == "change"
folder = os.path.isdir(path)
found = os.stat(os.path.join(path, "data.mdb") if folder else path)
size = min(found.st_size, getattr(found, "st_blocks", 0) * 512 or found.st_size)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (60 + (size >> 24),) * 2)
except (ImportError, ValueError):
    pass
environment = lmdb.open(path, readonly=not change, lock=False, subdir=folder)
with environment.begin(write=change, buffers=True) as view:
    for number, (key, value) in enumerate(view.cursor()):
        if number > size // 10:
            sys.exit(3)
        bytes(key), bytes(value[:1]), bytes(value[-1:])
    if change:
        view.put(b"a", bytes(100_000))
        view.abort()
"""


def fault_of_reading(path: str | os.PathLike, change: bool = False) -> str | None:
    """What becomes of a process that reads all of an LMDB, if it is nothing good.

    Args:
        path: Its folder, or its file.
        change: Whether it will be written to.

    Returns:
        None also where the LMDB library itself says what is wrong, as to whoever opens it.
    """
    status = run_python(_LOOK, [os.fspath(path), "change" if change else "read"]).returncode
    if status < 0:
        return f"reading it ends a process by {signal.Signals(-status).name}"
    return "reading it has no end" if status == 3 else None


def is_whole(path: str | os.PathLike) -> bool:
    """Whether all of an LMDB can be read."""
    return run_python(_LOOK, [os.fspath(path), "read"]).returncode == 0
