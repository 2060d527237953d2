"""What runs: kernels where they may stand for layers, and formulas everywhere else."""

import pytest
import torch
from kernel_checks import kernels_called, needs_kernels, tells_exports
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from esc_arch import ops
from esc_arch.archs import ESC, ESCFP, ConvAttn, ESCReal
from esc_arch.archs.layers import ConvFFN
from esc_arch.errors import UserError
from esc_arch.kernels import choose
from esc_arch.ops import attention, convolutions, d4_mean, feature_attention, window_attention

SMALL = dict(dim=16, pdim=8, kernel_size=5, n_blocks=1, conv_blocks=2, window_size=8, num_heads=2)
NETWORKS = {
    "ESC": lambda: ESC(**SMALL, upscaling_factor=2),
    "ESCFP": lambda: ESCFP(**SMALL, upscaling_factor=2),
    "ESCReal": lambda: ESCReal(**SMALL),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_is_one_graph_that_holds_the_kernels(name, grad):
    from torch import _dynamo

    network, x = NETWORKS[name](), torch.rand(1, 3, 16, 16)
    with torch.set_grad_enabled(grad):
        _dynamo.reset()
        explained = _dynamo.explain(network)(x)
        with kernels_called() as called:
            network(x)
    assert explained.graph_break_count == 0, explained.break_reasons
    nodes = [str(node.target) for graph in explained.graphs for node in graph.graph.nodes]
    in_graph = [node.split(".")[1] for node in nodes if node.startswith("esc.")]
    if not tells_exports():
        assert not in_graph
        return
    assert sorted(in_graph) == sorted(called)


@pytest.mark.parametrize("grad", [False, True])
def test_a_compiled_network_gives_what_it_gives_uncompiled(grad):
    network, x = NETWORKS["ESC"](), torch.rand(1, 3, 16, 12)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        expected = network(x)
        out = compiled(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    if grad:
        grads = torch.autograd.grad(out.square().sum(), list(network.parameters()))
        wanted = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
        for value, one in zip(grads, wanted, strict=True):
            torch.testing.assert_close(value, one, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attn_type", ["Auto", "Fused", "SDPA"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_trace_or_export_holds_a_kernel(name, attn_type):
    network, x = NETWORKS[name]().eval(), torch.rand(1, 3, 8, 8)
    for module in network.modules():
        if hasattr(module, "attn_type"):
            module.attn_type = attn_type
    traced = torch.jit.trace(network, x, check_trace=False)
    exported = torch.export.export(network, (x,))
    assert "esc::" not in str(traced.inlined_graph)
    assert "esc." not in str(exported.graph)
    assert "esc." not in str(torch.export.export(network, (x,), strict=True).graph)
    with torch.no_grad():
        expected = network(x) if attn_type != "Fused" else None
    for other in (traced, exported.module()) if expected is not None else ():
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(other(x), expected, atol=1e-5, rtol=1e-4)


def test_the_newest_pytorch_tells_exports():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert tells_exports() or version < (2, 14)


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops(), {str(f) for f in counter.get_flop_counts()["Global"]}


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_flop_counters_count_the_formulas_whether_kernels_run_or_not(name):
    network, x = NETWORKS[name](), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        ours, _ = count(lambda: network(x))
        network.blocks[0].attn.attn_type = attn_type(off=True)
        with choose.switched_off():
            assert count(lambda: network(x))[0] == ours > 0


def attn_type(off):
    """The formula's, where kernels are off: what torch computes on the CPU is not counted."""
    return "Naive" if off else "Auto"


def operations(grad):
    ffn, module = ConvFFN(16, 3, 2), ConvAttn(16, 8, 5)
    x, kernels, table = torch.rand(2, 16, 8, 12), torch.rand(2, 16, 3, 3), torch.rand(2, 49)
    symmetric = d4_mean(torch.rand(16, 16, 5, 5))
    for tensor in (x, kernels, table, symmetric):
        tensor.requires_grad_(grad)
    return {
        "conv_ffn": lambda: ffn(x),
        "conv_attn": lambda: ops.conv_attn(x, d4_mean(module.plk_filter), module.plk, module.aggr),
        "symmetric_conv": lambda: ops.long_range_dynamic_conv(x, symmetric, kernels),
        "depthwise_conv": lambda: ops.separable_dynamic_conv(x, kernels),
        "window_attention": lambda: ops.feature_attention(
            x, x, x, table, 4, attn_type(off=choose.are_off())
        ),
    }


@needs_kernels
@pytest.mark.parametrize("name", operations(False))
def test_operators_are_counted_as_their_formulas_and_their_gradients_twice(name, monkeypatch):
    operation = operations(False)[name]
    monkeypatch.setattr(choose, "_is_heard", lambda _: False)  # The counter listens to layers.
    with torch.no_grad():
        flops, counted = count(operation)
        assert f"esc.{name}" in counted
        with choose.switched_off():
            assert count(operation)[0] == flops
    if name != "conv_attn":  # Which has no gradients of its own.
        operation = operations(True)[name]
        assert count(lambda: operation().sum().backward())[0] == 3 * flops


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_on_every_layer_are_heard(name):
    network, x = NETWORKS[name](), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        plain = network(x)
        for path, module in network.named_modules():
            if isinstance(module, nn.ModuleList):
                continue
            for register in ("register_forward_hook", "register_forward_pre_hook"):
                seen = []
                hook = getattr(module, register)(lambda *_, seen=seen: seen.append(1))
                torch.testing.assert_close(network(x), plain, atol=1e-5, rtol=1e-4)
                hook.remove()
                assert seen, path
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(id(m)))
    try:
        network(x)
    finally:
        hook.remove()
    called = {id(m) for m in network.modules() if not isinstance(m, nn.ModuleList)}
    assert called <= set(seen)


class LowRank(nn.Module):
    """A convolution with a correction, as adapters wrap them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.correction = nn.Conv2d(layer.in_channels, layer.out_channels, 1)

    def forward(self, x):
        return self.layer(x) + self.correction(x)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(layer):
    new = Doubled(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    new.load_state_dict(layer.state_dict())
    return new


def without_bias(layer):
    layer.bias = None
    return layer


def reflecting(layer):
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        padding=layer.padding,
        groups=layer.groups,
        padding_mode="reflect",
    )


def with_own_forward(layer):
    layer.forward = lambda x: 3 * nn.Conv2d.forward(layer, x)
    return layer


@pytest.mark.parametrize("replace", [LowRank, doubled, without_bias, with_own_forward, reflecting])
def test_layers_that_were_replaced_are_called(replace):
    """Against the formulas, which call every layer."""
    network, x = NETWORKS["ESC"](), torch.rand(1, 3, 8, 8)
    block = network.blocks[0]
    places = [(block.convffns[0], name) for name in ("proj", "dwc", "aggr")]
    places += [(block.pconvs[0], "aggr"), (block.attn, "to_qkv"), (block.attn, "to_out")]
    for parent, name in places:
        layer = getattr(parent, name)
        if replace in (LowRank,) and layer.groups > 1:
            continue
        setattr(parent, name, replace(layer))
        with torch.no_grad():
            out = network(x)
            with choose.switched_off():
                torch.testing.assert_close(out, network(x), atol=1e-5, rtol=1e-4)


def test_a_kernel_registered_for_a_device_runs_there_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(choose, "_kernels", {})
    asked, layer = [], ConvFFN(16, 3, 2)

    def takes(x, *_):
        asked.append(x.shape)
        return x.shape[0] == 1

    @choose.register("conv_ffn", "cpu", takes=takes)
    def conv_ffn(x, *weights):
        return torch.zeros_like(x)

    with torch.no_grad():
        assert not layer(torch.ones(1, 16, 4, 4)).any()
        assert layer(torch.ones(2, 16, 4, 4)).any()
        assert len(asked) == 2
        assert layer.to("meta")(torch.ones(1, 16, 4, 4, device="meta")).shape == (1, 16, 4, 4)
    assert len(asked) == 2
    with pytest.raises(ValueError, match="operation is 'conv_fft'; it must be one of conv_ffn"):
        choose.register("conv_fft", "cpu")


def test_kernels_of_attention_asked_for_by_name_run_or_say_what_they_lack():
    q = torch.rand(1, 8, 8, 8, dtype=torch.float64)
    with pytest.raises(UserError, match="attn_type 'Fused' cannot run here: it needs the CPU"):
        feature_attention(q, q, q, torch.zeros(2, 49, dtype=torch.float64), 4, "Fused")


class Functions(TorchFunctionMode):
    """Notes which of torch's functions are called."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.called.add(function)
        return function(*args, **(kwargs or {}))


def test_on_devices_that_have_neither_kernels_nor_autocast_attention_is_torchs():
    # As on Apple's MPS and Intel's XPU. Tensors on `meta` have shapes and no values.
    network, x = NETWORKS["ESC"]().to("meta"), torch.empty(1, 3, 10, 12, device="meta")
    with Functions() as functions, kernels_called() as kernels:
        out = network(x)
        out.sum().backward()
    assert out.shape == (1, 3, 20, 24)
    assert all(p.grad is not None for p in network.parameters())
    assert torch.nn.functional.scaled_dot_product_attention in functions.called
    assert not kernels


@pytest.mark.parametrize("name", attention.KERNELS)
def test_a_kernel_asked_for_on_another_device_says_what_it_lacks(name):
    network = ESC(**SMALL, upscaling_factor=2, attn_type=name).to("meta")
    with pytest.raises(UserError, match="cannot run here: it needs"):
        network(torch.empty(1, 3, 8, 8, device="meta"))


def test_shapes_that_do_not_fit_are_named():
    network = NETWORKS["ESC"]()
    network.blocks[0].attn.window_size = 16
    with pytest.raises(ValueError, match=r"bias_table has shape \(2, 225\); windows of 16 need"):
        network(torch.rand(1, 3, 16, 16))
    x = torch.rand(1, 8, 4, 4)
    with pytest.raises(ValueError, match="large_kernel has shape"):
        convolutions.long_range_dynamic_conv(x, torch.rand(4, 4, 5, 5), torch.rand(1, 8, 3, 3))
    with pytest.raises(ValueError, match="must end in"):
        convolutions.separable_dynamic_conv(x, torch.rand(1, 8, 4, 4))
    with pytest.raises(ValueError, match="they must be alike"):
        window_attention(*torch.rand(3, 1, 2, 9, 4).unbind(0), torch.zeros(2, 49), 4)
