"""Many pictures one after another, so that neither the network nor the disk waits."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from esc_arch.errors import UserError
from esc_arch.inference.work import (
    Job,
    Opened,
    Result,
    Settings,
    compute,
    compute_together,
    read,
    smaller_if_needed,
    write,
)

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler, Watch

Outcome = Result | BaseException


def run_jobs(
    jobs: Sequence[Job],
    upscalers: Sequence["Upscaler"],
    settings: Settings | None = None,
    watch: "Watch" = iter,
) -> Iterator[tuple[Job, Result | UserError]]:
    """Upscale pictures; while some are computed, the next are read and the last are written.

    Which pictures go through the network together depends on their order and sizes alone, not on
    what is ready first.

    Args:
        jobs: What to do.
        upscalers: What to do it with: the same network, once a device.
        settings: How.
        watch: Wraps the list of tiles, where there is one device.

    Yields:
        Each job once its result is written, in order, with that result or why there is none.
    """
    flow = _Flow(jobs, upscalers, settings or Settings(), watch)
    try:
        flow.start()
        for number, job in enumerate(jobs):
            outcome = flow.outcome(number)
            if not isinstance(outcome, (Result, UserError)):
                raise outcome
            yield job, outcome
    finally:
        flow.stop()


class _Flow:
    """The pictures on their way. All that threads share is guarded by `_changed`.

    A picture holds one of `_slots` from before it is read until its outcome is taken, which bounds
    the memory. Pictures wait for others of their size at most until 2 * batch later ones were
    read; since there are more slots than that, the oldest is always on its way.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        upscalers: Sequence["Upscaler"],
        settings: Settings,
        watch: "Watch",
    ) -> None:
        self._jobs, self._upscalers, self._settings = jobs, upscalers, settings
        self._alone = len(upscalers) == 1
        self._watch = watch if self._alone else iter
        at_once = settings.batch * len(upscalers)
        helpers = _helpers(upscalers)
        self._slots = threading.Semaphore(2 * settings.batch + 3 * at_once + 2 * helpers)
        self._changed = threading.Condition()
        self._ready: deque[list[tuple[int, Opened]]] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._ended = self._stopped = False
        self._readers = ThreadPoolExecutor(helpers, "reader")
        self._writers = ThreadPoolExecutor(helpers, "writer")
        self._threads = [threading.Thread(target=self._feed, name="feeder", daemon=True)]
        if not self._alone:
            self._threads += [
                threading.Thread(target=self._serve, args=(one,), name="device", daemon=True)
                for one in upscalers
            ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads, once what they are at is done."""
        with self._changed:
            self._stopped = self._ended = True
            self._ready.clear()
            self._changed.notify_all()
        self._slots.release()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._readers.shutdown(cancel_futures=True)
        self._writers.shutdown(cancel_futures=True)

    def outcome(self, number: int) -> Outcome:
        """Wait for a picture's result; a single device works in this thread meanwhile."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: number in self._outcomes or (self._alone and self._ready)
                )
                if number in self._outcomes:
                    self._slots.release()
                    return self._outcomes.pop(number)
                group = self._ready.popleft()
            self._compute(group, self._upscalers[0])

    def _set(self, number: int, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes[number] = outcome
            self._changed.notify_all()

    def _feed(self) -> None:
        """Read pictures, in order, and put those of one size together."""
        reading: deque[tuple[int, Future[Opened]]] = deque()
        sorter = _Sorter(self._settings.batch, self._upscalers)
        for number, job in enumerate(self._jobs):
            while not self._slots.acquire(blocking=False):
                if not reading:
                    self._slots.acquire()
                    break
                self._arrived(sorter, *reading.popleft())
            if self._stopped:
                return
            args = (job, self._upscalers[0], self._settings)
            reading.append((number, self._readers.submit(read, *args)))
        while reading and not self._stopped:
            self._arrived(sorter, *reading.popleft())
        with self._changed:
            self._ready += sorter.rest() if not self._stopped else []
            self._ended = True
            self._changed.notify_all()

    def _arrived(self, sorter: "_Sorter", number: int, future: "Future[Opened]") -> None:
        try:
            groups = sorter.add(number, future.result())
        except BaseException as error:  # Also of a cancelled future; raised where it is waited for.
            self._set(number, error)
            groups = sorter.due(number)
        with self._changed:
            self._ready += groups
            self._changed.notify_all()

    def _serve(self, upscaler: "Upscaler") -> None:
        """Compute what is ready, on one of several devices."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended)
                if not self._ready:
                    return
                group = self._ready.popleft()
            self._compute(group, upscaler)

    def _compute(self, group: list[tuple[int, Opened]], upscaler: "Upscaler") -> None:
        if len(group) > 1:
            try:
                results = compute_together([opened for _, opened in group], upscaler)
            except UserError:
                pass  # One of them, or too many at once: each for itself.
            except Exception as error:
                for number, _ in group:
                    self._set(number, error)
                return
            else:
                for (number, _), result in zip(group, results, strict=True):
                    self._writers.submit(self._write, number, result)
                return
        for number, opened in group:
            try:
                result = self._compute_one(opened, upscaler)
            except Exception as error:
                self._set(number, error)
                continue
            if isinstance(result.rows, list):
                self._writers.submit(self._write, number, result)
            else:
                self._set(number, result)

    def _compute_one(self, opened: Opened, upscaler: "Upscaler") -> Result:
        def attempt(tile: int | None) -> Result:
            result = compute(opened, upscaler, self._stoppable, tile)
            # Rows that are still to come are computed while they are written, which is done here.
            whole = isinstance(result.rows, list)
            return result if whole else write(result, self._settings.encoding)

        return smaller_if_needed(opened, upscaler, attempt)

    def _stoppable(self, tiles: Iterable) -> Iterator:
        for tile in self._watch(tiles):
            if self._stopped:
                raise UserError("stopped")
            yield tile

    def _write(self, number: int, result: Result) -> None:
        try:
            self._set(number, write(result, self._settings.encoding))
        except BaseException as error:
            self._set(number, error)


class _Sorter:
    """Puts pictures of one size and kind together, each waiting only so long."""

    def __init__(self, batch: int, upscalers: Sequence["Upscaler"]) -> None:
        self._batch, self._upscalers = batch, upscalers
        # Groups stand in the order of their oldest picture.
        self._waiting: dict[tuple, list[tuple[int, Opened]]] = {}

    def add(self, number: int, opened: Opened) -> list[list[tuple[int, Opened]]]:
        """Take the next picture; what is to be computed now."""
        if opened.picture is None or self._batch == 1:
            return [[(number, opened)], *self.due(number)]
        pixels = opened.picture.pixels
        key = (pixels.shape, pixels.dtype)
        group = self._waiting.setdefault(key, [])
        group.append((number, opened))
        height, width, _ = pixels.shape
        full = min(one.together(height, width, self._batch) for one in self._upscalers)
        groups = [self._waiting.pop(key)] if len(group) >= full else []
        return groups + self.due(number)

    def due(self, number: int) -> list[list[tuple[int, Opened]]]:
        """Groups that have waited long enough when this picture was read."""
        late = [
            key for key, group in self._waiting.items() if number - group[0][0] >= 2 * self._batch
        ]
        return [self._waiting.pop(key) for key in late]

    def rest(self) -> list[list[tuple[int, Opened]]]:
        """All that still wait."""
        groups = [*self._waiting.values()]
        self._waiting.clear()
        return groups


def _helpers(upscalers: Sequence["Upscaler"]) -> int:
    """Threads that read, and that write: a GPU outruns one; on the CPU the network needs all."""
    devices = {next(one.network.parameters()).device.type for one in upscalers}
    if devices == {"cpu"}:
        return 1
    return max(1, min(8, (os.cpu_count() or 2) // 2))
