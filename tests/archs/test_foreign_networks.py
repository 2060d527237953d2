"""Networks of traiNNer-redux and neosr give these trainers' own results."""

from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from esc_arch.archs import ESC, ESCFP, ESCReal, ESCRealM
from esc_arch.archs.upsamplers import UPSAMPLERS
from esc_arch.errors import UserError

FILES = sorted((Path(__file__).parents[1] / "data" / "foreign").glob("*.pt"))
SMALL = {
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "mid_dim": 8,
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request):
    return torch.load(request.param, weights_only=True)


@pytest.fixture
def network(case):
    """As the trainer's option block builds it; nobody names the older tail of neosr any more."""
    options = {"type": case["type"], **case["options"]}
    if "to_img.4.weight" in case["params"] and "to_img.1.weight" in case["params"]:
        if case["type"] == "esc":
            options = {**options, "type": "ESCRealM", "upsampler": "up+conv", "exp_ratio": 1.25}
            del options["use_dysample"], options["realsr"]
    network = build_network(options)
    network.load_state_dict(case["params"])
    return network


def test_eval_gives_the_trainers_images_one_by_one_and_together(case, network):
    network.eval()
    with torch.no_grad():
        together = network(case["lq"])
        for lq, sr, mine in zip(case["lq"], case["sr"], together, strict=True):
            torch.testing.assert_close(network(lq[None])[0], sr, atol=2e-4, rtol=0)
            torch.testing.assert_close(mine, sr, atol=2e-4, rtol=0)


def test_training_gives_the_trainers_loss_and_gradients(case, network):
    sr = network.train()(case["lq"])
    torch.testing.assert_close(sr, case["sr"], atol=2e-4, rtol=0)
    loss = (sr - 0.5).abs().mean()
    assert loss.item() == pytest.approx(case["l1_loss"], abs=2e-4)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in network.named_parameters()}
    assert norms.keys() == case["grad_norms"].keys()
    for name, norm in case["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, abs=2e-4, rel=2e-4), name


def test_the_networks_save_what_the_trainers_save(case, network):
    saved = network.state_dict()
    assert saved.keys() == case["params"].keys()
    for name, value in case["params"].items():
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("escrealm", {}, (2_155_951, 2_154_607, 2_221_551)),
        ("escrealm_xl", {}, (12_882_051, 13_066_691, 13_029_763)),
        ("esc", {}, (962_495, 967_655, 974_879)),
        ("esc_light", {}, (618_087, 623_247, 630_471)),
        ("esc_large", {}, (2_157_115, 2_162_275, 2_169_499)),
        ("esc_fp", {"use_dysample": False}, (523_675, 530_170, 539_263)),
    ],
)
def test_networks_by_their_trainers_names_have_the_trainers_sizes(name, options, parameters):
    for scale, expected in zip((2, 3, 4), parameters, strict=True):
        with torch.device("meta"):
            network = build_network({"type": name, "scale": scale, **options})
        assert sum(p.numel() for p in network.parameters()) == expected


def test_neosr_names_stand_for_the_papers_networks():
    small = {key: value for key, value in SMALL.items() if key != "mid_dim"}
    assert type(build_network({"type": "esc", **small, "scale": 3})) is ESCReal
    plain = {"realsr": False, "use_dysample": False}
    assert type(build_network({"type": "esc", **small, **plain})) is ESC
    assert type(build_network({"type": "esc", **small, **plain, "is_fp": True})) is ESCFP


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("unshuffle_mod", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_every_upsampler_takes_any_size_and_batch_at_each_of_its_scales(
    upsampler, unshuffle_mod, size
):
    torch.manual_seed(0)
    lq = torch.rand(2, 3, *size)
    built = 0
    for scale in (1, 2, 3, 4, 8):
        options = {**SMALL, "upsampler": upsampler, "unshuffle_mod": unshuffle_mod}
        try:
            network = ESCRealM(**options, upscaling_factor=scale).eval()
        except UserError as error:
            assert f"upsampler {upsampler} can do 1" in str(error)
            continue
        built += 1
        with torch.no_grad():
            sr = network(lq)
            alone = network(lq[1:])
        assert sr.shape == (2, 3, scale * size[0], scale * size[1])
        torch.testing.assert_close(sr[1:], alone, atol=1e-5, rtol=1e-4)
    assert built or (upsampler == "conv" and unshuffle_mod)


def test_gradients_of_deformable_attention_are_those_of_finite_differences():
    torch.manual_seed(0)
    from esc_arch.archs.upsamplers import LocalDeformableAttention

    attention = LocalDeformableAttention(8, 2).double()
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, x, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "escrealm", "upsampler": "bicubic"}, "upsampler is 'bicubic'; it must be one of"),
        ({"type": "escrealm", "scale": 5}, "the scale is 5; upsampler transpose.conv can do 1, 2"),
        ({"type": "escrealm", "upsampler": "dysample", "mid_dim": 6}, "mid_dim is 6"),
        ({"type": "escrealm", "upsampler": "lda", "mid_dim": 12}, "lda have 12 channels"),
        ({"type": "escrealm", "scale": 2, "upscaling_factor": 4}, "upscaling_factor is 4 and"),
        ({"type": "esc_fp"}, "use_dysample is true and realsr false"),
        ({"type": "esc", "is_fp": True}, "realsr and is_fp are both true"),
        ({"type": "esc", "use_dysample": False, "scale": 3}, "the scale is 3; upsampler up"),
        ({"type": "ESCReal", **SMALL, "upscaling_factor": 2}, "ESCReal upscales by 4"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    if options["type"] == "ESCReal":
        options = {key: value for key, value in options.items() if key != "mid_dim"}
    with pytest.raises(UserError, match=message):
        build_network(options)
