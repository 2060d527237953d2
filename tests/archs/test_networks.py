import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY

from esc_arch.archs import ConvAttn, FlashWindowAttn
from esc_arch.errors import UserError
from esc_arch.ops.geometry import d4_mean

SMALL = {
    "dim": 16,
    "pdim": 8,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 2,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
}
NETWORKS = [
    {"type": "ESC", **SMALL, "upscaling_factor": 2},
    {"type": "ESC", **SMALL, "upscaling_factor": 3, "use_ln": True},
    {"type": "ESC", **SMALL, "upscaling_factor": 2, "attn_type": "FlashBias", "flashbias_rank": 4},
    {"type": "ESCFP", **SMALL, "upscaling_factor": 4},
    {"type": "ESCReal", **SMALL},
    {"type": "ESCReal", **SMALL, "use_dysample": True},
]
MODULES = [
    {"type": "ConvAttn", "dim": 16, "pdim": 8, "kernel_size": 5},
    {"type": "FlashWindowAttn", "dim": 16, "window_size": 8, "num_heads": 2},
]


def build_random(opt):
    """Build with every parameter random, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    network = build_network(opt)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("opt", NETWORKS + MODULES, ids=lambda opt: opt["type"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 17), (13, 8), (16, 24)])
def test_any_size_and_batch_work_and_batching_changes_nothing(opt, size):
    network = build_random(opt).eval()
    scale = opt.get("upscaling_factor", 4 if opt["type"] == "ESCReal" else 1)
    x = torch.rand(3, 3 if "n_blocks" in opt else 16, *size)
    before = x.clone()
    with torch.no_grad():
        out = network(x)
        one_by_one = torch.cat([network(sample[None]) for sample in x])
    assert out.shape == (3, x.shape[1], scale * size[0], scale * size[1])
    torch.testing.assert_close(out, one_by_one, atol=1e-5, rtol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("opt", NETWORKS + MODULES, ids=lambda opt: opt["type"])
def test_train_and_eval_are_the_same_function(opt):
    network = build_random(opt)
    x = torch.rand(2, 3 if "n_blocks" in opt else 16, 11, 20)
    with_gradients = network.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), with_gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("opt", NETWORKS + MODULES, ids=lambda opt: opt["type"])
def test_gradients_reach_every_parameter(opt):
    network = build_random(opt)
    x = torch.rand(2, 3 if "n_blocks" in opt else 16, 11, 20)
    network(x).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_dysample_at_zero_offsets_samples_bilinearly():
    network = build_random({"type": "ESCReal", **SMALL, "use_dysample": True})
    upsampler = network.to_img
    with torch.no_grad():
        upsampler.offset.weight.zero_()
        upsampler.offset.bias.zero_()
    x = torch.randn(2, 16, 5, 7)
    bilinear = torch.nn.functional.interpolate(
        x, scale_factor=4, mode="bilinear", align_corners=False
    )
    # The initial positions are those of the subpixels' centres, so bilinear upsampling results.
    torch.testing.assert_close(upsampler(x), upsampler.end_conv(bilinear), atol=1e-4, rtol=1e-4)


def test_conv_attn_alone_and_within_esc_are_the_same_class_and_function():
    alone = build_random(MODULES[0])
    shared = ConvAttn(16, 8, kernel_size=None)
    state = alone.state_dict()
    kernel = state.pop("plk_filter")
    shared.load_state_dict(state)
    x = torch.rand(2, 16, 9, 10)
    torch.testing.assert_close(alone(x), shared(x, d4_mean(kernel)))
    network = build_network(NETWORKS[0])
    assert type(network.blocks[0].pconvs[0]) is ARCH_REGISTRY.get("ConvAttn")
    assert type(network.blocks[0].attn) is ARCH_REGISTRY.get("FlashWindowAttn")


def test_conv_attn_convolves_as_written():
    """Against per-sample, per-channel sums over a zero-padded neighbourhood."""
    module = build_random(MODULES[0]).double()
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    large = d4_mean(module.plk_filter)
    expected = x.clone()
    padded = torch.nn.functional.pad(x[:, :8], (2, 2, 2, 2))
    for sample in range(2):
        pooled = x[sample : sample + 1, :8].mean((2, 3), keepdim=True)
        hidden = torch.nn.functional.gelu(module.plk.dwc_proj[1](pooled))
        small = module.plk.dwc_proj[3](hidden).view(8, 3, 3)
        for c in range(8):
            for i in range(4):
                for j in range(5):
                    patch = padded[sample, :, i : i + 5, j : j + 5]
                    expected[sample, c, i, j] = (patch * large[c]).sum() + (
                        patch[c, 1:4, 1:4] * small[c]
                    ).sum()
    torch.testing.assert_close(module(x), module.aggr(expected))


def test_a_starting_conv_attn_generates_no_kernel_and_an_orthogonal_large_one():
    module = ConvAttn(16, 8, 5)
    assert not module.plk.dwc_proj[3].weight.any() and not module.plk.dwc_proj[3].bias.any()
    rows = module.plk_filter.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)


def test_the_starting_bias_is_small_and_flashbias_zero():
    table = FlashWindowAttn(64, 32, 4).relative_position_bias
    assert table.shape == (4, 63**2)
    assert table.std().item() == pytest.approx(0.001, rel=0.05)
    module = FlashWindowAttn(16, 8, 2, "flashbias")
    assert module.flashbias_q.shape == module.flashbias_k.shape == (2, 64, 256 - 8)
    assert not module.flashbias_q.any() and not module.flashbias_k.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads is 3; it must divide dim, which is 16"),
        ({"pdim": 17}, "pdim is 17"),
        ({"pdim": 1}, "pdim is 1"),
        ({"kernel_size": 4}, "kernel_size is 4; it must be odd"),
        ({"window_size": 0}, "window_size is 0"),
        ({"n_blocks": -1}, "n_blocks is -1"),
        ({"dim": "64"}, "dim is '64'"),
        ({"upscaling_factor": 2.0}, "upscaling_factor is 2.0"),
        ({"exp_ratio": 0}, "exp_ratio is 0"),
        ({"exp_ratio": "wide"}, "exp_ratio is 'wide'"),
        ({"attn_type": "Flash"}, "attn_type is 'Flash'"),
        ({"attn_type": "FlashBias", "flashbias_rank": 250}, "flashbias_rank is 250"),
        ({"use_ln": "yes"}, "use_ln is 'yes'"),
    ],
)
def test_a_wrong_option_is_named(change, message):
    with pytest.raises(UserError, match=message):
        build_network({**NETWORKS[0], **change})


def test_esc_real_upscales_by_four_only():
    with pytest.raises(UserError, match="upscaling_factor is 2; ESCReal upscales by 4"):
        build_network({**NETWORKS[4], "upscaling_factor": 2})
