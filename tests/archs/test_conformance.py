"""The networks give the reference's results, with the reference's weights."""

import json
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

DATA = Path(__file__).parent.parent / "data"
CASES = [
    "esc_small_x2",
    "esc_small_x3_ln",
    "escfp_small_x4",
    "escreal_small_x4",
    "escreal_dysample_small_x4",
]
CHECKPOINTS = json.loads((DATA / "checkpoints.json").read_text())


@pytest.fixture(params=CASES)
def case(request):
    return torch.load(DATA / f"{request.param}.pt", weights_only=True)


def build(case, **options):
    network = build_network({"type": case["type"], **case["options"], **options})
    network.load_state_dict(case["params"])
    return network


@pytest.mark.parametrize("attn_type", ["Auto", "Naive", "Chunked", "SDPA", "Flex"])
def test_eval_gives_the_reference_images(case, attn_type):
    if attn_type == "Flex":
        pytest.importorskip("torch.nn.attention.flex_attention")
    network = build(case, attn_type=attn_type).eval()
    with torch.no_grad():
        for lq, sr in zip(case["lq"], case["sr"], strict=True):
            torch.testing.assert_close(network(lq[None])[0], sr, atol=1e-4, rtol=0)


def test_training_gives_the_reference_loss_and_gradients(case):
    network = build(case).train()
    sr = network(case["lq"])
    torch.testing.assert_close(sr, case["train_sr"], atol=1e-4, rtol=0)
    loss = (sr - 0.5).abs().mean()
    assert loss.item() == pytest.approx(case["l1_loss"], abs=1e-4)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in network.named_parameters()}
    assert norms.keys() == case["grad_norms"].keys()
    # The reference is itself in float32, which shows in the larger norms.
    for name, norm in case["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, abs=1e-4, rel=1e-4), name


def test_a_checkpoint_of_another_scale_is_resized():
    case = torch.load(DATA / "scale_x2_to_x3.pt", weights_only=True)
    network = build_network({"type": case["type"], **case["options"]})
    before = {name: value.clone() for name, value in case["from_params"].items()}
    network.load_state_dict(case["from_params"], strict=True)
    torch.testing.assert_close(network.to_img.weight.data, case["to_img_weight"])
    torch.testing.assert_close(network.to_img.bias.data, case["to_img_bias"])
    for name, value in before.items():
        assert torch.equal(case["from_params"][name], value)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_state_dicts_load_by_name_and_shape(name):
    published = CHECKPOINTS[name]
    with torch.device("meta"):
        network = build_network(published["network_g"])
    state = {k: torch.empty(s, device="meta") for k, s in published["state_dict"].items()}
    network.load_state_dict(state, strict=True, assign=True)
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == published["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == published["parameters"]


def test_files_of_when_the_scope_of_dysample_was_not_learnt_load_as_then():
    case = torch.load(DATA / "escreal_dysample_small_x4.pt", weights_only=True)
    network = build(case).eval()
    with torch.no_grad():
        network.to_img.scope.weight.zero_()
        expected = network(case["lq"])
    older = {k: v for k, v in case["params"].items() if k != "to_img.scope.weight"}
    loaded = build({**case, "params": older}).eval()
    with torch.no_grad():
        assert torch.equal(loaded(case["lq"]), expected)
    assert "to_img.scope.weight" not in older
