"""What loading processes log, in the log file of their run however they were started."""

import contextlib
import logging
from collections.abc import Callable

from basicsr.utils import get_root_logger


class LogOfRun:
    """In place of a loader's `worker_init_fn`: has a loading process log as its run does.

    One that is forked has the run's logger; one that is spawned or comes from a fork server, as on
    Python 3.14, has BasicSR's as it is without a log file. Warnings are told by all ranks: which
    of them reads a bad sample is chance.

    Args:
        then: The loader's own `worker_init_fn`.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then
        self.level, self.files = get_root_logger().level, sorted(_files(get_root_logger()))

    def __call__(self, worker_id: int) -> None:
        """Begin a loading process; `worker_id` is its number."""
        logger = get_root_logger()
        logger.setLevel(min(self.level, logging.WARNING))
        # As in the run itself: a full disk would print a traceback a line.
        logging.raiseExceptions = False
        for path in set(self.files) - _files(logger):
            with contextlib.suppress(OSError):
                handler = logging.FileHandler(path, "a", encoding="utf-8")
                handler.setFormatter(logger.handlers[0].formatter)
                logger.addHandler(handler)
        if self.then is not None:
            self.then(worker_id)


def _files(logger: logging.Logger) -> set[str]:
    return {each.baseFilename for each in logger.handlers if isinstance(each, logging.FileHandler)}
