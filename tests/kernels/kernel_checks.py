"""What the tests of the CPU kernels share."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esc_arch.kernels.cpu import library as cpu_kernels

needs_kernels = pytest.mark.skipif(
    not cpu_kernels.is_built(), reason="installed without a C++ compiler"
)


@functools.cache
def tells_exports() -> bool:
    """Whether graphs of torch.compile are told from exports; where not, both see formulas.

    PyTorch 2.7 and 2.8 call both exports, those before have no name for it.
    """
    if not hasattr(torch.compiler, "is_exporting"):
        return False
    asked = torch.compile(lambda x: x + int(torch.compiler.is_exporting()), backend="eager")
    return asked(torch.zeros(())).item() == 0


def force(monkeypatch: pytest.MonkeyPatch, width: int, threads: int) -> None:
    """Take vectors of `width` floats and `threads` threads, however little there is to do."""
    if width > cpu_kernels.vector_width():
        pytest.skip(f"this machine has no vectors of {width} floats")
    monkeypatch.setattr(cpu_kernels, "vector_width", lambda: width)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_kernels, "MULTIPLY_ADDS_PER_THREAD", 1)


def choose_bfloat16(monkeypatch: pytest.MonkeyPatch, amx: bool, threads: int) -> None:
    """Compute bfloat16 on the matrix units, or in float32 as where there are none."""
    if amx and not cpu_kernels.has_amx():
        pytest.skip("this machine has no AMX")
    force(monkeypatch, cpu_kernels.vector_width(), threads)
    monkeypatch.setattr(cpu_kernels, "has_amx", lambda: amx)


class _Watch(TorchDispatchMode):
    def __init__(self, called: list[str]) -> None:
        super().__init__()
        self.called = called

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "esc":
            self.called.append(func._schema.name.removeprefix("esc::"))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def kernels_called() -> Iterator[list[str]]:
    """Collect the names of our operators that are called."""
    called: list[str] = []
    with _Watch(called):
        yield called


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()


def assert_computes(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float = 3e-6,
) -> None:
    """Compare results and gradients with those of a reference in float64, from the same inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = reference(*wide)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    grad = grad.to(inputs[0].dtype)
    wanted = torch.autograd.grad(expected, wide, grad.double())
    out = function(*inputs)
    assert relative_error(out, expected) < tolerance
    for value, one in zip(torch.autograd.grad(out, inputs, grad), wanted, strict=True):
        assert value.shape == one.shape
        assert relative_error(value, one) < tolerance
    with torch.no_grad():
        assert torch.equal(function(*inputs), out)
