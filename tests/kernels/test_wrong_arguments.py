"""Operators given what they cannot compute: refused in one line, in real and in fake alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import force, needs_kernels
from torch._subclasses.fake_tensor import FakeTensorMode

from esc_arch.archs import ConvAttn
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.bias import relative_position_bias

pytestmark = needs_kernels

if cpu_kernels.is_built():
    from esc_arch.kernels.cpu import flops

ODD = torch.rand(2, 16, 3, 3)
X, TABLE = torch.rand(2, 16, 8, 8), torch.rand(2, 49)
FFN = [torch.rand(*s) for s in ((24, 16, 1, 1), (24,), (24, 1, 3, 3), (24,), (16, 24, 1, 1), (16,))]
LOG_SUMS = torch.rand(8, 2, 16)
# Arguments that fit.
RIGHT = {
    "conv_ffn": (X, *FFN),
    "conv_ffn_backward": (X, X, *FFN),
    "conv_attn": (X, torch.rand(8, 8, 5, 5), ODD[:, :8], torch.rand(16, 16, 1, 1), FFN[-1]),
    "symmetric_conv": (X, torch.rand(6, 16, 16), ODD, 5),
    "symmetric_conv_weight": (X, X, 5),
    "depthwise_conv": (X, ODD),
    "depthwise_conv_weight": (X, X, 3),
    "window_attention": (X, X, X, TABLE, 4),
    "window_attention_backward": (X, X, X, TABLE, X, LOG_SUMS, X, 4),
}


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, its dimensions the other way round in memory, with gaps between them."""
    turned = tensor.permute(*reversed(range(tensor.ndim)))
    wide = torch.full((*turned.shape, 2), float("nan"), dtype=tensor.dtype)
    wide[..., 0] = turned
    return wide[..., 0].permute(*reversed(range(tensor.ndim)))


def changes(tensor: torch.Tensor) -> st.SearchStrategy[torch.Tensor]:
    """Tensors that differ from one in shape, dtype or device."""
    shape = list(tensor.shape)
    other = st.tuples(st.integers(0, len(shape) - 1), st.integers(0, 20)).filter(
        lambda change: shape[change[0]] != change[1]
    )
    resized = other.map(
        lambda change: torch.rand(*shape[: change[0]], change[1], *shape[change[0] + 1 :])
    )
    return st.one_of(
        resized,
        st.sampled_from(
            [
                tensor[..., None],
                tensor[0],
                tensor.double(),
                tensor.half(),
                tensor.to(torch.int32),
                tensor.bool(),
                tensor.to(torch.complex64),
                tensor.to(torch.float8_e4m3fn),
                tensor.bfloat16(),
                torch.zeros(()),
                torch.zeros(1).expand(2**40),
                # What fits, lying in memory otherwise, or with a gradient.
                torch.zeros(()).expand(tensor.shape),
                spread(tensor),
                tensor.clone().requires_grad_(),
            ]
        ),
    )


def outcome(operator, args):
    """What comes out: the results' shapes, or the error's line."""
    try:
        out = operator(*args)
    except (ValueError, NotImplementedError) as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return [tuple(t.shape) for t in (out if isinstance(out, tuple | list) else (out,))]


def test_every_operator_is_among_those_given_wrong_arguments():
    assert RIGHT.keys() == flops._COUNTED.keys()


