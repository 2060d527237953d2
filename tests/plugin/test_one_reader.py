"""Checkpoints that people bring give the same in upscale, convert, info, verify and training."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from esc_arch.archs import ESC
from esc_arch.cli.main import main

OPTIONS = {"dim": 16, "pdim": 4, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1}
OPTIONS.update(window_size=8, num_heads=1, exp_ratio=1.25, upscaling_factor=2)
COMMANDS: dict[str, list[str]] = {
    "upscale": ["upscale", "a.png", "-o", "a_x2.png", "--model"],
    "convert": ["convert", "safetensors", "-o", "converted.safetensors"],
    "info": ["checkpoints", "info"],
    "verify": ["checkpoints", "verify"],
}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ESC(**OPTIONS).state_dict()


def write_zip(path: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.png", b"1")


def write_nan(path: str) -> None:
    broken = state()
    broken["last.weight"][0, 0, 0, 0] = torch.nan
    torch.save({"params": broken}, path)


def write_lacking(path: str) -> None:
    lacking = {name: value for name, value in state().items() if not name.startswith("to_img.")}
    torch.save({"params": lacking}, path)


BAD: dict[str, tuple[Callable[[str], Any], str]] = {
    "lfs": (
        lambda path: Path(path).write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n"),
        "is a Git LFS pointer",
    ),
    "page": (lambda path: Path(path).write_text("<!DOCTYPE html><html></html>"), "web page"),
    "text": (lambda path: Path(path).write_text("hello world\n" * 300), "is text"),
    "zip": (write_zip, "is a zip of something else"),
    "bytes": (
        lambda path: torch.save({k.encode(): v for k, v in state().items()}, path),
        "names of its tensors are bytes",
    ),
    "lacking": (write_lacking, "to_img.weight"),
    "nan": (write_nan, "'last.weight' has values that are not finite"),
}
GOOD: dict[str, Callable[[str], Any]] = {
    "params_ema": lambda path: torch.save({"params_ema": state()}, path),
    "state_dict of module": lambda path: torch.save(
        {"state_dict": {f"module._orig_mod.{k}": v for k, v in state().items()}}, path
    ),
    "net_g": lambda path: torch.save({"net_g": state()}, path),
    "lightning": lambda path: torch.save(
        {"state_dict": {f"model.{k}": v for k, v in state().items()}, "epoch": 1}, path
    ),
    "safetensors": lambda path: save_file(state(), path),
}


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_train_options: Callable[..., Path]
) -> list[str]:
    """Starts a training from net.pth; the current folder has a picture, too."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 8), (40, 80, 120)).save("a.png")
    network = {"type": "ESC", **OPTIONS}
    changes = {"network_g": network, "path:pretrain_network_g": "net.pth", "train:total_iter": 1}
    path = write_train_options(changes)
    assert yaml.safe_load(path.read_text())["path"]["pretrain_network_g"] == "net.pth"
    return ["train", "-opt", str(path)]


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_loaded_is_refused_for_the_same_reason_by_every_command(
    kind: str, train: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write, told = BAD[kind]
    write("net.pth")
    for command in [*([*command, "net.pth"] for command in COMMANDS.values()), train]:
        assert main(command) in (1, 2), command
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if "warning: " not in line]
        assert len(lines) == 1 and told in lines[0] and "net.pth" in lines[0], (command, lines)
    made = ("a_x2.png", "converted.safetensors", "experiments")
    assert not [name for name in made if Path(name).exists()]


@pytest.mark.parametrize("kind", GOOD)
def test_what_can_be_loaded_is_taken_by_every_command(
    kind: str, train: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    GOOD[kind]("net.pth")
    for command in [*([*command, "net.pth"] for command in COMMANDS.values()), train]:
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert Image.open("a_x2.png").size == (18, 16)
    assert Path("converted.safetensors").is_file()
    assert Path("experiments/tiny/models/net_g_latest.pth").is_file()
