"""Opening files that others may have made."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from esc_arch.errors import UserError, printable


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, but no pipe or device, which may never end.

    Raises:
        UserError: One line: it is none, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # Of a name with a zero byte.
        reason = getattr(error, "strerror", error)
        raise UserError(f"{printable(path)}: {reason}") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise UserError(f"{printable(path)}: is {kind}; a file is needed")
