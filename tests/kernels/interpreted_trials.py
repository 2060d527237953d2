"""What runs where a GPU kernel fails, by kernels in Triton's interpreter that are made to.

test_triton_kernels.py runs this in a process of its own.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interpreter import launched_as_on_gpus, products_as_on_gpus  # noqa: F401
from kernel_checks import kernels_called
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from esc_arch.archs import ESC
from esc_arch.archs.layers import ConvFFN
from esc_arch.errors import UserError
from esc_arch.kernels import choose
from esc_arch.kernels.gpu import launches, trials, triton_backend, triton_conv_ffn, window_attention
from esc_arch.ops.attention import attend_in_windows, feature_attention, naive

TINY = {"dim": 16, "pdim": 8, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 2}
TINY |= {"window_size": 8, "num_heads": 2, "upscaling_factor": 2}


@pytest.fixture(autouse=True)
def nothing_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_works", functools.cache(trials._works.__wrapped__))
    monkeypatch.setattr(trials, "_said", set())


@pytest.fixture
def break_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Let launches fail of kernels of a name that are given features of a dtype."""

    def do(names: set[str], dtype: torch.dtype, reason: str = "out of resource") -> None:
        launch = window_attention.launch

        def fail(kernel: Any, grid: Any, constants: Any, first: Tensor, *args: Any) -> None:
            if kernel.__name__ in names and first.dtype == dtype:
                raise RuntimeError(f"{reason}\nand more")
            launch(kernel, grid, constants, first, *args)

        monkeypatch.setattr(window_attention, "launch", fail)
        monkeypatch.setattr(triton_conv_ffn.launches, "launch", fail)

    return do


def attend(dtype: torch.dtype, window: int = 4, gradients: bool = False) -> tuple[list, list[str]]:
    """A result, with its gradients if they are wanted; and the operators that were called."""
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator)
    shapes = *3 * [(1, 16, 5, 6)], (2, (2 * window - 1) ** 2)
    inputs = [draw(shape).to(dtype).requires_grad_(gradients) for shape in shapes]
    with torch.set_grad_enabled(gradients), kernels_called() as called:
        out = feature_attention(*inputs, window)
        grads = torch.autograd.grad(out.sum(), inputs) if gradients else ()
    exact = attend_in_windows(naive, *(x.double() for x in inputs), window)
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
    return [out, *grads], called


@pytest.mark.parametrize("gradients", [False, True])
def test_a_kernel_that_fails_in_one_dtype_is_replaced_in_that_one_alone(
    gradients: bool, break_kernels: Callable
) -> None:
    broken = "queries_pass" if gradients else "window_attention_forward"
    break_kernels({broken}, torch.float16)
    ours = ["triton_window_attention", *["triton_window_attention_backward"] * gradients]
    for dtype in (torch.float32, torch.bfloat16):
        assert attend(dtype, gradients=gradients)[1] == ours
    with pytest.warns(
        UserWarning, match="attention in float16.* cannot run here .out of res.*Flex"
    ):
        attend(torch.float16, gradients=gradients)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not set(ours) & set(attend(torch.float16, gradients=gradients)[1])
        # It is not said again of another size, which is tried by itself.
        assert not set(ours) & set(attend(torch.float16, 8, gradients)[1])
        if gradients:  # Without, the forward still is ours.
            assert attend(torch.float16)[1] == ours[:1]


def test_a_kernel_that_fails_at_one_size_of_windows_is_replaced_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = window_attention.launch

    def fail(kernel: Any, grid: Any, constants: dict, *args: Any) -> None:
        if constants["W"] == 8:
            raise RuntimeError("out of resource: shared memory")
        launch(kernel, grid, constants, *args)

    monkeypatch.setattr(window_attention, "launch", fail)
    with pytest.warns(UserWarning, match="shared memory"):
        assert "triton_window_attention" not in attend(torch.float32, 8)[1]
    assert attend(torch.float32, 4)[1] == ["triton_window_attention"]
    x, table = torch.rand(1, 16, 8, 8), torch.zeros(2, 15**2)
    with pytest.raises(UserError, match="'Triton' cannot run here"):
        feature_attention(x, x, x, table, 8, "Triton")


