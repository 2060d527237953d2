"""Checkpoint files as people bring them: loaded by their content, or refused in one line."""

import itertools
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.zoo.catalogue import PUBLISHED
from esc_arch.zoo.identify import build_on_meta
from esc_arch.zoo.loading import load_network, read_checkpoint
from esc_arch.zoo.params import load_weights, select_params
from esc_arch.zoo.store import load_state

TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 1,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}


@pytest.fixture
def params() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    return {name: torch.randn(value.shape) * 0.05 for name, value in state.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(path: str | Path) -> str:
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


WRAPPERS = [
    ["params_ema"],
    ["params"],
    ["state_dict"],
    ["model"],
    ["net_g"],
    ["model_state_dict"],
    ["state_dict", "params_ema"],
    ["model", "state_dict"],
    ["state_dict_ema"],
    ["ema_model"],
    ["ema", "state_dict"],
    ["network_g"],
    ["weights"],
    ["my_network"],
    ["checkpoint", "swa"],
    [],
]
PREFIXES = [
    *itertools.permutations(["module.", "_orig_mod.", "net_g."]),
    ["module."],
    ["_orig_mod."],
    ["net_g."],
    ["model."],
    ["netG."],
    ["generator.", "module."],
    ["params_ema."],
    ["params.", "module."],
    ["ema_model.", "module."],
    ["_fsdp_wrapped_module."],
    [],
]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids="/".join)
@pytest.mark.parametrize("prefix", PREFIXES, ids="".join)
def test_wrappers_and_prefixes_are_unwrapped_in_any_order(wrapper, prefix, folder, params):
    state = {"".join(prefix) + name: value for name, value in params.items()}
    for key in reversed(wrapper):
        state = {"epoch": 3, key: state}
    torch.save(state, "net.pth")
    checkpoint = read_checkpoint("net.pth")
    assert checkpoint.network_g == TINY
    assert all(torch.equal(checkpoint.best[name], value) for name, value in params.items())


def test_of_flattened_weights_the_averaged_are_taken(folder, params):
    flat = {f"params_ema.{name}": value for name, value in params.items()}
    flat |= {f"params.{name}": value + 1 for name, value in params.items()}
    save_file(flat, "flat.safetensors")
    found = read_checkpoint("flat.safetensors").best
    assert found.keys() == params.keys()
    assert all(torch.equal(found[name], value) for name, value in params.items())


def test_floats_of_8_bits_are_refused(folder, params):
    name = next(iter(params))
    torch.save({**params, name: params[name].to(torch.float8_e4m3fn)}, "net.pth")
    assert f"'{name}' is of torch.float8_e4m3fn; save it in float16" in refusal("net.pth")


@pytest.mark.parametrize("part", ["module", "_orig_mod", "_checkpoint_wrapped_module"])
def test_what_torch_wraps_within_a_network_is_unwrapped(part, folder, params):
    names = {name: name.replace("blocks.0.", f"blocks.0.{part}.") for name in params}
    torch.save({names[name]: value for name, value in params.items()}, "net.pth")
    assert read_checkpoint("net.pth").best.keys() == params.keys()
    # Neither of two tensors of one name is taken for the other.
    torch.save({f"{part}.proj.weight": params["proj.weight"] + 1, **params}, "net.pth")
    assert f"such as '{part}.proj.weight'" in refusal("net.pth")


@pytest.mark.parametrize(
    "best, other",
    [("ema_model.", "online_model."), ("generator_ema.", "generator."), ("net_g_ema.", "net_g.")],
)
def test_of_an_averaged_and_a_plain_network_the_averaged_is_taken(best, other, folder, params):
    state = {other + name: value + 1 for name, value in params.items()}
    state |= {best + name: value for name, value in params.items()}
    torch.save({**state, "initted": torch.tensor(True), "step": torch.tensor(5)}, "net.pth")
    found = read_checkpoint("net.pth").best
    assert found.keys() == params.keys()
    assert all(torch.equal(found[name], value) for name, value in params.items())


