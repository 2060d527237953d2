"""A network that upscales in no time, and a picture for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import TINY

import esc_arch  # noqa: F401
from esc_arch.inference.upscaler import Upscaler
from esc_arch.zoo.identify import build_on_meta
from esc_arch.zoo.loading import load_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network whose results look like its inputs."""
    torch.manual_seed(0)
    network = build_on_meta(TINY).to_empty(device="cpu")
    params = {name: torch.randn(value.shape) * 0.02 for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("model") / "net.pth"
    torch.save({"params": params, "params_ema": params}, path)
    return path


@pytest.fixture
def upscaler(model: Path) -> Upscaler:
    return Upscaler(*load_network(model))


@pytest.fixture
def crop(photographs: dict[str, np.ndarray]) -> np.ndarray:
    """A photograph of 20 x 30 pixels."""
    return photographs["chelsea"][100:120, 150:180]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
