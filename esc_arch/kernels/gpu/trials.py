"""Tries Triton's kernels before they are relied on, and says which fail.

A kernel is compiled anew for each dtype and each shape of weights, and each of these can fail by
itself: a compiler's fault, more shared memory than the GPU has. So each is tried once, on a small
input, and compared with its formula; its gradients before they are wanted first.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.kernels.gpu.launches import ON_AMD, triton_version

# Errors relative to the largest value, which no rounding explains.
TOLERANCE = 0.05


class Trial(NamedTuple):
    """How a kernel is tried.

    Attributes:
        kernel: What is tried.
        formula: What it must compute.
        instead: What runs where it fails.
    """

    kernel: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    instead: str = "torch's own operations run"


TRIALS: dict[str, Trial] = {}
# Which kernels were said to fail, and how: that is said once, whatever they fail at.
_said: set[tuple[str, str]] = set()


def works(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool,
    *shapes: Sequence[int],
    **options: int,
) -> bool:
    """Tell whether a kernel works.

    Args:
        name: A key of `TRIALS`.
        device: Where it is to run.
        dtype: What it is to compute in.
        gradients: Whether its gradients are wanted.
        *shapes: Of what it is given in the trial.
        **options: What it takes besides tensors.
    """
    numbers = tuple(tuple(int(size) for size in shape) for shape in shapes)
    return _known_to_work(name, device, dtype, gradients, numbers, tuple(options.items()))


def _known_to_work(name: str, *how: object) -> bool:
    return _works(name, *how)


# Graphs of torch.compile hold the answer: it is asked as they are made.
_known_to_work._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _works(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool,
    shapes: tuple[tuple[int, ...], ...],
    options: tuple[tuple[str, int], ...],
) -> bool:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A trial waits for the GPU, which would end the recording, and then seem to fail.
        raise UserError("a network must be called once before a CUDA graph of it is recorded")
    # In a thread of its own, what the caller set for this one does not reach it: autocast, hooks
    # of gradient checkpointing, which count what is saved, modes that count or change operations.
    with ThreadPoolExecutor(1) as thread:
        fault = thread.submit(_fault, name, device, dtype, gradients, shapes, options).result()
    if fault is not None and (name, fault) not in _said:
        _said.add((name, fault))
        what = f"{name} in {str(dtype).removeprefix('torch.')}"
        what += " with its gradients" if gradients else ""
        what = f"the Triton kernel of {what} cannot run here ({fault})"
        warnings.warn(f"{what}; {TRIALS[name].instead} instead", stacklevel=2)
    return fault is None


def _ends_the_process(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether Triton would, which cannot be caught: up to 3.2 for Hopper's matrix units."""
    if device.type != "cuda" or ON_AMD or triton_version() >= (3, 3) or dtype == torch.float32:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _fault(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool,
    shapes: Sequence[Sequence[int]],
    options: Sequence[tuple[str, int]],
) -> str | None:
    if _ends_the_process(device, dtype):
        return "this GPU needs Triton 3.3 or later"
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float32)
    inputs = [draw(shape).to(device, dtype) for shape in shapes]
    trial = TRIALS[name]
    try:
        with torch.set_grad_enabled(gradients):
            results = _run(functools.partial(trial.kernel, **dict(options)), inputs)
            formula = functools.partial(trial.formula, **dict(options))
            wanted = _run(formula, [x.float() for x in inputs])
        for result, right in zip(results, wanted, strict=True):
            error = (result.float() - right).abs().max()
            if not error <= TOLERANCE * right.abs().max():
                return "its result is wrong"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers and drivers fail in too many ways to name.
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _run(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A result and, where gradients are recorded, those of all inputs."""
    leaves = [x.detach().requires_grad_(torch.is_grad_enabled()) for x in inputs]
    result = function(*leaves)
    if not result.requires_grad:
        return [result]
    return [result.detach(), *torch.autograd.grad(result, leaves, torch.ones_like(result))]