@pytest.mark.parametrize("plain", ["model", "state_dict", "net_g", "generator"])
@pytest.mark.parametrize(
    "average",
    [
        lambda params: {"ema_state_dict": params},
        lambda params: {"model_ema_state_dict": params},
        lambda params: {"netG_ema": {"module": params}, "steps": 5},
        lambda params: {"ema": {"shadow": params, "decay": 0.999}},
        lambda params: {"EMA": {"model": {"state_dict": params}}},
    ],
)
def test_averages_of_any_trainer_are_taken(plain, average, folder, params):
    other = {name: value + 1 for name, value in params.items()}
    torch.save({plain: other, "epoch": 3, **average(params)}, "net.pth")
    found = read_checkpoint("net.pth").best
    assert all(torch.equal(found[name], value) for name, value in params.items())
    # Settings of an average that is not there are none.
    torch.save({"ema": {"decay": 0.999}, plain: params}, "net.pth")
    assert torch.equal(read_checkpoint("net.pth").best["proj.weight"], params["proj.weight"])


def test_mappings_within_themselves_end(folder):
    inner: dict = {}
    for _ in range(30):
        inner = {key: inner for key in ("params", "model", "net_g", "state_dict", "ema", "g")}
    torch.save(inner, "net.pth")
    assert "has no tensors under 'params'" in refusal("net.pth")
    inner["params"] = inner
    torch.save(inner, "net.pth")
    assert "has no tensors under 'params'" in refusal("net.pth")


def test_of_a_lightning_module_the_generator_is_taken(folder, params):
    state = {f"net_g.{name}": value for name, value in params.items()}
    state |= {"net_d.conv.weight": torch.ones(3), "loss.vgg.mean": torch.zeros(3)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, "last.ckpt")
    assert read_checkpoint("last.ckpt").network_g == TINY


def test_the_average_of_torch_is_taken_without_its_counter(folder, params):
    state = {f"module.{name}": value for name, value in params.items()}
    torch.save({**state, "n_averaged": torch.tensor(5)}, "swa.pth")
    assert read_checkpoint("swa.pth").network_g == TINY


