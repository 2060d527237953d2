"""CUDA graphs: a network's work on inputs of one size, recorded once and replayed.

Small images take a GPU less time than it takes Python to tell it what to do; a replay is told at
once.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.ops.autocast import autocast_dtype

# Sizes that are kept: each holds the memory that a call of its size needs.
KEPT = 4
# Sizes that are remembered, to know when one comes again.
REMEMBERED = 256
# Calls before one is recorded, in which kernels are compiled and chosen.
WARM_UP = 3

Run = Callable[[Tensor], Tensor]


class Recording(NamedTuple):
    """Work on one tensor.

    Attributes:
        given: What it works on; another input is copied here.
        result: What it works out.
        replay: Does it again.
    """

    given: Tensor
    result: Tensor
    replay: Callable[[], object]


def record_cuda_graph(run: Run, x: Tensor) -> Recording:
    """Record a function in a CUDA graph.

    Args:
        run: Gives a tensor on the same GPU, and does not wait for the GPU.
        x: Input of the size that is recorded.
    """
    given = x.clone()
    current, side = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(given)
    current.wait_stream(side)
    # A graph must not read weights that autocast cast before it, which end with the call.
    torch.clear_autocast_cache()
    graph = torch.cuda.CUDAGraph()
    # On a stream of this GPU: torch's own is of the one that recorded first. Other threads, which
    # may work on other GPUs, do as they like.
    recorded = torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local")
    with torch.cuda.device(x.device), recorded:
        result = run(given)
    torch.clear_autocast_cache()
    return Recording(given, result, graph.replay)


class Replays:
    """Calls a function, and replays it from the third call of a size and dtype on.

    The first call of a size is an ordinary one, the second records it. What cannot be recorded is
    called as it is, which is said once.

    Args:
        run: What is called; its weights stay where they are in memory.
        record: Records it.
        kept: How many sizes are kept, those used last.
    """

    def __init__(
        self,
        run: Run,
        record: Callable[[Run, Tensor], Recording] = record_cuda_graph,
        kept: int = KEPT,
    ) -> None:
        self._run = run
        self._record = record
        self._kept = kept
        self._seen: OrderedDict[tuple, None] = OrderedDict()
        self._recordings: OrderedDict[tuple, Recording] = OrderedDict()
        self._fails = False

    def __call__(self, x: Tensor) -> Tensor:
        """Call or replay; the result is the caller's own."""
        key = self._key_of(x)
        recording = self._recordings.get(key)
        if recording is None and key in self._seen and not self._fails:
            recording = self._try_to_record(key, x)
        if recording is None:
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            return self._run_with_all_memory(x)
        self._recordings.move_to_end(key)
        recording.given.copy_(x)
        recording.replay()
        return recording.result.clone()

    def _run_with_all_memory(self, x: Tensor) -> Tensor:
        try:
            return self._run(x)
        except torch.cuda.OutOfMemoryError:
            if not self._recordings:
                raise
        self._recordings.clear()  # They hold what is missing.
        return self._run(x)

    def _key_of(self, x: Tensor) -> tuple:
        """What a recording holds for."""
        # torch's kernels differ by layout, too, and replays write into what was recorded, which
        # nothing outside of inference mode may if that was in it.
        how = autocast_dtype(x.device.type), torch.is_inference_mode_enabled()
        if isinstance(self._run, nn.Module):
            # Of weights that were cast and cast back, or replaced, a recording reads the old ones.
            weight = next(self._run.parameters(), x)
            how = *how, self._run.training, weight.data_ptr() if weight is not x else None
        return (*x.shape, x.stride(), x.dtype, x.device, *how)

    def _try_to_record(self, key: tuple, x: Tensor) -> Recording | None:
        # Before the new one, so that both need not be in memory.
        while len(self._recordings) >= self._kept:
            self._recordings.popitem(last=False)
        try:
            recording = self._record(self._run, x)
        except torch.cuda.OutOfMemoryError:
            return None  # An ordinary call of this size found enough.
        except Exception as error:  # What a network does decides what fails.
            self._fails = True
            lines = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"no CUDA graphs here: {lines[0]}; it runs without", stacklevel=3)
            return None
        self._recordings[key] = recording
        return recording


def require_cuda(option: str, device: torch.device) -> None:
    """Refuse CUDA graphs elsewhere.

    Args:
        option: What the user asked for them by.
        device: Where the network is.

    Raises:
        UserError: It is no CUDA device.
    """
    if device.type != "cuda":
        raise UserError(f"{option}: CUDA graphs need a CUDA GPU; the device is {device}")
