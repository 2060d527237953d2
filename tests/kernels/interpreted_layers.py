"""The GPU kernels of ConvFFN and ConvAttn, run by Triton's interpreter, against float64.

test_triton_kernels.py runs this in a process of its own.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from functorch.compile import make_boxed_func
from interpreter import launched_as_on_gpus, products_as_on_gpus  # noqa: F401
from kernel_checks import kernels_called, tells_exports  # noqa: F401
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from esc_arch.archs import ESC
from esc_arch.archs.conv_attn import ConvAttn
from esc_arch.archs.layers import ConvFFN
from esc_arch.kernels import choose
from esc_arch.kernels.gpu import launches
from esc_arch.kernels.gpu.triton_conv_attn import (
    conv_attn_formula,
    conv_attn_runs,
    triton_conv_attn,
    triton_conv_attn_backward,
)
from esc_arch.kernels.gpu.triton_conv_ffn import (
    conv_ffn_runs,
    triton_conv_ffn,
    triton_conv_ffn_backward,
)
from esc_arch.kernels.gpu.window_attention import triton_window_attention
from esc_arch.ops.attention import attend_in_windows, naive
from esc_arch.ops.convolutions import conv_ffn_of_weights

# Errors that are small whatever torch's own are: some units in the last place. The interpreter cuts
# numbers to bfloat16 where GPUs round.
SMALL = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Values that the narrowest dtype can hold."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x.to(torch.bfloat16).to(torch.float16).double() for x in values]


def conv_ffn_inputs(
    batch: int, channels: int, hidden: int, side: int, height: int, width: int
) -> list[Tensor]:
    return random(
        (batch, channels, height, width),
        *((hidden, channels, 1, 1), (hidden,), (hidden, 1, side, side), (hidden,)),
        *((channels, hidden, 1, 1), (channels,)),
    )


def conv_attn_inputs(batch: int, channels: int, pdim: int, height: int, width: int) -> list[Tensor]:
    shapes = (batch, channels, height, width), (batch, pdim, height, width), (batch, pdim, 3, 3)
    return random(*shapes, (channels, channels, 1, 1), (channels,))


def differentiate(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """The result, and the gradients of all inputs, in a dtype."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(torch.float16).to(dtype))]


