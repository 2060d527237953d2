"""The CPU kernel against the formula in float64, for every instruction set of this machine."""

import shutil

import pytest
import torch

from esc_arch.ops import cpu_kernels, fused_attention
from esc_arch.ops.attention import naive, window_attention

needs_kernel = pytest.mark.skipif(
    not cpu_kernels.is_built(), reason="installed without a C++ compiler"
)


def test_the_kernel_is_built_where_there_is_a_compiler():
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    assert cpu_kernels.is_built()


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def inputs(windows, heads, w, dim, seed=0):
    """Queries, keys and values as views of one tensor, a table, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(windows, w * w, 3, heads, dim, generator=generator)
    table = torch.randn(heads, (2 * w - 1) ** 2, generator=generator)
    grad = torch.randn(windows, heads, w * w, dim, generator=generator)
    leaves = [t.transpose(1, 2).requires_grad_() for t in qkv.unbind(2)]
    return [*leaves, table.requires_grad_()], grad


@needs_kernel
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("windows", "heads", "w", "dim"),
    [
        (2, 4, 32, 16),  # ESC's own
        (3, 2, 8, 8),
        (2, 3, 5, 7),  # nothing a multiple of a vector
        (1, 2, 20, 24),
        (2, 1, 33, 32),
        (5, 1, 2, 16),
        (1, 2, 7, 1),
    ],
)
def test_it_computes_the_formula_and_its_gradients(
    windows, heads, w, dim, width, threads, monkeypatch
):
    if width > cpu_kernels.vector_width():
        pytest.skip(f"this machine has no vectors of {width} floats")
    monkeypatch.setattr(cpu_kernels, "vector_width", lambda: width)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_kernels, "MULTIPLY_ADDS_PER_THREAD", 1)
    leaves, grad = inputs(windows, heads, w, dim)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = naive(*wide, w)
    expected_grads = torch.autograd.grad(expected, wide, grad.double())
    out = window_attention(*leaves, w, "Fused")
    assert relative_error(out, expected) < 2e-6
    for value, wanted in zip(torch.autograd.grad(out, leaves, grad), expected_grads, strict=True):
        assert relative_error(value, wanted) < 2e-6
    # `out` is what the backward starts from, so a second pass may not have changed it.
    assert torch.equal(window_attention(*leaves, w, "Fused"), out)


@needs_kernel
def test_large_scores_neither_overflow_nor_vanish():
    leaves, _ = inputs(1, 2, 8, 16)
    q, k, v, table = (t.detach() for t in leaves)
    for factor in (30, 1e4):
        expected = naive(factor * q.double(), k.double(), v.double(), table.double(), 8)
        out = window_attention(factor * q, k, v, table, 8, "Fused")
        assert relative_error(out, expected) < 1e-5 * factor


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value):
    leaves, _ = inputs(1, 1, 8, 16)
    for which in range(3):
        changed = [t.detach().clone() for t in leaves]
        changed[which][0, 0, 5, 3] = value
        assert not window_attention(*changed, 8, "Fused").isfinite().all()


@needs_kernel
def test_the_operators_declare_themselves_to_torch_as_they_are():
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(2, 16, 8, 4, generator=generator) for _ in range(4))
    table = torch.randn(2, 49, generator=generator)
    leaves = [t.requires_grad_() for t in (q, k, v, table)]
    torch.library.opcheck(fused_attention.window_attention_forward, (*leaves, 4))
    out, log_sums = fused_attention.window_attention_forward(*leaves, 4)
    tensors = [t.detach() for t in (*leaves, out, log_sums, grad)]
    torch.library.opcheck(fused_attention.window_attention_backward, (*tensors, 4))
