"""One function over many jobs: processes, bounded memory, and a progress bar."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for_process
from typing import TypeVar

import cv2
from tqdm import tqdm

from esc_arch.children import away_from_the_current_folder
from esc_arch.errors import UserError

# Each worker has one core; threads of its own would only get into the others' way.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Job = TypeVar("Job")
Result = TypeVar("Result")


def default_workers() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    total: int,
    title: str,
    workers: int | None = None,
) -> Iterator[tuple[Job, Result | UserError]]:
    """Run a function over jobs and yield the results as they come, in no fixed order.

    Only a few jobs per worker are under way at a time, so memory does not grow with their number.
    The progress bar on stderr shows images per second and the time that remains.

    Args:
        function: A function of one job, defined at module level.
        jobs: The jobs; what they hold and what the function returns is pickled.
        total: The number of jobs, for the progress bar.
        title: What stands before the progress bar.
        workers: Processes; default the cores. With 1 everything runs in this process;
            with more, a script that calls this needs the usual `if __name__ == "__main__"`.

    Yields:
        Each job with its result, or with the `UserError` that the function raised.

    Raises:
        UserError: `workers` is below 1, or a worker process died.
    """
    if workers is None:
        workers = default_workers()
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1 is needed")
    if total == 0:
        return
    workers = min(workers, total)
    outcomes = _serial(function, jobs) if workers == 1 else _parallel(function, jobs, workers)
    with tqdm(total=total, desc=title, unit="image", mininterval=0.5) as bar:
        for job, outcome in outcomes:
            yield job, outcome
            bar.update()


def _serial(function, jobs):
    for job in jobs:
        try:
            yield job, function(job)
        except UserError as error:
            yield job, error


def _parallel(function, jobs, workers):
    # A plain fork would copy locks that threads of OpenCV, or of the caller's torch, may hold, and
    # hang on them.
    # The fork server imports the libraries once, has no threads, and its forks share its memory.
    method = "forkserver" if sys.platform != "win32" else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    jobs = iter(jobs)
    if method == "forkserver":
        with away_from_the_current_folder():
            forkserver.ensure_running()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    # Read by the fork server or the new processes; in this one the libraries are already loaded.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        under_way: dict[Future, object] = {}
        while True:
            for job in islice(jobs, 2 * workers - len(under_way)):
                under_way[pool.submit(function, job)] = job
            if not under_way:
                break
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                job = under_way.pop(future)
                try:
                    yield job, future.result()
                except UserError as error:
                    yield job, error
    except BrokenProcessPool:
        raise UserError(
            f"--workers {workers}: a worker process was killed, perhaps for lack of memory; "
            "run the same command again with fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    # Ctrl-C reaches all processes of a terminal; only the parent is to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker of a killed parent would wait for jobs for ever.
    wait_for_process([multiprocessing.parent_process().sentinel])
    os._exit(1)
