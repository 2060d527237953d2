"""Errors of anybody's code in a run: one line for the screen, the traceback for the log file."""

import logging
import os
import traceback

from basicsr.utils import get_root_logger

from esc_arch.errors import UserError
from esc_arch.plugin.preflight.wording import one_line


def in_one_line(error: Exception) -> Exception:
    """An error that the command ends with, without its traceback, which goes to the log file.

    Args:
        error: What was raised; what the command has words for comes back as it is.
    """
    if isinstance(error, UserError | ImportError | OSError):
        return error
    logger = get_root_logger()
    raised = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "An error:", (), raised)
    kept = []
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and os.path.exists(handler.baseFilename):
            handler.handle(record)
            kept.append(os.path.relpath(handler.baseFilename))
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{'/'.join(place.filename.split(os.sep)[-3:])}, line {place.lineno}"
    more = f"; the traceback is in {kept[0]}" if kept else ""
    return UserError(f"{type(error).__name__}: {one_line(error)} ({where}){more}")
