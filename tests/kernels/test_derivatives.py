"""Derivatives of every kind through layers whose kernels have only gradients."""

import itertools

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from kernel_checks import kernels_called, needs_kernels

from esc_arch.archs import ESC, ESCFP, ConvAttn, FlashWindowAttn
from esc_arch.archs.escfp import SeparableDynamicConv
from esc_arch.archs.layers import ConvFFN
from esc_arch.kernels.cpu import library as cpu_kernels

LAYERS = {
    "ConvFFN": lambda: ConvFFN(16, 3, 1.5),
    "ConvAttn": lambda: ConvAttn(16, 8, 5),
    "FlashWindowAttn": lambda: FlashWindowAttn(16, 4, 2),
    "FlashWindowAttn SDPA": lambda: FlashWindowAttn(16, 4, 2, "SDPA"),
    "FlashWindowAttn Chunked": lambda: FlashWindowAttn(16, 4, 2, "Chunked"),
    "ESC": lambda: ESC(16, 8, 5, 1, 1, 4, 2, 2),
    "ESCFP": lambda: ESCFP(16, 8, 5, 1, 1, 4, 2, 2),
}


def make(name):
    """Return a layer, the same in float64 (which runs by the formulas), and features."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    wide = LAYERS[name]().double()
    wide.load_state_dict(layer.state_dict())
    return layer, wide, torch.randn(2, 3 if name.startswith("ESC") else 16, 8, 5)


def assert_near(value, expected):
    torch.testing.assert_close(value.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_gives_the_derivative_of_the_formula(name):
    layer, wide, x = make(name)
    direction = torch.randn_like(x)
    step = 1e-6 * direction.double()
    expected = (wide(x.double() + step) - wide(x.double() - step)) / 2e-6
    assert_near(torch.func.jvp(layer, (x,), (direction,))[1], expected)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            out = layer(forward_ad.make_dual(x, direction))
            assert_near(forward_ad.unpack_dual(out).tangent, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_gradients_are_those_of_the_formula(name):
    layer, wide, x = make(name)
    weights = torch.randn(layer(x).shape)

    def twice(layer, x, weights):
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        first = torch.autograd.grad((layer(inputs[0]) * weights).sum(), inputs, create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        second = torch.autograd.grad(penalty, inputs, allow_unused=True)
        return [
            torch.zeros_like(i) if g is None else g for g, i in zip(second, inputs, strict=True)
        ]

    ours = twice(layer, x, weights)
    for value, expected in zip(ours, twice(wide, x.double(), weights.double()), strict=True):
        assert (value.double() - expected).norm() <= 1e-4 * (1 + expected.norm())


@pytest.mark.parametrize("name", LAYERS)
def test_transforms_of_functions_are_those_of_the_formula(name):
    layer, wide, x = make(name)
    grads = torch.func.grad(lambda x: layer(x).square().sum())(x)
    leaf = x.double().requires_grad_()
    assert_near(grads, torch.autograd.grad(wide(leaf).square().sum(), leaf)[0])
    if name.startswith("ESC"):
        return  # torch.vmap knows no channels_last.
    each = torch.func.vmap(lambda image: layer(image[None])[0])(x)
    assert_near(each, wide(x.double()).detach())


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_whatever_alone_requires_them(name):
    layer, wide, x = make(name)
    if name == "ESCFP":
        assert any(isinstance(module, SeparableDynamicConv) for module in layer.modules())
    names = [name for name, _ in layer.named_parameters()]
    groups = [[one] for one in names] + [[], names]
    for module in (layer, wide):
        module.requires_grad_(False)
    for group, of_input in itertools.product(groups, (False, True)):
        if not group and not of_input:
            continue
        found = []
        for module, features in ((layer, x), (wide, x.double())):
            inputs = [module.get_parameter(one).requires_grad_() for one in group]
            features = features.clone().requires_grad_(of_input)
            inputs += [features] if of_input else []
            found.append(torch.autograd.grad(module(features).square().sum(), inputs))
            module.requires_grad_(False)
        for value, expected in zip(*found, strict=True):
            assert (value - expected).norm() <= 1e-4 * expected.norm(), (group, of_input)


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
def test_every_operator_called_by_itself_refuses_to_lose_a_derivative(grad):
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("esc::")]
    assert {"esc::conv_ffn", "esc::conv_ffn_backward", "esc::window_attention"} <= set(names)
    x = torch.randn(1, 16, 4, 4)
    if not hasattr(torch._C, "_any_requires_grad"):
        # PyTorch 2.4 refuses once an operator with gradients has run, see the next test, which
        # these arguments do not let it.
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        names = [name for name in names if not has_kernel(name, "Autograd")]
    assert len(names) > 5
    for name in names:
        operator = getattr(torch.ops.esc, name.partition("::")[2]).default
        tensors = [isinstance(a.type, torch.TensorType) for a in operator._schema.arguments]
        for place, is_tensor in enumerate(tensors):
            if not is_tensor:
                continue

            def call(value, operator=operator, tensors=tensors, place=place):
                args = [x if is_tensor else 4 for is_tensor in tensors]
                args[place] = value
                return operator(*args)

            refused = pytest.raises(
                (NotImplementedError, RuntimeError), match="in forward mode|forward mode AD"
            )
            with torch.set_grad_enabled(grad):
                with forward_ad.dual_level(), refused:
                    call(forward_ad.make_dual(x, torch.ones_like(x)))
                for transform in (torch.func.jacfwd(call), torch.vmap(torch.func.jacfwd(call))):
                    with refused:
                        transform(x)
                with refused:
                    torch.func.jvp(call, (x,), (x,))


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
def test_an_operator_that_could_run_refuses_to_lose_a_derivative(grad):
    x, kernels = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 3, 3)

    def call(value):
        return torch.ops.esc.depthwise_conv.default(value, kernels)

    assert call(x).shape == x.shape
    refused = pytest.raises(NotImplementedError, match="has no derivative in forward mode")
    if not hasattr(torch._C, "_any_requires_grad"):
        # PyTorch 2.4 refuses by itself what has gradients.
        told = "has no derivative in forward mode|autograd.Func"
        refused = pytest.raises((NotImplementedError, RuntimeError), match=told)
    with torch.set_grad_enabled(grad):
        with forward_ad.dual_level(), refused:
            call(forward_ad.make_dual(x, torch.ones_like(x)))
        with refused:
            torch.func.jvp(call, (x,), (x,))
        with refused:
            torch.func.jacfwd(call)(x)


def test_training_steps_run_the_kernels_forwards_and_backwards():
    layer, _, x = make("ESC")
    with kernels_called() as called:
        layer(x).sum().backward()
    expected = {"conv_ffn", "conv_ffn_backward", "symmetric_conv", "symmetric_conv_weight"}
    expected |= {"window_attention", "window_attention_backward"}
    assert set(called) == (expected if cpu_kernels.is_built() else set())