def test_a_trial_at_the_largest_windows_holds_the_biases_of_one_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    monkeypatch.setattr(trials, "_works", lambda *how: tried.append(how) or True)
    x = torch.empty(1, 64, 100, 192, device="meta")
    for window, heads in ((32, 4), (96, 1)):
        table = torch.empty(4, (2 * window - 1) ** 2, device="meta")
        assert triton_backend.attention_runs(x, table, window, torch.bfloat16)
        shapes = (1, 48 * heads, window, window + 1), (heads, table.shape[1])
        assert tried[-1][2:5] == (torch.bfloat16, True, shapes)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_layer_whose_kernel_fails_or_is_wrong_is_computed_by_its_formula(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trials.TRIALS["conv_ffn"]

    def fail(*args: Tensor) -> Tensor:
        raise RuntimeError("no such instruction\nand more")

    layer, x = ConvFFN(16, 3, 2).requires_grad_(gradients), torch.rand(1, 16, 4, 5)
    for broken, reason in (
        (fail, "no such instruction"),
        (lambda *args: 2 * trial.kernel(*args), "is wrong"),
        (lambda *args: torch.nan * trial.kernel(*args), "is wrong"),
    ):
        trials._works.cache_clear()
        trials._said.clear()
        monkeypatch.setitem(trials.TRIALS, "conv_ffn", trial._replace(kernel=broken))
        with pytest.warns(UserWarning, match=f"kernel of conv_ffn.* cannot run here .*{reason}"):
            layer(x)
        with warnings.catch_warnings(), kernels_called() as called:
            warnings.simplefilter("error")
            out = layer(x)
        assert not called
        with choose.switched_off():
            assert torch.equal(out, layer(x))


def test_training_goes_on_where_gradients_of_one_dtype_fail(break_kernels: Callable) -> None:
    break_kernels({"proj_gradient_kernel", "conv_attn_gradient_kernel"}, torch.bfloat16)
    torch.manual_seed(0)
    network, x = ESC(**TINY), torch.rand(1, 3, 8, 12)
    with pytest.warns(UserWarning, match="in bfloat16 with its gradients cannot run here"):
        with torch.autocast("cpu", torch.bfloat16), kernels_called() as called:
            network(x).sum().backward()
    assert {name for name in called if name.startswith("triton")} == {
        "triton_window_attention",
        "triton_window_attention_backward",
    }
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_kernels_may_be_tried_within_gradient_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    network, x = ESC(**TINY), torch.rand(1, 3, 8, 12, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = checkpoint(network, x, use_reentrant=reentrant)
        grads = torch.autograd.grad(out.sum(), x) if not reentrant else out.sum().backward()
    grads = grads or (x.grad,)
    wanted = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(*grads, *wanted)


def test_a_trial_is_neither_counted_nor_changed_by_what_watches_the_first_call() -> None:
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            assert attend(torch.float32)[1] == ["triton_window_attention"]
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_recording_in_which_kernels_would_be_tried_is_refused_and_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda", 0)
    with pytest.raises(UserError, match="called once before a CUDA graph"):
        trials.works("conv_ffn", device, torch.float32, False, (1, 16, 4, 4))
    assert trials._works.cache_info().currsize == 0


def test_a_compiler_that_would_end_the_process_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "triton_version", lambda: (3, 2))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    device = torch.device("cuda", 0)
    with pytest.warns(UserWarning, match="attention in bfloat16 cannot run here .*Triton 3.3"):
        assert not trials.works("attention", device, torch.bfloat16, False)
    assert not trials._ends_the_process(device, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert not trials._ends_the_process(device, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(trials, "triton_version", lambda: (3, 3))
    assert not trials._ends_the_process(device, torch.bfloat16)


def test_products_have_as_many_columns_as_each_compiler_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, columns in (((3, 3), 16), ((3, 4), 16), ((3, 5), 8), ((3, 8), 8)):
        monkeypatch.setattr(launches, "triton_version", lambda version=version: version)
        assert launches.columns_of_sums(amd=False) == columns
        assert launches.columns_of_sums(amd=True) == 16
