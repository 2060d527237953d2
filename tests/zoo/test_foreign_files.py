"""Files of traiNNer-redux and neosr are recognised, read and upscaled with."""

from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from safetensors.torch import load_file, save_file

import esc_arch  # noqa: F401
from esc_arch.archs import ESCRealM
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference.load import load
from esc_arch.ops.bias import relative_position_bias
from esc_arch.zoo.foreign import META
from esc_arch.zoo.identify import build_on_meta, identify
from esc_arch.zoo.loading import load_network, read_checkpoint

FILES = sorted((Path(__file__).parents[1] / "data" / "foreign").glob("*.pt"))
SMALL = {
    "type": "ESCRealM",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request):
    return torch.load(request.param, weights_only=True)


def largest_error(network, case) -> float:
    with torch.no_grad():
        return (network(case["lq"]) - case["sr"]).abs().max().item()


def test_each_trainers_files_are_read_and_give_its_images(case, tmp_path):
    if case["type"] == "escrealm":
        path = tmp_path / "net_g_ema_1000.safetensors"
        save_file({name: value.contiguous() for name, value in case["params"].items()}, path)
        wrapped = tmp_path / "net_g_ema_1000.pth"
        torch.save(case["params"], wrapped)
    else:
        path = tmp_path / "net_g_1000.pth"
        torch.save({"params": case["params"]}, path)
        wrapped = tmp_path / "net_g_1001.pth"
        torch.save({"params-ema": case["params"]}, wrapped)
    for file in (path, wrapped):
        network, network_g = load_network(file)
        assert largest_error(network, case) < 2e-4
        scale = case["options"].get("scale", case["options"].get("upscaling_factor"))
        assert network_g["upscaling_factor"] == scale


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "params-ema", "net"])
def test_wrappers_and_prefixes_that_the_trainers_read_are_read(wrapper, tmp_path):
    case = torch.load(FILES[-1], weights_only=True)
    prefixed = {f"module.{name}": value for name, value in case["params"].items()}
    torch.save({wrapper: prefixed}, tmp_path / "a.pth")
    assert largest_error(load_network(tmp_path / "a.pth")[0], case) < 2e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_converted_to_half_precision_are_read_notes_included(dtype, tmp_path):
    path = next(path for path in FILES if "nearestconv_x3" in path.stem)
    case = torch.load(path, weights_only=True)
    torch.save(
        {name: value.to(dtype) for name, value in case["params"].items()}, tmp_path / "a.pth"
    )
    network, network_g = load_network(tmp_path / "a.pth")
    assert network_g["upscaling_factor"] == 3
    assert largest_error(network, case) < 0.1


def test_mobile_files_are_read_to_the_bit(case, tmp_path):
    window = case["options"]["window_size"]
    mobile = {}
    for name, value in case["params"].items():
        if name.endswith("relative_position_bias"):
            name = name.removesuffix("relative_position_bias") + "rpe_bias"
            value = relative_position_bias(value, window)[None]
        mobile[name] = value
    torch.save(mobile, tmp_path / "mobile.pth")
    best = read_checkpoint(tmp_path / "mobile.pth").best
    assert best.keys() == case["params"].keys()
    assert all(torch.equal(best[name], value) for name, value in case["params"].items())
    changed = next(name for name in mobile if name.endswith("rpe_bias"))
    mobile[changed] = mobile[changed] + torch.rand_like(mobile[changed])
    torch.save(mobile, tmp_path / "mobile.pth")
    with pytest.raises(UserError, match="depends on more than relative positions"):
        read_checkpoint(tmp_path / "mobile.pth")


@pytest.mark.parametrize(
    ("upsampler", "scales"),
    [
        ("conv", (1,)),
        ("pixelshuffledirect", (1, 2, 3, 4, 5)),
        ("pixelshuffle", (2, 3, 4, 8)),
        ("nearest+conv", (2, 3, 4, 8)),
        ("dysample", (2, 3, 4)),
        ("transpose+conv", (2, 3, 4)),
        ("lda", (2, 3, 4)),
        ("pa_up", (2, 3, 4, 8)),
        ("up+conv", (2, 4, 8)),
        ("up+conv+conv", (2, 4, 8)),
    ],
)
@pytest.mark.parametrize("mid_dim", [8, 16])
def test_options_of_every_upsampler_are_found_from_names_and_shapes(upsampler, scales, mid_dim):
    shown = upsampler in ("pixelshuffle", "dysample", "lda", "pa_up")
    extra = {"mid_dim": mid_dim} if shown else {}
    for scale in scales:
        options = {**SMALL, "upsampler": upsampler, **extra, "upscaling_factor": scale}
        state = build_on_meta(options).state_dict()
        assert identify(state) == options
        # Without notes, or with wrong ones, wherever the shapes tell; else after asking.
        told_by_shapes = upsampler != "lda" and (
            upsampler not in ("nearest+conv", "pa_up") or scale not in (2, 3)
        )
        for notes in ({}, {META: torch.full((7,), 9, dtype=torch.uint8)}):
            bare = {**{k: v for k, v in state.items() if k != META}, **notes}
            if not told_by_shapes:
                allowed = "any number" if upsampler == "lda" else "2 or 3"
                if upsampler != "lda" or not notes:
                    with pytest.raises(UserError, match=rf"upscales \({allowed}\).*--scale N"):
                        identify(bare)
            if not told_by_shapes and upsampler == "lda" and notes:
                continue
            found = identify(bare, scale=scale)
            assert found["upscaling_factor"] == scale
            assert found["upsampler"] in (upsampler, "conv")
    if upsampler not in ("conv", "up+conv", "up+conv+conv"):
        for scale in (1, 2):
            if 4 not in scales:
                continue
            options = {**SMALL, "upsampler": upsampler, **extra, "unshuffle_mod": True}
            options["upscaling_factor"] = scale
            state = build_on_meta(options).state_dict()
            assert identify({k: v for k, v in state.items() if k != META}) == options


