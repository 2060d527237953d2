"""Whether the other processes of a training are still there.

A process that is killed, or whose machine is switched off, leaves the others waiting: NCCL for ten
minutes, gloo for thirty where the connection is not closed. A shorter limit for all that they do
together is no way out, since the others may well wait an hour while the first one validates. So
each process counts up a number of its own all the time, from a thread, and looks at the others'.
"""

import os
import re
import sys
import threading
import time
from datetime import timedelta

import torch
from basicsr.utils.dist_util import get_dist_info

LIMIT_SECONDS = 45


class ProcessWatch:
    """Ends this process, with a line on stderr, once another one has gone silent.

    The numbers are kept where the processes met at their start (`MASTER_ADDR`, `MASTER_PORT`).
    Start it when the process group stands; `leave` before a process ends in good order.

    Args:
        limit_seconds: How long another process may be silent.
    """

    def __init__(self, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._limit = limit_seconds
        self._rank, self._world_size = get_dist_info()
        # A connection of its own: one shared with the training is blocked while that waits.
        self._store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=limit_seconds),
        )
        self._lock = threading.Lock()
        self._left = False
        # torchrun may start the processes anew and keep the numbers.
        self._prefix = f"basicsr/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        threading.Thread(target=self._watch, name="process watch", daemon=True).start()

    def leave(self) -> None:
        """Tell the others that this process ends, and stop watching."""
        with self._lock:
            self._left = True
            try:
                self._store.add(f"{self._prefix}/left/{self._rank}", 1)
            except RuntimeError:
                # The process that keeps the numbers has ended before; so it watches no more.
                pass

    def _watch(self) -> None:
        others = set(range(self._world_size)) - {self._rank}
        counts = dict.fromkeys(others, -1)
        heard = dict.fromkeys(others, time.monotonic())
        while True:
            with self._lock:
                if self._left:
                    return
                try:
                    self._store.add(f"{self._prefix}/alive/{self._rank}", 1)
                    for other in others:
                        count = self._store.add(f"{self._prefix}/alive/{other}", 0)
                        left = self._store.add(f"{self._prefix}/left/{other}", 0)
                        if left or count != counts[other]:
                            counts[other], heard[other] = count, time.monotonic()
                except RuntimeError:
                    # Not reached: nobody has been heard of.
                    pass
            silent = [other for other in others if time.monotonic() - heard[other] > self._limit]
            if silent:
                names = ", ".join(map(str, sorted(silent)))
                print(
                    f"basicsr: error: {lost_process(f'nothing heard of rank {names} for a while')}",
                    file=sys.stderr,
                    flush=True,
                )
                # The main thread may be waiting where no exception reaches it.
                os._exit(1)
            time.sleep(self._limit / 15)


def lost_process(reason: str) -> str:
    """The message about a process that is no longer there.

    Args:
        reason: How this one knows.

    Returns:
        One line, without `basicsr: error:`.
    """
    rank, world_size = get_dist_info()
    # gloo begins with the place in its source.
    reason = re.sub(r"^\[\S*\] ", "", " ".join(reason.split()))
    return (
        f"another of the {world_size} processes is gone, rank {rank} ends too: {reason}; see the "
        "other's last lines or whether it was killed, then go on with --auto_resume"
    )


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that a connection to another process is broken.

    Args:
        error: From something that all processes do together.
    """
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo has no class of its own.
    return isinstance(error, RuntimeError) and "gloo" in str(error)
