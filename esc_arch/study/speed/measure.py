"""Latency by runs that take turns, peak memory by a process each."""

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Protocol

import torch

from esc_arch.errors import UserError

MB = 2**20

# One process compiles many networks and backends here. Past torch's limit of 8 variants of a
# function it would silently run uncompiled and measure something else.
COMPILED_VARIANTS = 256


@dataclass
class Prepared:
    """A job that is ready to run.

    Attributes:
        run: Does it once.
        facts: What to report about it, by column.
    """

    run: Callable[[], object]
    facts: dict[str, object] = field(default_factory=dict)


class Job(Protocol):
    """Something to measure; it travels to other processes, so it holds plain values only."""

    label: str
    device: str

    def prepare(self) -> Prepared:
        """Build it; called in the process that then runs it."""


@dataclass
class Measurement:
    """What came of one job; memory in MB (2^20 bytes).

    Attributes:
        seconds: Of each timed run.
        cpu_seconds: Of all threads of the process in each timed run. Where other programs share the
            machine these tell more than the seconds on the wall.
        process_mb: The most that the operating system gave to a process that ran the job once.
        imports_mb: The most that it had before the job was built.
        cuda_mb: The most that CUDA tensors of the job took, its weights included.
        facts: What the job reports about itself.
        error: Why it did not run to the end, else None.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    process_mb: float | None = None
    imports_mb: float | None = None
    cuda_mb: float | None = None
    facts: dict[str, object] = field(default_factory=dict)
    error: str | None = None


def measure(
    jobs: Sequence[Job],
    repeats: int,
    warmup: int,
    process_memory: bool = True,
    threads: int | None = None,
) -> list[Measurement]:
    """Measure jobs.

    Args:
        jobs: What to measure. Those that cannot run do not stop the others.
        repeats: Timed runs of each job, at least 1. They take turns (A B C A B C ...), so that
            whatever slows the machine for a while slows all of them.
        warmup: Runs of each job before the timed ones, beyond a first one that is always made.
        process_memory: Whether to run each job in a process of its own first, for its peak memory.
        threads: Threads of CPU operators; torch's own choice if None.

    Returns:
        One measurement a job, in order.
    """
    set_up_process(threads)
    _allow_many_compiled_variants()
    measurements = [Measurement() for _ in jobs]
    if process_memory:
        for job, measurement in zip(jobs, measurements, strict=True):
            _say(f"memory of {job.label}")
            try:
                figures = memory_in_own_process(job, threads)
                measurement.process_mb, measurement.imports_mb, measurement.cuda_mb = figures
            except Exception as error:
                measurement.error = reason(error)

    prepared: dict[int, Prepared] = {}
    for index, (job, measurement) in enumerate(zip(jobs, measurements, strict=True)):
        if measurement.error is not None:
            continue
        _say(f"preparing {job.label}")
        try:
            prepared[index], cuda_mb = prepare_and_run(job)
            for _ in range(warmup):
                prepared[index].run()
        except Exception as error:
            measurement.error = reason(error)
            prepared.pop(index, None)
            continue
        measurement.facts = prepared[index].facts
        measurement.cuda_mb = measurement.cuda_mb or cuda_mb

    _say(f"timing {repeats} runs each")
    for _ in range(repeats):
        for index in list(prepared):
            cpu_start = time.process_time()
            try:
                seconds = timed(prepared[index].run, jobs[index].device)
            except Exception as error:
                measurements[index] = Measurement(error=reason(error))
                del prepared[index]
                continue
            measurements[index].seconds.append(seconds)
            measurements[index].cpu_seconds.append(time.process_time() - cpu_start)
    return measurements


def set_up_process(threads: int | None) -> None:
    """Set what holds for all that is measured in this process; `threads` as for `measure`."""
    if threads is not None:
        torch.set_num_threads(threads)
    # As BasicSR does in training and testing.
    torch.backends.cudnn.benchmark = True


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds that `run` takes, from an idle device until all its work on it is done."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def prepare_and_run(job: Job) -> tuple[Prepared, float | None]:
    """Prepare a job and run it once.

    Args:
        job: The job.

    Returns:
        The prepared job, and on CUDA the MB that its tensors took at most.
    """
    if not job.device.startswith("cuda"):
        prepared = job.prepare()
        prepared.run()
        return prepared, None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(job.device)
    prepared = job.prepare()
    torch.cuda.reset_peak_memory_stats(job.device)
    prepared.run()
    _synchronize(job.device)
    return prepared, (torch.cuda.max_memory_allocated(job.device) - before) / MB


def memory_in_own_process(job: Job, threads: int | None) -> tuple[float, float, float | None]:
    """Peak memory of building a job and running it once, in a new process.

    Args:
        job: The job.
        threads: Threads of CPU operators; torch's own choice if None.

    Returns:
        MB of the process, of the process before the job was built, and of CUDA tensors.

    Raises:
        Exception: Whatever the job raised.
        RuntimeError: The process was killed.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_probe_memory, job, threads).result()
    except BrokenProcessPool:
        raise RuntimeError("its process was killed, most likely for want of memory") from None


def peak_process_memory() -> float:
    """The most memory in MB that this process has had from the operating system so far."""
    try:
        # On Linux ru_maxrss starts with what the process that started this one had; VmHWM does not.
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / MB
    except OSError:
        pass
    import resource  # Not on Windows.

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def reason(error: Exception) -> str:
    """One line that says why something did not run."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UserError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")[:200]


def _probe_memory(job: Job, threads: int | None) -> tuple[float, float, float | None]:
    set_up_process(threads)
    imports = peak_process_memory()
    _, cuda = prepare_and_run(job)
    return peak_process_memory(), imports, cuda


def _allow_many_compiled_variants() -> None:
    # Not where memory is measured: the import alone takes a hundred megabytes.
    import torch._dynamo

    name = "recompile_limit"
    if not hasattr(torch._dynamo.config, name):
        name = "cache_size_limit"  # Its name before torch 2.6.
    setattr(torch._dynamo.config, name, COMPILED_VARIANTS)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)
