"""The CPU kernel against the formula in float64, for every instruction set of this machine."""

import shutil

import pytest
import torch
from kernel_checks import choose_bfloat16, force, kernels_called, needs_kernels, relative_error

from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.attention import feature_attention, naive, window_attention

if cpu_kernels.is_built():
    from esc_arch.kernels.cpu import fused_attention
from esc_arch.ops.windows import pad_to_multiple


def test_the_kernel_is_built_where_there_is_a_compiler():
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    assert cpu_kernels.is_built()


def inputs(windows, heads, w, dim, seed=0):
    """Queries, keys and values as views of one tensor, a table, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(windows, w * w, 3, heads, dim, generator=generator)
    table = torch.randn(heads, (2 * w - 1) ** 2, generator=generator)
    grad = torch.randn(windows, heads, w * w, dim, generator=generator)
    leaves = [t.transpose(1, 2).requires_grad_() for t in qkv.unbind(2)]
    return [*leaves, table.requires_grad_()], grad


@needs_kernels
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
    force(monkeypatch, width, threads)
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


@needs_kernels
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize(
    ("heads", "w", "dim", "height", "width"),
    [
        (4, 32, 16, 64, 64),  # ESC's own
        (3, 32, 16, 37, 50),  # windows that reach beyond the image
        (2, 8, 12, 20, 9),
        (1, 5, 7, 4, 17),  # nothing a multiple of anything
        (1, 48, 16, 50, 60),
        (2, 33, 8, 33, 40),
        (2, 16, 24, 20, 20),  # more channels than a tile has
        (2, 1, 4, 3, 3),
    ],
)
def test_bfloat16_is_rounded_seldom(heads, w, dim, height, width, amx, monkeypatch):
    choose_bfloat16(monkeypatch, amx, threads=1)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, height, width, 3 * heads * dim, generator=generator).permute(0, 3, 1, 2)
    table = torch.randn(heads, (2 * w - 1) ** 2, generator=generator)
    q, k, v = qkv.bfloat16().chunk(3, dim=1)
    for factor in (1, 40, 1e4):
        scaled = factor * q
        with torch.no_grad():
            expected = feature_attention(*(x.double() for x in (scaled, k, v, table)), w, "Naive")
            for threads in (1, 2):
                monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
                out = feature_attention(scaled, k, v, table, w)
                assert out.dtype == torch.bfloat16
                assert relative_error(out, expected) < 4e-3


@needs_kernels
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("windows", "heads", "w", "dim"),
    [(2, 4, 32, 16), (3, 2, 8, 12), (2, 3, 5, 7), (1, 2, 33, 8), (2, 1, 16, 24), (5, 1, 1, 16)],
)
def test_gradients_in_bfloat16(windows, heads, w, dim, amx, threads, monkeypatch):
    choose_bfloat16(monkeypatch, amx, threads)
    (*qkv, table), grad = inputs(windows, heads, w, dim)
    leaves = [*(t.detach().bfloat16().requires_grad_() for t in qkv), table]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    grad = grad.bfloat16()
    expected = torch.autograd.grad(naive(*wide, w), wide, grad.double())
    out = window_attention(*leaves, w, "Fused")
    for value, wanted in zip(torch.autograd.grad(out, leaves, grad), expected, strict=True):
        # A window of one pixel weighs it by 1 whatever the score.
        assert relative_error(value, wanted) < 6e-3 if wanted.any() else value.abs().max() < 0.05


@needs_kernels
def test_large_scores_neither_overflow_nor_vanish():
    leaves, _ = inputs(1, 2, 8, 16)
    q, k, v, table = (t.detach() for t in leaves)
    for factor in (30, 1e4):
        expected = naive(factor * q.double(), k.double(), v.double(), table.double(), 8)
        out = window_attention(factor * q, k, v, table, 8, "Fused")
        assert relative_error(out, expected) < 1e-5 * factor


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_hidden(value, dtype):
    leaves, _ = inputs(1, 1, 8, 16)
    for which in range(3):
        changed = [t.detach().clone().to(dtype) for t in leaves]
        changed[which][0, 0, 5, 3] = value
        assert not window_attention(*changed, 8, "Fused").isfinite().all()


@needs_kernels
@pytest.mark.parametrize("w", [8, 12, 32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_in_the_table_reaches_all_that_the_formula_says(dtype, value, w):
    leaves, _ = inputs(1, 2, w, 16)
    *features, table = (t.detach() for t in leaves)
    features = [t.to(dtype) for t in features]
    for place in (0, table.shape[1] // 2, table.shape[1] - 1):
        changed = table.clone()
        changed[0, place] = value
        bad = ~window_attention(*features, changed, w, "Fused").isfinite()
        formula = ~naive(*(t.float() for t in features), changed, w).isfinite()
        # The documented exception: where 16 does not divide the side, more of the same head.
        assert torch.equal(bad, formula) if w % 16 == 0 else bool((bad | ~formula).all())
        assert not bad[:, 1].any()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_declare_themselves_to_torch_as_they_are(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(2, 16, 8, 4, generator=generator).to(dtype) for _ in range(4))
    table = torch.randn(2, 49, generator=generator)
    leaves = [t.requires_grad_() for t in (q, k, v, table)]
    torch.library.opcheck(fused_attention.window_attention_forward, (*leaves, 4))
    out, log_sums = fused_attention.window_attention_forward(*leaves, 4)
    tensors = [t.detach() for t in (*leaves, out, log_sums, grad)]
    torch.library.opcheck(fused_attention.window_attention_backward, (*tensors, 4))


@needs_kernels
@pytest.mark.parametrize("size", [(32, 32), (37, 50), (5, 3), (1, 1), (64, 33)])
def test_windows_of_feature_maps_are_completed_by_reflection(size):
    generator = torch.Generator().manual_seed(0)
    height, width = size
    qkv = torch.randn(2, height, width, 3 * 24, generator=generator).permute(0, 3, 1, 2)
    table = torch.randn(3, 63**2, generator=generator)
    q, k, v = qkv.chunk(3, dim=1)
    with torch.no_grad():
        with kernels_called() as called:
            out = feature_attention(q, k, v, table, 32)
        assert called == ["window_attention"]
        padded = [pad_to_multiple(x.double(), 32) for x in (q, k, v)]
        expected = feature_attention(*padded, table.double(), 32, "Naive")
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, expected[..., :height, :width]) < 2e-6


@needs_kernels
def test_gradients_want_whole_windows_which_networks_give_them():
    q = torch.randn(1, 8, 6, 8, requires_grad=True)
    table = torch.randn(2, 49)
    with kernels_called() as called:
        (ours,) = torch.autograd.grad(feature_attention(q, q, q, table, 4).sum(), q)
    assert called == ["window_attention", "window_attention_backward"]
    wanted = feature_attention(*[q.double()] * 3, table.double(), 4, "Naive")
    torch.testing.assert_close(ours, torch.autograd.grad(wanted.sum(), q)[0])
    out, _ = fused_attention.window_attention_forward(q, q, q, table, 4)
    with pytest.raises(ValueError, match="whole windows of 4"):
        out.sum().backward()


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
def test_scores_whose_bound_is_far_above_them_are_weighed_by_the_largest(dtype, tolerance):
    # |q| |k| says 200 where no score is above 0, so 2^(score - 200) would be nothing.
    w = 8
    q = torch.zeros(1, 2, w, w)
    q[:, 0] = 200.0
    k = torch.zeros(1, 2, w, w)
    k[:, 1] = 1.0
    k[0, 0, 3, 3] = -1.0
    v = torch.randn(1, 2, w, w, generator=torch.Generator().manual_seed(0))
    table = torch.zeros(1, (2 * w - 1) ** 2)
    q, k, v = (t.to(dtype) for t in (q, k, v))
    with torch.no_grad():
        out = feature_attention(q, k, v, table, w)
        expected = feature_attention(*(t.double() for t in (q, k, v, table)), w, "Naive")
    assert relative_error(out, expected) < tolerance
