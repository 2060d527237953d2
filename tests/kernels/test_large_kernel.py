"""ConvAttn's convolutions against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import (
    assert_computes,
    choose_bfloat16,
    force,
    kernels_called,
    needs_kernels,
    relative_error,
)

from esc_arch.archs.conv_attn import ConvAttn
from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops import d4_mean, long_range_dynamic_conv, separable_dynamic_conv

if cpu_kernels.is_built():
    from esc_arch.kernels.cpu import fused_conv_attn, fused_depthwise
    from esc_arch.kernels.cpu.fused_conv_attn import distinct_taps

SHAPES = [
    (2, 16, 37, 70, 13),  # more than a tile, ESC's channels
    (1, 8, 5, 3, 7),  # smaller than the kernel
    (1, 20, 33, 130, 5),  # channels that are no multiple of a vector
    (3, 3, 1, 1, 13),
    (1, 16, 20, 20, 1),
    (2, 5, 18, 65, 3),
]


def random_inputs(batch, channels, height, width, kernel_size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, 2 * channels, generator=generator)
    weights = torch.randn(channels, channels, kernel_size, kernel_size, generator=generator)
    kernels = torch.randn(batch, channels, 3, 3, generator=generator)
    # The first half of the channels, side by side, as ConvAttn takes them.
    return x.permute(0, 3, 1, 2)[:, :channels], weights, kernels


def each_image_by_itself(x, weights, kernels):
    """The formula, with the kernel made symmetric by hand."""
    turned = [torch.rot90(w, k, (2, 3)) for w in (weights, weights.flip(3)) for k in range(4)]
    symmetric = sum(turned) / 8
    padding = weights.shape[-1] // 2
    images = [
        F.conv2d(image[None], symmetric, padding=padding)
        + F.conv2d(image[None], kernel[:, None], padding=1, groups=len(image))
        for image, kernel in zip(x, kernels, strict=True)
    ]
    return torch.cat(images)


def ours(x, weights, kernels):
    return long_range_dynamic_conv(x, d4_mean(weights), kernels)


@needs_kernels
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_computes_the_formula_and_its_gradients(shape, width, threads, monkeypatch):
    force(monkeypatch, width, threads)
    assert_computes(ours, each_image_by_itself, random_inputs(*shape))


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_rounded_seldom(shape):
    inputs = [t.bfloat16() for t in random_inputs(*shape)]
    # The mean over the group D4 is rounded.
    assert_computes(ours, each_image_by_itself, inputs, tolerance=8e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_torchs_convolutions_compute_the_formula_and_its_gradients(shape):
    with choose.switched_off():
        assert_computes(ours, each_image_by_itself, random_inputs(*shape))


@needs_kernels
def test_a_symmetric_kernel_of_13_has_28_weights():
    kernel = d4_mean(torch.randn(4, 3, 13, 13))
    taps = distinct_taps(kernel)
    assert taps.shape == (28, 3, 4)
    away = torch.arange(-6, 7).abs()
    near = torch.minimum(away[:, None], away)
    far = torch.maximum(away[:, None], away)
    pairs = [(e, d) for e in range(7) for d in range(e, 7)]
    for tap, (e, d) in zip(taps, pairs, strict=True):
        alike = kernel[:, :, (near == e) & (far == d)]
        torch.testing.assert_close(alike, tap.t()[..., None].expand_as(alike))


def depthwise_of_each_image(x, kernels):
    images = [
        F.conv2d(image[None], kernel[:, None], padding=kernel.shape[-1] // 2, groups=len(image))
        for image, kernel in zip(x, kernels, strict=True)
    ]
    return torch.cat(images)


@needs_kernels
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_depthwise_kernel_computes_the_formula_and_its_gradients(
    shape, width, threads, monkeypatch
):
    force(monkeypatch, width, threads)
    x = random_inputs(*shape)[0]
    generator = torch.Generator().manual_seed(2)
    kernels = torch.randn(*x.shape[:2], shape[-1], shape[-1], generator=generator)
    assert_computes(separable_dynamic_conv, depthwise_of_each_image, [x, kernels])
    with choose.switched_off():
        assert_computes(separable_dynamic_conv, depthwise_of_each_image, [x, kernels])


@needs_kernels
def test_the_kernels_run_for_what_they_take_and_never_in_a_trace():
    inputs = random_inputs(1, 16, 8, 8, 5)
    with kernels_called() as called:
        ours(*inputs)
        ours(*(t.bfloat16() for t in inputs))
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(*inputs).dtype == torch.bfloat16
        assert called == ["symmetric_conv"] * 3
        ours(*(t.double() for t in inputs))
        with torch.autocast("cpu", torch.float16):
            ours(*inputs)
        with choose.switched_off():
            ours(*inputs)
        assert called == ["symmetric_conv"] * 3
    traced = torch.jit.trace(ours, inputs, check_trace=False)
    assert "esc::" not in str(traced.graph)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_declare_themselves_to_torch_as_they_are(dtype):
    x, weights, kernels = (t.to(dtype) for t in random_inputs(2, 4, 6, 5, 5))
    taps = distinct_taps(d4_mean(weights))
    leaves = [t.detach().requires_grad_() for t in (x, taps, kernels)]
    grad = torch.randn(2, 4, 6, 5).to(dtype)
    torch.library.opcheck(fused_conv_attn.symmetric_conv, (*leaves, 5))
    torch.library.opcheck(fused_conv_attn.symmetric_conv_weight, (x, grad, 5))
    torch.library.opcheck(fused_depthwise.depthwise_conv, (leaves[0], leaves[2]))
    torch.library.opcheck(fused_depthwise.depthwise_conv_weight, (x, grad, 3))


@needs_kernels
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dim", "pdim"), [(64, 16), (16, 6), (48, 48)])
def test_all_of_conv_attn_in_one_pass_is_its_layers(dim, pdim, width, threads, monkeypatch):
    force(monkeypatch, width, threads)
    torch.manual_seed(0)
    module = ConvAttn(dim, pdim, 5)
    torch.nn.init.normal_(module.plk.dwc_proj[-1].weight)
    x = torch.randn(2, dim, 19, 70)
    kernel = d4_mean(module.plk_filter)
    with torch.no_grad():
        with kernels_called() as called:
            out = module(x, kernel)
        assert called == ["conv_attn"]
        expected = module.double()(x.double(), kernel.double())
    assert relative_error(out, expected) < 3e-6


@needs_kernels
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("dim", "pdim", "kernel_size", "height", "width"),
    [
        (64, 16, 13, 35, 70),
        (48, 16, 5, 3, 130),
        (16, 16, 3, 1, 1),
        (16, 16, 1, 9, 9),
        (16, 6, 5, 9, 9),
    ],
)
def test_all_of_conv_attn_in_bfloat16_is_its_layers(
    dim, pdim, kernel_size, height, width, amx, threads, monkeypatch
):
    choose_bfloat16(monkeypatch, amx, threads)
    torch.manual_seed(0)
    module = ConvAttn(dim, pdim, kernel_size).bfloat16()
    torch.nn.init.normal_(module.plk.dwc_proj[-1].weight)
    x = torch.randn(2, dim, height, width).bfloat16()
    kernel = d4_mean(module.plk_filter)
    with torch.no_grad():
        # What each image's own kernels are made from is for torch to compute.
        kernels = module.plk.kernels(x[:, :pdim])
        monkeypatch.setattr(module.plk, "kernels", lambda _: kernels)
        with kernels_called() as called:
            out = module(x, kernel)
        assert called == ["conv_attn"]
        assert out.dtype == torch.bfloat16
        module.double()
        monkeypatch.setattr(module.plk, "kernels", lambda _: kernels.double())
        expected = module(x.double(), kernel.double())
    assert relative_error(out, expected) < 6e-3


@needs_kernels
def test_conv_attn_goes_through_its_layers_where_they_are_wanted():
    module = ConvAttn(16, 8, 5)
    x = torch.randn(1, 16, 6, 6)
    kernel = d4_mean(module.plk_filter)
    module(x, kernel).sum().backward()
    assert module.aggr.weight.grad is not None
    with torch.no_grad():
        plain = module(x, kernel)
        for layer in (module.plk, module.aggr):
            seen = []
            hook = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            torch.testing.assert_close(module(x, kernel), plain)
            hook.remove()
            assert seen