@pytest.mark.parametrize(
    "name", ["a.pth", "a.safetensors", "A.SAFETENSORS", "a.ckpt", "a", "a.txt"]
)
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_content_decides_and_not_the_name(name, form, folder, params):
    if form == "safetensors":
        save_file(params, name, {"data": "DIV2K"})
    else:
        with open(name, "wb") as file:
            torch.save(params, file, _use_new_zipfile_serialization=form == "zip")
    checkpoint = read_checkpoint(name)
    assert torch.equal(checkpoint.best["proj.weight"], params["proj.weight"])
    assert checkpoint.metadata == ({"data": "DIV2K"} if form == "safetensors" else {})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content, told",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "Git LFS pointer"),
        (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\r\noid sha256:aa\r\n", "LFS"),
        ("version https://hawser.github.com/spec/v1\noid sha256:a".encode("utf-16"), "Git LFS"),
        (b'{"metadata": {}, "weight_map": {"proj.weight": "1.safetensors"}}', "index of several"),
        (b"<!-- 404 --><h1>Not found</h1>", "web page"),
        (b"\x1f\x8b\x08" + bytes(500), "is compressed by gzip"),
        (b"BZh9" + bytes(500), "is compressed by bzip2"),
        (b"net.pth".ljust(257, b"\0") + b"ustar" + bytes(500), "is a tar archive"),
        (b"\x93NUMPY\1\0" + bytes(500), "is an array of NumPy"),
        (b"\x08\x07\x12\x07pytorch" + bytes(500), "is a network for TensorFlow Lite or ONNX"),
        (b"<!DOCTYPE html>\n<html></html>", "web page"),
        (b"  \n<HTML><body>Sign in", "web page"),
        (b'<?xml version="1.0"?><Error/>', "web page"),
        (b"hello world\n" * 300, "is text ('hello world"),
        (b"name: x\nnetwork_g:\n  type: ESC\n", "is an option file"),
        (b"", "is empty"),
        (bytes(4000), "not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG, not a checkpoint"),
        (b"\x80\x02}q\x00.", "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(suffix, content, told, folder):
    path = Path(f"net.{suffix}")
    path.write_bytes(content)
    assert told in refusal(path)


def test_a_zip_of_something_else_is_named(folder):
    with zipfile.ZipFile("net.pth", "w") as archive:
        archive.writestr("photos/cat.png", b"1")
    assert "is a zip of something else, with 'photos/cat.png' in it" in refusal("net.pth")


def test_torchscript_is_named(folder):
    with zipfile.ZipFile("net.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("net/constants.pkl", b"\x80\x02)q\x00.")
    assert "is a TorchScript archive" in refusal("net.pth")


def test_a_zip_that_unpacks_to_far_more_is_refused(folder, params):
    with zipfile.ZipFile("net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("net/data/0", bytes(40_000_000))
    assert "unpack to 40,000,00" in refusal("net.pth")


def test_strides_of_zero_cannot_ask_for_memory_that_the_file_does_not_hold(folder, params):
    side = (2 * 10**6 - 1) ** 2
    table = torch.zeros(1).expand(1, side)
    torch.save({**params, "blocks.0.attn.relative_position_bias": table}, "net.pth")
    assert Path("net.pth").stat().st_size < 100_000
    assert "claims 3,999,996,000,001 values" in refusal("net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_more_tensors_than_a_network_has_are_refused_before_each_is_looked_at(name, folder):
    tensors = dict.fromkeys(map(str, range(50_001)), torch.zeros(0))
    torch.save(tensors, name) if name == "net.pth" else save_file(tensors, name)
    assert "has 50,001 tensors; a network has at most 50,000" in refusal(name)


def test_tensors_that_share_memory_cannot_ask_for_many_times_what_the_file_holds(folder, params):
    shared = torch.zeros(100_000)
    torch.save({f"t{number}": shared for number in range(100)}, "net.pth")
    assert "100 tensors claim 40,000,000 bytes together but the file holds 400,00" in refusal(
        "net.pth"
    )
    # As trainers that keep all weights in one tensor do.
    flat = torch.cat([value.flatten() for value in params.values()])
    parts = flat.split([value.numel() for value in params.values()])
    pairs = zip(params.items(), parts, strict=True)
    torch.save({name: part.view(value.shape) for (name, value), part in pairs}, "flat.pth")
    assert torch.equal(read_checkpoint("flat.pth").best["last.weight"], params["last.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("command", ["info", "verify", "upscale", "flashbias", "safetensors"])
def test_values_that_are_not_finite_are_named_by_every_command(
    value, suffix, command, folder, params, capsys
):
    params["last.weight"][0, 0, 0, 0] = value
    cv2.imwrite("a.png", np.zeros((8, 8, 3), np.uint8))
    path = f"net.{suffix}"
    save_file(params, path) if suffix == "safetensors" else torch.save({"params": params}, path)
    arguments = {
        "info": ["checkpoints", "info", path],
        "verify": ["checkpoints", "verify", path],
        "upscale": ["upscale", "a.png", "--model", path],
        "flashbias": ["convert", "flashbias", "--rank", "2", path, "-o", "out.pth"],
        "safetensors": ["convert", "safetensors", path, "-o", "out.safetensors"],
    }
    assert main(arguments[command]) in (1, 2)
    captured = capsys.readouterr()
    assert "'last.weight' has values that are not finite" in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert sorted([entry.name for entry in folder.iterdir()]) == ["a.png", path]


def test_other_tensors_than_plain_ones_are_refused(folder, params):
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    quantized = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    others = (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), nested, quantized)
    for value in (*others, torch.zeros(3, dtype=torch.complex64)):
        torch.save({"params": {**params, "last.bias": value}}, "net.pth")
        told = refusal("net.pth")
        # From 2.15 on PyTorch itself reads no nested ones.
        by_torch = value is nested and "_rebuild_nested_tensor'" in told
        assert "'last.bias'" in told or (by_torch and "plain tensors" in told)
    torch.save({"params": {**params, "last.bias": torch.empty(3, device="meta")}}, "net.pth")
    refusal("net.pth")


def test_names_of_bytes_are_told(folder, params):
    torch.save({"params": {name.encode(): value for name, value in params.items()}}, "net.pth")
    assert "names of its tensors are bytes" in refusal("net.pth")


def test_each_layer_that_is_missing_is_named(folder, params):
    for name in params:
        with pytest.raises(UserError, match=r"lacks .*'[a-z0-9_.]+'|lacks '"):
            load_part = {key: value for key, value in params.items() if key != name}
            torch.save(load_part, "net.pth")
            read_checkpoint("net.pth")
    torch.save({k: v for k, v in params.items() if not k.startswith("to_img")}, "net.pth")
    assert "lacks 'to_img.weight'" in refusal("net.pth")


def test_control_characters_cannot_forge_lines(folder, params, capsys):
    save_file(params, "net.safetensors", {"data": "x\nscale: 4\x1b[2J", "a\nb": "c"})
    assert main(["checkpoints", "info", "net.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "data: x\\nscale: 4\\x1b[2J\n" in out and "a\\nb: c\n" in out
    torch.save({**params, "evil\nname": torch.zeros(1)}, "net.pth")
    assert "evil\\nname" in refusal("net.pth")


def test_loaded_weights_do_not_change_with_the_file(folder, params):
    save_file(params, "net.safetensors")
    state = load_state("net.safetensors")
    before = {name: value.clone() for name, value in state.items()}
    size = Path("net.safetensors").stat().st_size
    with open("net.safetensors", "r+b") as file:
        file.write(b"\xff" * size)
        file.truncate(100)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_pipes_and_devices_are_refused_at_once(folder):
    os.mkfifo("pipe.pth")
    for path in ("pipe.pth", "/dev/zero"):
        assert "is a pipe or a device" in refusal(path)
        assert main(["checkpoints", "info", path]) == 2


def test_info_goes_on_after_a_bad_file(folder, params, capsys):
    torch.save(params, "a.pth")
    Path("b.pth").write_text("hello")
    torch.save(params, "c.pth")
    assert main(["checkpoints", "info", "a.pth", "b.pth", "none.pth", "c.pth"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("network: ESC") == 2
    assert [line.split(": ")[2] for line in captured.err.splitlines()] == ["b.pth", "none.pth"]


def test_own_weights_under_a_published_name_are_taken_with_one_line(folder, params, capsys):
    torch.save(params, "ESC_Real_X4_GAN.pth")
    assert load_network("ESC_Real_X4_GAN.pth")[1] == TINY
    assert main(["checkpoints", "info", "ESC_Real_X4_GAN.pth"]) == 0
    real = build_on_meta(PUBLISHED["ESC_Real_X4_GAN"].network_g).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in real.items()}, "mine.pth")
    os.replace("mine.pth", "ESC_Real_X4_GAN.pth")
    capsys.readouterr()
    assert main(["checkpoints", "verify", "ESC_Real_X4_GAN.pth"]) == 0
    captured = capsys.readouterr()
    assert "whole, ESCReal x4, no checksum to compare with" in captured.out
    assert captured.err.count("\n") == 1 and "taken as it is" in captured.err


def test_weights_of_another_scale_are_resized_with_one_line(folder, params):
    network = build_on_meta({**TINY, "upscaling_factor": 3}).to_empty(device="cpu")
    line = load_weights(network, select_params({"params": params}, "net.pth"), "net.pth")
    assert "'to_img.weight'" in line and "[12, 16, 3, 3] to [27, 16, 3, 3]" in line
    own = build_on_meta(TINY).to_empty(device="cpu")
    assert load_weights(own, params, "net.pth") is None
