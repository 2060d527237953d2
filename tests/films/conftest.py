"""A folder with a model for films."""

from pathlib import Path

import pytest
import torch

from esc_arch.zoo.identify import build_on_meta

TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model whose results look like their inputs."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save({"params": params}, "net.pth")
    return tmp_path