def assert_close_to_exact(
    kernel: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Errors are at most twice those of torch in the same precision, or small."""
    exact = differentiate(formula, inputs, torch.float64)
    ours, plain = (differentiate(function, inputs, dtype) for function in (kernel, formula))
    for value in ours[:2]:
        assert value.is_contiguous(memory_format=torch.channels_last)
    for place, (right, value, by_torch) in enumerate(zip(exact, ours, plain, strict=True)):
        assert value.dtype == dtype and value.shape == right.shape
        size = right.abs().max()
        error, allowed = ((x - right).abs().max() / size for x in (value, by_torch))
        assert error <= max(2 * allowed, SMALL[dtype]), (place, error, allowed)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize(
    "shape",
    [(1, 64, 80, 3, 5, 18), (2, 16, 20, 3, 4, 16), (3, 5, 7, 5, 3, 2), (1, 48, 33, 7, 1, 1)],
)
def test_conv_ffn(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = conv_ffn_inputs(*shape)
    assert_close_to_exact(triton_conv_ffn, conv_ffn_of_weights, inputs, dtype)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize(
    "shape", [(1, 64, 16, 5, 18), (2, 16, 16, 4, 16), (3, 12, 5, 3, 2), (1, 33, 20, 1, 1)]
)
def test_conv_attn_after_the_large_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = conv_attn_inputs(*shape)
    assert_close_to_exact(triton_conv_attn, conv_attn_formula, inputs, dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_features_does_not_matter(layout: torch.memory_format) -> None:
    x, *weights = (tensor.float() for tensor in conv_ffn_inputs(2, 8, 9, 3, 5, 4))
    x = x.contiguous(memory_format=layout)
    torch.testing.assert_close(triton_conv_ffn(x, *weights), conv_ffn_of_weights(x, *weights))


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        (triton_conv_ffn, conv_ffn_inputs(1, 4, 6, 3, 3, 2)),
        (triton_conv_attn, conv_attn_inputs(2, 6, 4, 3, 2)),
        (triton_conv_ffn_backward, [*random((1, 4, 3, 2)), *conv_ffn_inputs(1, 4, 6, 3, 3, 2)]),
        (triton_conv_attn_backward, [*random((2, 6, 3, 2)), *conv_attn_inputs(2, 6, 4, 3, 2)]),
    ],
)
def test_the_operators_are_well_formed(
    operator: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    forward = operator in (triton_conv_ffn, triton_conv_attn)
    inputs = [x.float().requires_grad_(forward) for x in inputs]
    torch.library.opcheck(operator, tuple(inputs))


def test_gradients_are_the_same_to_the_bit_each_time_and_can_be_differentiated() -> None:
    for kernel, formula, inputs in (
        (triton_conv_ffn, conv_ffn_of_weights, conv_ffn_inputs(2, 5, 7, 3, 5, 18)),
        (triton_conv_attn, conv_attn_formula, conv_attn_inputs(2, 6, 4, 5, 18)),
    ):
        first, second = (differentiate(kernel, inputs, torch.float32) for _ in range(2))
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        twice = []
        for function in (kernel, formula):
            leaves = [x.float().requires_grad_() for x in inputs]
            grads = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
            twice.append(torch.autograd.grad(grads[-2].square().sum(), leaves[0])[0])
        torch.testing.assert_close(*twice)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, proj, *others = (tensor.float() for tensor in conv_ffn_inputs(1, 4, 6, 3, 3, 2))
    with pytest.raises(ValueError, match="esc::triton_conv_ffn: proj_bias has shape"):
        triton_conv_ffn(x, proj[1:], *others)
    x, convolved, *others = (tensor.float() for tensor in conv_attn_inputs(2, 6, 4, 3, 2))
    with pytest.raises(ValueError, match="esc::triton_conv_attn: convolved has shape"):
        triton_conv_attn(x, convolved[:1], *others)
    with pytest.raises(ValueError, match="dtypes are"):
        triton_conv_attn(x, convolved.half(), *others)


@pytest.mark.parametrize("name", ["conv_ffn", "conv_attn"])
def test_layers_run_through_the_kernels_with_gradients_and_without(name: str) -> None:
    torch.manual_seed(0)
    layer = ConvFFN(16, 3, 2) if name == "conv_ffn" else ConvAttn(16, 8, 5)
    if name == "conv_attn":
        torch.nn.init.normal_(layer.plk.dwc_proj[-1].weight)
    x = torch.rand(2, 16, 6, 5)
    parameters = list(layer.parameters())
    with torch.no_grad(), kernels_called() as called:
        layer(x)
    assert called == [f"triton_{name}"]
    with kernels_called() as called:
        out = layer(x)
        grads = torch.autograd.grad(out.square().sum(), parameters)
    assert called == [f"triton_{name}", f"triton_{name}_backward"]
    layer.double()
    with choose.switched_off():
        exact = layer(x.double())
        exact_grads = torch.autograd.grad(exact.square().sum(), list(layer.parameters()))
    for value, right in zip((out, *grads), (exact, *exact_grads), strict=True):
        torch.testing.assert_close(value.double(), right, rtol=1e-4, atol=1e-4)


def test_more_images_than_a_grid_has_places_for_are_left_to_formulas() -> None:
    many = torch.empty(2**16, 8, 2, 2, device="meta")
    weights = [x.to("meta") for x in conv_ffn_inputs(1, 8, 8, 3, 1, 1)[1:]]
    for images, fits in ((many, False), (many[:-1], True)):
        assert conv_ffn_runs(images, *weights) == conv_attn_runs(images) == fits


TINY = {"dim": 16, "pdim": 8, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 2}
TINY |= {"window_size": 8, "num_heads": 2, "upscaling_factor": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_keeps_its_channels_last_and_agrees_with_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = ESC(**TINY).eval()
    x = torch.rand(1, 3, 9, 12)
    with torch.no_grad():
        exact = network.double()(x.double())
        with kernels_called() as called:
            out = network.to(dtype)(x.to(dtype))
    kernels = ["triton_conv_ffn", "triton_window_attention"]
    assert called == [*kernels, *2 * ["triton_conv_ffn", "triton_conv_attn"]]
    torch.testing.assert_close(out.double(), exact, rtol=0, atol={4: 1e-5, 2: 0.03}[dtype.itemsize])


def test_training_with_autocast_runs_through_the_kernels() -> None:
    torch.manual_seed(0)
    network = ESC(**TINY)
    x, gt = torch.rand(2, 3, 9, 12), torch.rand(2, 3, 18, 24)

    def gradients(x: Tensor, gt: Tensor) -> list[Tensor]:
        loss = (network(x).to(gt.dtype) - gt).abs().mean()
        return torch.autograd.grad(loss, list(network.parameters()))

    with kernels_called() as called, torch.autocast("cpu", torch.bfloat16):
        ours = gradients(x, gt)
    layers = {"triton_conv_ffn": 3, "triton_conv_attn": 2, "triton_window_attention": 1}
    for name, count in layers.items():
        assert called.count(name) == called.count(f"{name}_backward") == count
    assert set(called) == {*layers, *(f"{name}_backward" for name in layers)}
    network.double()
    exact = gradients(x.double(), gt.double())
    for value, right in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        assert (value - right).norm() <= 0.06 * right.norm() + 1e-6


def test_torchs_counter_counts_the_kernels_as_their_formulas() -> None:
    def attend(*args: Tensor) -> Tensor:
        return triton_window_attention(*args, 4)[0]

    def attend_as_written(*args: Tensor) -> Tensor:
        return attend_in_windows(naive, *args, 4)

    def count(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[int, int]:
        leaves = [x.float().requires_grad_() for x in inputs]
        with FlopCounterMode(display=False) as forward:
            out = function(*leaves)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(out.sum(), leaves)
        return forward.get_total_flops(), backward.get_total_flops()

    for kernel, formula, inputs in (
        (attend, attend_as_written, random(*3 * [(2, 6, 5, 7)], (2, 49))),
        (triton_conv_ffn, conv_ffn_of_weights, conv_ffn_inputs(2, 5, 7, 3, 5, 4)),
        (triton_conv_attn, conv_attn_formula, conv_attn_inputs(2, 6, 4, 5, 3)),
    ):
        forward, backward = count(kernel, inputs)
        # Of grouped convolutions torch counts too much in the backward.
        assert forward == count(formula, inputs)[0]
        assert backward == 2 * forward > 0


@pytest.mark.skipif("not tells_exports()", reason="this PyTorch compiles formulas")
def test_compiled_training_with_autocast_keeps_the_kernels_in_one_graph_for_all_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launches, "INTERPRETED", True)  # It is quicker.
    torch.manual_seed(0)
    network, graphs = ESC(**TINY), []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
    for height, width in ((9, 12), (16, 11)):
        x, grads = torch.rand(2, 3, height, width), []
        for forward in (network, compiled):
            with torch.autocast("cpu", torch.bfloat16):
                loss = forward(x).float().square().mean()
            grads.append(torch.autograd.grad(loss, list(network.parameters())))
        for ours, eager in zip(*reversed(grads), strict=True):
            assert (ours - eager).norm() <= 0.03 * eager.norm() + 1e-6
    assert len(graphs) == 2  # Forward and backward.
    counts = {"triton_conv_ffn": 3, "triton_conv_attn": 2, "triton_window_attention": 1}
    for graph, suffix in zip(graphs, ("", "_backward"), strict=True):
        for name, count in counts.items():
            assert graph.count(f"esc.{name}{suffix}.default") == count
