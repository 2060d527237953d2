"""A folder with a model for films."""

from pathlib import Path

import pytest
import torch
from tiny_network import TINY

from esc_arch.zoo.identify import build_on_meta


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model whose results look like their inputs."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save({"params": params}, "net.pth")
    return tmp_path
