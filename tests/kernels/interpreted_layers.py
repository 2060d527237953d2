"""The GPU kernels of ConvFFN and ConvAttn, run by Triton's interpreter, against float64.

test_triton_kernels.py runs this in a process of its own.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from interpreter import launched_as_on_gpus, products_of_bfloat16  # noqa: F401
from kernel_checks import kernels_called
from torch import Tensor

from esc_arch.archs import ESC
from esc_arch.archs.conv_attn import ConvAttn
from esc_arch.archs.layers import ConvFFN
from esc_arch.kernels import choose
from esc_arch.kernels.gpu import pixel_layers as gpu
from esc_arch.kernels.gpu import triton_backend
from esc_arch.ops.convolutions import conv_ffn_of_weights

# Errors that are small whatever torch's own are: some units in the last place. The interpreter cuts
# numbers to bfloat16 where GPUs round.
SMALL = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def kernels_tried() -> None:
    """What is noted of calls must not be the first trial of a kernel."""
    for name in ("attention", "conv_ffn", "conv_attn"):
        assert triton_backend.works(name, torch.empty(0))


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


def assert_close_to_exact(
    kernel: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Errors are at most twice those of torch in the same precision, or small."""
    exact, narrow = formula(*inputs), [x.to(dtype) for x in inputs]
    out, plain = kernel(*narrow), formula(*narrow)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    error, allowed = ((x - exact).abs().max() / exact.abs().max() for x in (out, plain))
    assert error <= max(2 * allowed, SMALL[dtype]), (error, allowed)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize(
    "shape",
    [(1, 64, 80, 3, 5, 18), (2, 16, 20, 3, 4, 16), (3, 5, 7, 5, 3, 2), (1, 48, 33, 7, 1, 1)],
)
def test_conv_ffn(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = conv_ffn_inputs(*shape)
    assert_close_to_exact(gpu.triton_conv_ffn, conv_ffn_of_weights, inputs, dtype)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize(
    "shape", [(1, 64, 16, 5, 18), (2, 16, 16, 4, 16), (3, 12, 5, 3, 2), (1, 33, 20, 1, 1)]
)
def test_conv_attn_after_the_large_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = conv_attn_inputs(*shape)
    assert_close_to_exact(gpu.triton_conv_attn, gpu.conv_attn_formula, inputs, dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_features_does_not_matter(layout: torch.memory_format) -> None:
    x, *weights = (tensor.float() for tensor in conv_ffn_inputs(2, 8, 9, 3, 5, 4))
    x = x.contiguous(memory_format=layout)
    torch.testing.assert_close(gpu.triton_conv_ffn(x, *weights), conv_ffn_of_weights(x, *weights))


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        (gpu.triton_conv_ffn, conv_ffn_inputs(1, 4, 6, 3, 3, 2)),
        (gpu.triton_conv_attn, conv_attn_inputs(2, 6, 4, 3, 2)),
    ],
)
def test_the_operators_are_well_formed_and_have_the_gradients_of_the_formulas(
    operator: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    inputs = [x.float().requires_grad_() for x in inputs]
    torch.library.opcheck(operator, tuple(inputs))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, proj, *others = (tensor.float() for tensor in conv_ffn_inputs(1, 4, 6, 3, 3, 2))
    with pytest.raises(ValueError, match="esc::triton_conv_ffn: proj_bias has shape"):
        gpu.triton_conv_ffn(x, proj[1:], *others)
    x, convolved, *others = (tensor.float() for tensor in conv_attn_inputs(2, 6, 4, 3, 2))
    with pytest.raises(ValueError, match="esc::triton_conv_attn: convolved has shape"):
        gpu.triton_conv_attn(x, convolved[:1], *others)
    with pytest.raises(ValueError, match="dtypes are"):
        gpu.triton_conv_attn(x, convolved.half(), *others)


@pytest.mark.parametrize("name", ["conv_ffn", "conv_attn"])
def test_layers_run_through_the_kernels_where_no_gradients_are_wanted(name: str) -> None:
    torch.manual_seed(0)
    layer = ConvFFN(16, 3, 2) if name == "conv_ffn" else ConvAttn(16, 8, 5)
    if name == "conv_attn":
        torch.nn.init.normal_(layer.plk.dwc_proj[-1].weight)
    x = torch.rand(2, 16, 6, 5)
    with torch.no_grad(), kernels_called() as called:
        out = layer(x)
    assert called == [f"triton_{name}"]
    with kernels_called() as called:
        torch.testing.assert_close(layer(x).detach(), out)
    assert f"triton_{name}" not in called
    with torch.no_grad(), choose.switched_off():
        torch.testing.assert_close(layer(x), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_keeps_its_channels_last_and_agrees_with_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "pdim": 8, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 2}
    network = ESC(**options, window_size=8, num_heads=2, upscaling_factor=2).eval()
    x = torch.rand(1, 3, 9, 12)
    with torch.no_grad():
        exact = network.double()(x.double())
        with kernels_called() as called:
            out = network.to(dtype)(x.to(dtype))
    kernels = ["triton_conv_ffn", "triton_window_attention"]
    assert called == [*kernels, *2 * ["triton_conv_ffn", "triton_conv_attn"]]
    torch.testing.assert_close(out.double(), exact, rtol=0, atol={4: 1e-5, 2: 0.03}[dtype.itemsize])
