"""Files that cannot be written: said in one line, and no reason to end a training."""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any

from basicsr.utils import get_root_logger

from esc_arch.errors import UserError

# What the user can mend where files are written.
CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
}


class ForgivingLogger:
    """A TensorBoard writer that falls silent, with a line, where it cannot write.

    Args:
        writer: A SummaryWriter, which raises at each call after its thread has failed.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            if self._failed:
                return
            try:
                getattr(self._writer, name)(*args, **kwargs)
            except OSError as error:
                self._failed = True
                get_root_logger().error(
                    f"TensorBoard: {error.strerror or error}. Nothing more is written for it until "
                    "the run is resumed; training goes on."
                )

        return call


def forgiving(imwrite: Callable[..., None]) -> Callable[..., None]:
    """An image of the validation that cannot be written does not end the training."""

    @functools.wraps(imwrite)
    def write(img: Any, file_path: str, *args: Any, **kwargs: Any) -> None:
        try:
            imwrite(img, file_path, *args, **kwargs)
        except OSError as error:
            get_root_logger().error(f"{file_path} not written: {error.strerror or error}")

    return write


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Say in one line that a folder cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(f"{error.filename or 'the current folder'}: {error.strerror}") from error