@pytest.fixture(scope="module", params=[4, 8, 16])
def width(request):
    """Floats of a vector, of each instruction set that this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        force(patch, request.param, 2)
        yield request.param


@pytest.mark.parametrize("name", RIGHT)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_does_not_fit_is_refused_before_memory_is_read(name, width, data):
    operator, args = getattr(torch.ops.esc, name), list(RIGHT[name])
    for index in data.draw(
        st.lists(st.integers(0, len(args) - 1), min_size=1, max_size=2, unique=True)
    ):
        if isinstance(args[index], int):
            args[index] = data.draw(
                st.integers(-4, 3000).filter(lambda v, old=args[index]: v != old)
            )
        else:
            args[index] = data.draw(changes(args[index]))
    real = outcome(operator, args)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        assert outcome(operator, fake) == real
    if isinstance(real, str):
        assert real.startswith("esc::")
    else:  # What fits after all is what the formulas take: another batch, another size.
        assert all(t.device.type == "cpu" for t in args if isinstance(t, torch.Tensor))


STRANGE = [float("inf"), -float("inf"), 1e31, -1e31, -1.0000001e31, -9e30, -1e38, 1e-45, -104.0]
PAYLOADS = [0x7FC00000, 0x7FC0002A, 0xFFD55555, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), window=st.integers(2, 10), heads=st.integers(1, 3), dim=st.integers(1, 20))
def test_nothing_finite_comes_of_what_the_formula_makes_nan(width, data, window, heads, dim):
    torch.manual_seed(0)
    shape = (1, heads * dim, window, window)
    args = [*(torch.randn(shape) for _ in range(3)), torch.randn(heads, (2 * window - 1) ** 2)]
    nans = torch.tensor(PAYLOADS).to(torch.int32).view(torch.float32)
    for _ in range(data.draw(st.integers(1, 3))):
        values = data.draw(st.sampled_from(args)).view(-1)
        value = data.draw(st.sampled_from([*nans, *map(torch.tensor, STRANGE)]))
        everywhere = data.draw(st.booleans()) and value.isfinite()
        values[slice(None) if everywhere else data.draw(st.integers(0, len(values) - 1))] = value
    out, _ = torch.ops.esc.window_attention(*args, window)

    def formula(q, k, v, table):
        q, k, v = (x.view(heads, dim, -1).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(1, 2) * dim**-0.5 + relative_position_bias(table, window)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(shape)

    # In double too: in float32 it also depends on the order of factors what overflows.
    expected = formula(*args).isnan() & formula(*(x.double() for x in args)).isnan()
    assert not (expected & out.isfinite()).any()


@pytest.mark.parametrize("name", RIGHT)
def test_a_tensor_without_dimensions_is_refused_in_each_place(name):
    operator, args = getattr(torch.ops.esc, name), RIGHT[name]
    for place, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            changed = [torch.zeros(()) if i == place else a for i, a in enumerate(args)]
            assert str(outcome(operator, changed)).startswith("esc::"), place


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("change", [lambda x: x[..., None], lambda x: x[0]], ids=["more", "less"])
def test_another_rank_is_refused_though_all_tensors_agree(name, change):
    operator = getattr(torch.ops.esc, name)
    args = [change(a) if isinstance(a, torch.Tensor) else a for a in RIGHT[name]]
    real = outcome(operator, args)
    assert isinstance(real, str) and real.startswith("esc::")
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        assert outcome(operator, fake) == real


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_is_computed_in_real_and_fake_alike(name):
    operator, args = getattr(torch.ops.esc, name), RIGHT[name]
    real = outcome(operator, args)
    assert not isinstance(real, str)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        assert outcome(operator, fake) == real


@pytest.mark.parametrize("name", RIGHT)
def test_how_tensors_lie_in_memory_changes_no_result(name):
    operator, args = getattr(torch.ops.esc, name), RIGHT[name]
    places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]

    def results(change, where) -> list[torch.Tensor]:
        out = operator(*(change(a) if i in where else a for i, a in enumerate(args)))
        return list(out) if isinstance(out, tuple | list) else [out]

    def repeated(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape).clone()

    def same_once(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten()[0].expand(tensor.shape)

    for where in (*([place] for place in places), places):
        pairs = [(spread, lambda tensor: tensor), (same_once, repeated)]
        for change, plain in pairs:
            for value, expected in zip(results(change, where), results(plain, where), strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RIGHT)
def test_tensors_without_memory_are_refused(name):
    operator, args = getattr(torch.ops.esc, name), RIGHT[name]
    places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    for place in places:
        changed = [a.to("meta") if i == place else a for i, a in enumerate(args)]
        assert "devices are" in outcome(operator, changed)
        changed = [a.to_sparse() if i == place else a for i, a in enumerate(args)]
        with pytest.raises((ValueError, NotImplementedError, RuntimeError)):
            operator(*changed)


def test_windows_that_no_memory_holds_are_refused():
    side = 1449
    q = torch.empty(1, 1024, 1, 1).expand(1, 1024, 2, 2)
    table = torch.zeros(1, 1).expand(1, (2 * side - 1) ** 2)
    assert "too large" in outcome(torch.ops.esc.window_attention, (q, q, q, table, side))


def test_one_image_is_added_to_the_results_for_several():
    module, x, skip = ConvAttn(32, 16, 5), torch.rand(3, 32, 6, 6), torch.rand(1, 32, 6, 6)
    with torch.no_grad():
        out = skip + module(x)
        expected = skip.double() + module.double()(x.double())
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-4)
