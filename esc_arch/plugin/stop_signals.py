"""Signals that ask a training to stop: noted, so that it can save first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# SLURM sends SIGUSR1 ahead of preemption where it is asked to; Windows has none.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequested(BaseException):  # noqa: N818
    """A signal asked the run to stop; no Exception, so that nothing on the way out catches it."""


class StopSignals:
    """What has been asked for while it catches signals; a second Ctrl-C ends the process.

    Attributes:
        name: Of the last signal that asked for a stop, or None.
    """

    name: str | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Within it signals are noted only."""
        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        # From here on the end of a loading process is no error to interrupt a step with.
        if hasattr(signal, "SIGCHLD"):
            # Python complains if its own handler gives way to the default one meanwhile.
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
