"""Attention backends against a loop in float64 that follows the formula index by index."""

import importlib.util
import math

import pytest
import torch

from esc_arch.errors import UserError
from esc_arch.ops import attention, chunked, flex
from esc_arch.ops.attention import (
    BACKENDS,
    canonical_attn_type,
    flashbias_attention,
    window_attention,
)
from esc_arch.ops.bias import relative_position_bias, relative_position_bias_backward

# tests/kernels has those that a GPU runs.
ON_CPU = [name for name in BACKENDS if name != "Triton"]


def skip_without(name):
    if name == "Flex" and importlib.util.find_spec("torch.nn.attention.flex_attention") is None:
        pytest.skip("this PyTorch has no FlexAttention")


WINDOW = 4
SHAPE = (3, 2, WINDOW**2, 5)  # windows, heads, pixels, channels of a head


def loop_bias(table, w):
    heads = table.shape[0]
    bias = torch.empty(heads, w * w, w * w, dtype=table.dtype)
    for q in range(w * w):
        for k in range(w * w):
            row = k // w - q // w + w - 1
            column = k % w - q % w + w - 1
            bias[:, q, k] = table[:, row * (2 * w - 1) + column]
    return bias


def loop_attention(q, k, v, table, w):
    bias = loop_bias(table, w)
    windows = []
    for n in range(q.shape[0]):
        heads = []
        for h in range(q.shape[1]):
            rows = []
            for i in range(w * w):
                scores = torch.stack(
                    [q[n, h, i] @ k[n, h, j] / math.sqrt(q.shape[-1]) for j in range(w * w)]
                )
                weights = torch.softmax(scores + bias[h, i], 0)
                rows.append((weights[:, None] * v[n, h]).sum(0))
            heads.append(torch.stack(rows))
        windows.append(torch.stack(heads))
    return torch.stack(windows)


@pytest.fixture(scope="module")
def reference():
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4))
    table = torch.randn(SHAPE[1], (2 * WINDOW - 1) ** 2, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (q, k, v, table)]
    out = loop_attention(*inputs, WINDOW)
    grads = torch.autograd.grad(out, inputs, grad)
    return [t.detach() for t in inputs], grad, out.detach(), grads


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


@pytest.fixture(params=["whole", "small chunks"])
def chunk_size(request, monkeypatch):
    if request.param == "small chunks":
        # 7 queries of one window at a time: chunks that do not divide the 16 queries.
        monkeypatch.setattr(chunked, "CPU_CHUNK_ELEMENTS", SHAPE[1] * WINDOW**2 * 7)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        (name, dtype, tolerance)
        for name in (*ON_CPU, "Auto")
        for dtype, tolerance in [
            (torch.float64, 1e-12),
            (torch.float32, 1e-5),
            (torch.bfloat16, 2e-2),
        ]
        if name not in ("Flex", "Fused") or dtype != torch.float64  # They have no float64.
    ],
)
def test_backend_computes_the_formula_and_its_gradients(
    reference, chunk_size, name, dtype, tolerance
):
    skip_without(name)
    inputs, grad, expected, expected_grads = reference
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    out = window_attention(*leaves, WINDOW, name)
    assert out.dtype == dtype
    assert relative_error(out, expected) < tolerance
    for value, wanted in zip(
        torch.autograd.grad(out, leaves, grad.to(dtype)), expected_grads, strict=True
    ):
        assert value.dtype == dtype
        assert relative_error(value, wanted) < tolerance
    with torch.no_grad():
        assert relative_error(window_attention(*leaves, WINDOW, name), expected) < tolerance


def test_the_bias_and_its_backward_follow_the_formula(reference):
    table = reference[0][3].clone().requires_grad_()
    bias = relative_position_bias(table, WINDOW)
    assert torch.equal(bias, loop_bias(table, WINDOW))
    grad = torch.randn_like(bias)
    (expected,) = torch.autograd.grad(loop_bias(table, WINDOW), table, grad)
    torch.testing.assert_close(relative_position_bias_backward(grad, WINDOW), expected)


def test_flashbias_adds_the_product_of_its_factors(reference):
    (q, k, v, _), grad, _, _ = reference
    factors = torch.randn(2, SHAPE[1], WINDOW**2, 3, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (q, k, v, *factors)]
    out = flashbias_attention(*leaves)
    scores = leaves[0] @ leaves[1].mT / math.sqrt(SHAPE[-1]) + leaves[3] @ leaves[4].mT
    expected = scores.softmax(-1) @ leaves[2]
    torch.testing.assert_close(out, expected)
    for value, wanted in zip(
        torch.autograd.grad(out, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("name", ["Fused", "Chunked", "SDPA", "Flex"])
def test_autocast_trains_a_float32_table_with_bfloat16_features(reference, name):
    skip_without(name)
    inputs, grad, expected, expected_grads = reference
    q, k, v = (t.bfloat16().requires_grad_() for t in inputs[:3])
    table = inputs[3].float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = window_attention(q, k, v, table, WINDOW, name)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, expected) < 2e-2
    (table_grad,) = torch.autograd.grad(out, table, grad.bfloat16())
    assert table_grad.dtype == torch.float32
    assert relative_error(table_grad, expected_grads[3]) < 2e-2


@pytest.mark.parametrize("name", ON_CPU)
def test_a_window_of_one_pixel_returns_its_values(name):
    skip_without(name)
    v = torch.randn(6, 2, 1, 4)
    torch.testing.assert_close(window_attention(v, v, v, torch.ones(2, 1), 1, name), v)


def test_names_of_backends_are_case_insensitive():
    assert canonical_attn_type("sdpa") == "SDPA"
    assert canonical_attn_type("FLASHBIAS") == "FlashBias"
    with pytest.raises(UserError, match="attn_type is 'Flsh'; it must be one of Auto, Naive"):
        canonical_attn_type("Flsh")


def test_a_backend_without_its_compiler_is_an_error_by_name_only(reference, monkeypatch):
    tries = []

    def broken(*args, **kwargs):
        tries.append(args)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(attention, "_flex_fails", set())
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda: broken)
    inputs = [t.float() for t in reference[0]]
    with pytest.raises(UserError, match="attn_type 'Flex' cannot run here: no compiler"):
        window_attention(*inputs, WINDOW, "Flex")
    with pytest.warns(UserWarning, match="SDPA runs instead"):
        out = attention.flex_or_sdpa(*inputs, WINDOW)
    assert relative_error(out, reference[2]) < 1e-5
    # A compilation that fails takes as long as one that does not, and is not tried again.
    assert torch.equal(attention.flex_or_sdpa(*inputs, WINDOW), out)
    assert len(tries) == 2


@pytest.mark.parametrize("name", ["Chunked", "SDPA"])
def test_training_holds_no_more_than_a_few_windows_of_scores(name):
    """The largest tensor that the backward makes is watched, in place of noisy process memory."""
    w, windows, heads = 16, 12, 2
    q, k, v = (torch.randn(windows, heads, w * w, 8, requires_grad=True) for _ in range(3))
    table = torch.randn(heads, (2 * w - 1) ** 2, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes() // t.element_size())
            return out

    with Watch():
        window_attention(q, k, v, table, w, name).sum().backward()
    all_scores = windows * heads * w**4
    assert 0 < largest <= all_scores / 2
