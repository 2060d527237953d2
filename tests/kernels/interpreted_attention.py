"""The GPU kernels of window attention, run by Triton's interpreter on the CPU, against float64.

test_triton_kernels.py runs this in a process of its own, with TRITON_INTERPRET=1 from the start:
Triton's own functions look at it when Triton is imported, which torch may have done.
"""

from collections.abc import Callable

import pytest
import torch
from interpreter import launched_as_on_gpus, products_as_on_gpus  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from esc_arch.archs import ESC
from esc_arch.kernels import choose
from esc_arch.kernels.gpu import launches, layouts
from esc_arch.kernels.gpu import window_attention as gpu
from esc_arch.ops.attention import naive
from esc_arch.ops.bias import relative_position_bias_backward
from esc_arch.ops.windows import in_windows, pad_to_multiple

# Batch, heads, channels of a head, height, width, window.
SHAPES = [
    (1, 2, 16, 8, 8, 8),
    (2, 1, 16, 11, 13, 8),
    (1, 3, 5, 9, 3, 4),
    (1, 1, 16, 10, 20, 12),
    (1, 1, 1, 7, 7, 5),
    (1, 1, 64, 6, 4, 6),
    (3, 2, 8, 1, 1, 4),
    (1, 1, 16, 2, 30, 17),
    # Tiles that are no whole rows, and fill the window.
    (1, 1, 16, 20, 26, 24),
    (1, 1, 8, 44, 30, 48),
]
# Errors that are small whatever torch's own are: some units in the last place.
SMALL = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
DTYPES = list(SMALL)


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, 3C, H, W) with the channels last, a table, and a gradient of the result."""
    batch, heads, dim, height, width, window = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, 3 * heads * dim, height, width, generator=generator)
    table = torch.randn(heads, (2 * window - 1) ** 2, generator=generator) / 2
    grad = torch.randn(batch, heads * dim, height, width, generator=generator)
    return qkv.contiguous(memory_format=torch.channels_last), table, grad


def written_out(q: Tensor, k: Tensor, v: Tensor, table: Tensor, window: int) -> Tensor:
    """The formula, on whole windows by reflection, cropped."""
    height, width = q.shape[-2:]
    whole = [pad_to_multiple(x, window) for x in (q, k, v)]
    out = in_windows(
        lambda *qkv: naive(*qkv, table, window),
        *whole,
        window_size=window,
        num_heads=table.shape[0],
    )
    return out[..., :height, :width]


def by_kernel(q: Tensor, k: Tensor, v: Tensor, table: Tensor, window: int) -> Tensor:
    return gpu.triton_window_attention(q, k, v, table, window)[0]


def run(
    function: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """The result, and the gradients of the features and of the table, in float64."""
    qkv, table, grad = make_inputs(shape, seed)
    # What all start from is the same: values that the narrowest dtype can hold.
    qkv, grad = (x.to(torch.bfloat16).to(torch.float16).to(dtype) for x in (qkv, grad))
    qkv.requires_grad_()
    table = table.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    out = function(*qkv.chunk(3, dim=1), table, shape[-1])
    assert out.dtype == dtype
    (out * grad).sum().backward()
    return [x.double() for x in (out.detach(), qkv.grad, table.grad)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_those_of_torch_in_the_same_precision_or_small(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    exact = run(written_out, shape, torch.float64)
    plain, ours = run(written_out, shape, dtype), run(by_kernel, shape, dtype)
    small = SMALL[dtype]
    if dtype == torch.float32:
        # Sums in order over many keys, as a GPU's, err more than those that a processor splits.
        small *= max(1, shape[-1] / 24)
    for name, right, by_torch, result in zip(
        ("out", "qkv", "table"), exact, plain, ours, strict=True
    ):
        # Of one pixel, all keys are alike, and the table has no gradient.
        size = right.abs().max().clamp_min(0.1)
        error, allowed = ((x - right).abs().max() / size for x in (result, by_torch))
        assert error <= max(2 * allowed, small), (name, error, allowed)


def test_programs_below_the_image_and_those_of_the_interpreters_size_agree_with_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = (1, 1, 16, 18, 5, 16)  # The second window has two of its sixteen rows.
    exact = run(written_out, shape, torch.float64)
    for interpreted in (False, True):
        monkeypatch.setattr(launches, "INTERPRETED", interpreted)
        assert launches.launch_for("forward", torch.float32, 16, 16).block_m == (
            256 if interpreted else 64
        )
        for right, result in zip(exact, run(by_kernel, shape, torch.float32), strict=True):
            torch.testing.assert_close(result, right, rtol=1e-5, atol=1e-5)


def test_a_batch_of_no_images_gives_none_and_a_table_without_a_gradient() -> None:
    result = run(by_kernel, (0, 2, 8, 9, 10, 4), torch.float32)
    assert [x.shape[0] for x in result[:2]] == [0, 0]
    assert not result[2].any()


def test_gradients_are_the_same_to_the_bit_each_time() -> None:
    first, second = (run(by_kernel, (2, 1, 16, 11, 13, 8), torch.float32) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_large_scores_and_scores_of_minus_infinity() -> None:
    (qkv, table, _), window = make_inputs((1, 1, 16, 8, 8, 8)), 8
    table[0, ::3] = float("-inf")
    q, k, v = (200 * qkv).chunk(3, dim=1)
    right = written_out(q.double(), k.double(), v.double(), table.double(), window)
    out = by_kernel(q, k, v, table, window)
    assert out.isfinite().all()
    assert (out - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float32, 30), (torch.float32, 200), (torch.float16, 90)],
)
def test_gradients_where_one_key_takes_all_weight(dtype: torch.dtype, factor: int) -> None:
    """In float32 the rounding of a large score must not show in its weight.

    In float16 the largest scores are beyond its largest number.
    """
    (qkv, table, grad), window = make_inputs((1, 1, 16, 8, 9, 8)), 8
    q, k, v = qkv.chunk(3, dim=1)
    table[0, ::3] = float("-inf")
    results = []
    for function, wide in ((by_kernel, dtype), (written_out, torch.float64)):
        inputs = [x.to(dtype).to(wide) for x in (factor * q, factor * k, v, table)]
        leaves = [x.requires_grad_() for x in inputs]
        out = function(*leaves, window)
        given = grad.to(dtype).to(wide)
        results.append([out, *torch.autograd.grad(out, leaves, given)])
    small = SMALL[dtype]
    # Gradients of scores, which rounding keeps from being zero, are multiplied by keys and queries.
    sizes = 1, factor, factor, 1, 10
    for size, value, right in zip(sizes, *results, strict=True):
        largest = max(size, right.abs().max())
        assert (value - right).abs().max() <= 2 * small * largest


def test_a_query_without_any_finite_score_is_nan_as_in_the_formula() -> None:
    (qkv, table, _), window = make_inputs((1, 1, 16, 4, 4, 4)), 4
    out = by_kernel(*qkv.chunk(3, dim=1), torch.full_like(table, float("-inf")), window)
    assert out.isnan().all()


def test_other_layouts_of_the_features_give_the_same() -> None:
    (qkv, table, _), window = make_inputs((2, 2, 8, 9, 10, 4)), 4
    last = by_kernel(*qkv.chunk(3, dim=1), table, window)
    first = by_kernel(*qkv.contiguous().chunk(3, dim=1), table, window)
    assert torch.equal(last, first)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_the_operators_are_well_formed() -> None:
    qkv, table, _ = make_inputs((1, 2, 4, 5, 6, 4))
    q, k, v = (x.detach().requires_grad_() for x in qkv.chunk(3, dim=1))
    torch.library.opcheck(gpu.triton_window_attention, (q, k, v, table.requires_grad_(), 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, t: (q, k[:, :4], v, t), "k"),
        (lambda q, k, v, t: (q, k, v, t[:, 1:]), "bias_table"),
        (lambda q, k, v, t: (q, k.half(), v, t), "dtypes of q, k and v"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: Callable, message: str) -> None:
    qkv, table, _ = make_inputs((1, 2, 4, 5, 6, 4))
    with pytest.raises(ValueError, match=message):
        gpu.triton_window_attention(*change(*qkv.chunk(3, dim=1), table), 4)


def test_images_in_which_32_bits_do_not_count_are_left_to_others() -> None:
    table = torch.empty(4, 63**2)
    assert gpu.can_run(torch.empty(1, 64, 2304, 3456, device="meta"), table, 32)
    assert not gpu.can_run(torch.empty(1, 64, 3072, 4096, device="meta"), table, 32)
    # Triton would launch nothing: 2^31 programs.
    many = torch.empty(2**21, 4, 32, 32, device="meta")
    assert gpu.can_run(many[: 2**20], torch.empty(4, 9, device="meta"), 2)
    assert not gpu.can_run(many, torch.empty(4, 9, device="meta"), 2)
    heads = torch.empty(2**16, 9, device="meta")
    assert not gpu.can_run(torch.empty(1, 2**16, 8, 8, device="meta"), heads, 2)


def test_maps_within_larger_ones_are_copied_where_32_bits_do_not_reach() -> None:
    for step, copied in ((16, False), (256, True)):
        larger = torch.empty(1, 48, 128 * step, 2**11, device="meta")
        larger = larger.contiguous(memory_format=torch.channels_last)
        q, k, v = larger[:, :, ::step].chunk(3, dim=1)
        maps = gpu._alike(q, k, v)
        assert (maps[0].stride() != q.stride()) == copied
        assert maps[0].stride(1) == 1 and maps[0].stride(2) < 2**31 // 128


def test_the_gradient_of_a_table_is_summed_as_by_the_loop_over_rows() -> None:
    for window in (1, 2, 5, 8):
        grad = torch.randn(3, window**2, window**2, dtype=torch.float64)
        by_loop = relative_position_bias_backward(grad, window)
        torch.testing.assert_close(layouts.table_gradient(grad, window), by_loop)


def test_kernels_run_on_the_gpu_of_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    current, ran_on = [0], []

    class Kernel:
        arg_names = ("x",)

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[[Tensor], None]:
            return lambda x: ran_on.append(current[0])

    def exchange(device: int) -> int:
        current[0], before = device, current[0]
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    with FakeTensorMode():
        launches.launch(Kernel(), (1,), {"ELSE": 1}, torch.empty(1, device="cuda:1"))
    assert ran_on == [1] and current == [0]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (4, 7)])
def test_reflection_is_folded_as_autograd_folds_it(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    padded = pad_to_multiple(x, 8)
    grad = torch.randn_like(padded)
    padded.backward(grad)
    torch.testing.assert_close(layouts.fold_reflection(grad, height, width), x.grad)


def test_a_network_runs_through_the_kernels() -> None:
    torch.manual_seed(0)
    options = {"dim": 32, "pdim": 16, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1}
    network = ESC(**options, window_size=8, num_heads=2, upscaling_factor=2, attn_type="Triton")
    x = torch.rand(2, 3, 10, 12)
    result = network(x)
    assert {entry.name for entry in choose._kernels["feature_attention", "cpu"]} >= {"Triton"}
    network.blocks[0].attn.attn_type = "Naive"
    torch.testing.assert_close(result, network(x), rtol=1e-5, atol=1e-5)
