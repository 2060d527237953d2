"""The ConvFFN's kernel against its layers in float64."""

import pytest
import torch
from kernel_checks import (
    assert_computes,
    choose_bfloat16,
    force,
    kernels_called,
    needs_kernels,
    relative_error,
)
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from esc_arch.archs.layers import ConvFFN
from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels

if cpu_kernels.is_built():
    from esc_arch.kernels.cpu.fused_conv_ffn import fused_conv_ffn, fused_conv_ffn_backward


def layer_of(dim, kernel_size, ratio):
    torch.manual_seed(0)
    return ConvFFN(dim, kernel_size, ratio)


def call(layer, names):
    """The layer as a function of its input and its weights."""
    return lambda x, *weights: torch.func.functional_call(
        layer, dict(zip(names, weights, strict=True)), (x,)
    )


SHAPES = [
    (64, 3, 1.25, 1, 35, 70),  # ESC's own, more than a tile
    (16, 3, 1.3, 2, 33, 65),  # hidden channels that are no multiple of a vector
    (48, 5, 1.5, 1, 5, 3),
    (32, 7, 1, 1, 4, 40),
    (16, 1, 2, 3, 1, 1),
]
SHAPE = ("dim", "kernel_size", "ratio", "batch", "height", "image_width")


@needs_kernels
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(SHAPE, SHAPES)
def test_the_kernel_computes_the_formula_and_its_gradients(
    dim, kernel_size, ratio, batch, height, image_width, width, threads, monkeypatch
):
    force(monkeypatch, width, threads)
    layer = layer_of(dim, kernel_size, ratio)
    names, weights = zip(*layer.named_parameters(), strict=True)
    x = 3 * torch.randn(batch, dim, height, image_width)
    function = call(layer, names)
    with kernels_called() as called:
        layer(x)
    assert called == ["conv_ffn"]
    assert_computes(function, function, [x, *weights])


@needs_kernels
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(SHAPE, SHAPES)
def test_bfloat16_is_rounded_seldom(
    dim, kernel_size, ratio, batch, height, image_width, amx, threads, monkeypatch
):
    choose_bfloat16(monkeypatch, amx, threads)
    layer = layer_of(dim, kernel_size, ratio).bfloat16()
    names, weights = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(batch, dim, height, image_width).bfloat16()
    function = call(layer, names)
    assert_computes(function, function, [x, *weights], tolerance=6e-3)


@needs_kernels
@pytest.mark.parametrize("amx", [True, False])
def test_autocast_trains_float32_weights_in_bfloat16(amx, monkeypatch):
    choose_bfloat16(monkeypatch, amx, 1)
    layer = layer_of(32, 3, 2)
    x = torch.randn(2, 32, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        with kernels_called() as called:
            out = layer(x)
    assert called == ["conv_ffn"]
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    exact = layer_of(32, 3, 2).double()
    expected = exact(x.double())
    expected.square().sum().backward()
    assert relative_error(out, expected) < 1e-2
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert relative_error(ours.grad, theirs.grad) < 2e-2


@needs_kernels
def test_gelu_is_exact_far_out():
    layer = nn.Module()
    layer.proj, layer.dwc, layer.aggr = (
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 1, groups=16),
        nn.Conv2d(16, 16, 1),
    )
    for conv, weight in ((layer.proj, torch.eye(16)), (layer.aggr, torch.eye(16))):
        conv.weight.data = weight[:, :, None, None].clone()
    layer.dwc.weight.data.zero_()
    for conv in (layer.proj, layer.dwc, layer.aggr):
        conv.bias.data.zero_()
    x = torch.linspace(-40, 40, 16 * 4001).reshape(1, 16, -1, 1).requires_grad_()
    weights = [w for conv in (layer.proj, layer.dwc, layer.aggr) for w in conv.parameters()]
    out = fused_conv_ffn(x, *weights)
    expected = nn.functional.gelu(x.double())
    assert (out - expected).abs().div(1 + x.abs()).max() < 3e-7
    slope = torch.autograd.grad(out.sum(), x)[0]
    wanted = torch.autograd.grad(expected.sum(), x)[0]
    assert (slope - wanted).abs().max() < 5e-7


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_hidden(dtype):
    layer = layer_of(16, 3, 2).to(dtype)
    for value in (float("nan"), float("inf")):
        x = torch.randn(1, 16, 9, 9).to(dtype)
        x[0, 3, 4, 4] = value
        assert not layer(x)[0, :, 4, 4].isfinite().any()


def test_hooks_and_wrapped_layers_are_heard():
    layer = layer_of(16, 3, 2)
    x = torch.randn(1, 16, 6, 6)
    plain = layer(x)
    seen = []
    for name in ("proj", "dwc", "aggr"):
        hook = getattr(layer, name).register_forward_hook(lambda *_, name=name: seen.append(name))
        torch.testing.assert_close(layer(x), plain)
        hook.remove()
    assert seen == ["proj", "dwc", "aggr"]
    layer.aggr = nn.Sequential(layer.aggr, nn.Threshold(1e9, 0))
    assert layer(x).eq(0).all()
    layer = layer_of(16, 3, 2)
    spectral_norm(layer.proj)
    assert not layer(x).allclose(plain)


@needs_kernels
def test_channels_that_do_not_fill_vectors_go_through_the_layers():
    layer = layer_of(12, 3, 2)
    x = torch.randn(1, 12, 6, 6)
    with choose.switched_off():
        expected = layer(x)
    with kernels_called() as called:
        assert torch.equal(layer(x), expected)
    assert not called


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_declare_themselves_to_torch_as_they_are(dtype):
    weights = list(layer_of(16, 3, 1.25).to(dtype).parameters())
    x, grad = torch.randn(2, 2, 16, 5, 6).to(dtype).unbind(0)
    torch.library.opcheck(fused_conv_ffn, (x.requires_grad_(), *weights))
    detached = [t.detach() for t in (grad, x, *weights)]
    torch.library.opcheck(fused_conv_ffn_backward, tuple(detached))


@needs_kernels
@pytest.mark.parametrize("value", [1.0, 5.6, 6.0, 100.0, 1e4, 1e10, 1e30])
def test_gelu_is_exact_to_a_share_of_what_it_is_given(value):
    one = torch.eye(16)[..., None, None]
    none = torch.zeros(16)
    x = torch.tensor([value, -value]).repeat(8).view(1, 16, 1, 1).requires_grad_()
    weights = one, none, torch.zeros(16, 1, 3, 3), none, one, none
    out = fused_conv_ffn(x, *weights)
    (slope,) = torch.autograd.grad(out.sum(), x)
    wide = x.detach().double().requires_grad_()
    expected = torch.nn.functional.gelu(wide)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    assert ((out - expected).abs() <= 1.5e-7 * wide.abs()).all()
    assert ((slope - wanted).abs() <= 3e-7).all()