def test_a_damaged_real_world_network_is_told_by_what_it_lacks():
    case = torch.load(FILES[0], weights_only=True)
    params = {name: value for name, value in case["params"].items() if name != "skip.1.bias"}
    with pytest.raises(UserError, match="looks like ESCRealM, but it lacks 1 .*'skip.1.bias'"):
        identify(params)


def test_the_scale_can_be_given_where_nothing_tells_it(tmp_path):
    torch.manual_seed(0)
    options = {key: value for key, value in SMALL.items() if key != "type"}
    network = ESCRealM(**options, upsampler="nearest+conv", upscaling_factor=3).eval()
    state = {name: value for name, value in network.state_dict().items() if name != META}
    torch.save(state, tmp_path / "edited.pth")
    lq = torch.rand(1, 3, 16, 16)
    sr = load(tmp_path / "edited.pth", scale=3).upscale(lq)
    with torch.no_grad():
        torch.testing.assert_close(sr, network(lq).clamp(0, 1), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="give the scale"):
        load(tmp_path / "edited.pth")


def test_converted_to_our_names_a_file_gives_the_same_and_can_be_trained_on(case, tmp_path, capsys):
    torch.save(case["params"], tmp_path / "theirs.pth")
    arguments = [str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "ours.pth")]
    assert main(["convert", "basicsr", *arguments]) == 0
    shown = capsys.readouterr().out
    network_g = yaml.safe_load(shown.split("\n", 1)[1])["network_g"]
    network = build_network(network_g)
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["params"])
    assert largest_error(network.eval(), case) < 2e-4
    if case["options"].get("upsampler") == "dysample":
        same = case["options"]["mid_dim"] == case["options"]["dim"]
        assert network_g["type"] == ("ESCReal" if same else "ESCRealM")


def test_what_trainner_wrote_comes_back_to_the_bit(tmp_path):
    for path in FILES:
        case = torch.load(path, weights_only=True)
        if case["type"] != "escrealm":
            continue
        torch.save(case["params"], tmp_path / "a.pth")
        ours, theirs = str(tmp_path / "ours.safetensors"), str(tmp_path / "theirs.safetensors")
        steps = (["basicsr", str(tmp_path / "a.pth"), "-o", ours], ["trainner", ours, "-o", theirs])
        for step in steps:
            assert main(["convert", *step, "--overwrite"]) == 0
        found = load_file(theirs)
        assert found.keys() == case["params"].keys()
        assert all(torch.equal(found[name], value) for name, value in case["params"].items()), path


def test_a_network_that_trainner_has_not_is_refused(tmp_path, capsys):
    case = torch.load(FILES[0], weights_only=True)
    torch.save({"params": case["params"]}, tmp_path / "a.pth")
    output = tmp_path / "b.safetensors"
    assert main(["convert", "trainner", str(tmp_path / "a.pth"), "-o", str(output)]) == 2
    assert "traiNNer-redux has no such network (up+conv+conv)" in capsys.readouterr().err
    assert not output.exists()


def test_pictures_are_padded_to_windows_in_pixels_of_the_picture(tmp_path):
    file = next(path for path in FILES if "unshuffle_x2" in path.stem)
    case = torch.load(file, weights_only=True)
    torch.save(case["params"], tmp_path / "a.pth")
    upscaler = load(tmp_path / "a.pth")
    # Windows of 8 of the body's pixels, each of which is 2 x 2 of the picture's.
    assert upscaler.window_size == 16
    sr = upscaler.upscale(case["lq"])
    padded = torch.nn.functional.pad(case["lq"], (0, 1, 0, 11), mode="reflect")
    assert case["lq"].shape[-2:] == (21, 31) and padded.shape[-2:] == (32, 32)
    with torch.no_grad():
        expected = upscaler.network(padded)[..., :42, :62].clamp(0, 1)
    torch.testing.assert_close(sr, expected, atol=1e-6, rtol=0)
