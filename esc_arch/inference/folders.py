"""Many pictures one after another, so that neither the network nor the disk waits."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from esc_arch.errors import UserError
from esc_arch.inference.encoding import Encoding
from esc_arch.inference.work import DEFAULT_LARGEST, Job, Result, compute, read, write

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler, Watch

# Pictures that are read ahead, and results that wait to be written.
_AHEAD = 2


def run_jobs(
    jobs: Sequence[Job],
    upscaler: "Upscaler",
    encoding: Encoding,
    page: int | None = None,
    largest: int = DEFAULT_LARGEST,
    watch: "Watch" = iter,
) -> Iterator[tuple[Job, Result | UserError]]:
    """Upscale pictures; while one is computed, the next is read and the last is written.

    Args:
        jobs: What to do.
        upscaler: What to do it with.
        encoding: As for `run_job`.
        page: As for `run_job`.
        largest: As for `run_job`.
        watch: As for `run_job`.

    Yields:
        Each job once its result is written, in order, with that result or why there is none.
    """
    waiting = deque(jobs)
    opened: deque[Future] = deque()
    written: deque[tuple[Job, Future]] = deque()
    # One thread each: results are then as without threads, and memory stays bounded.
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
        started = deque()
        while waiting or opened:
            while waiting and len(opened) < _AHEAD:
                job = waiting.popleft()
                started.append(job)
                opened.append(reader.submit(read, job, upscaler, page, largest))
            job, future = started.popleft(), opened.popleft()
            try:
                source, picture = future.result()
                result = compute(job, source, picture, upscaler, encoding, watch)
            except UserError as error:
                written.append((job, _failed(error)))
            else:
                if picture is None:
                    # Its rows are computed while they are written, which is done here.
                    yield from _finish(written, 0)
                    written.append((job, _now(result, encoding)))
                else:
                    written.append((job, writer.submit(_write, result, encoding)))
            yield from _finish(written, _AHEAD)
        yield from _finish(written, 0)


def _write(result: Result, encoding: Encoding) -> Result:
    write(result, encoding)
    return result


def _now(result: Result, encoding: Encoding) -> Future:
    try:
        write(result, encoding)
    except UserError as error:
        return _failed(error)
    future: Future = Future()
    future.set_result(result)
    return future


def _failed(error: UserError) -> Future:
    future: Future = Future()
    future.set_exception(error)
    return future


def _finish(
    written: deque[tuple[Job, Future]], left: int
) -> Iterator[tuple[Job, Result | UserError]]:
    """Wait until no more than `left` are still being written."""
    while len(written) > left:
        job, future = written.popleft()
        try:
            yield job, future.result()
        except UserError as error:
            yield job, error
