"""Every option file trains or tests: two iterations on tiny data, through the `basicsr` command."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from option_data import make_data

from esc_arch.cli.main import main
from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.archs import build_network
from basicsr.utils.options import ordered_yaml

pytestmark = pytest.mark.slow

OPTIONS = Path(__file__).parents[2] / "options"
FILES = sorted(path.stem for path in OPTIONS.glob("*.yml"))
FLASHBIAS = ("attn_type", "flashbias_rank")


def load(name: str) -> dict[str, Any]:
    """Read an option file as BasicSR does."""
    return yaml.load((OPTIONS / f"{name}.yml").read_text(), Loader=ordered_yaml()[0])


def write_checkpoints(options: dict[str, Any], entries: list[str]) -> None:
    """Write random weights of the right networks where `entries` say that checkpoints are."""
    for entry in entries:
        key, _, path = entry.partition("=")
        if not key.startswith("path:pretrain_"):
            continue
        network = dict(options[key.removeprefix("path:pretrain_")])
        if options["path"][key.removeprefix("path:")].lower().endswith(("_x2", "_x2.pth")):
            network["upscaling_factor"] = 2
        if options["path"].get("strict_load_g") is False:
            # It starts from a network with the table, not with its factors.
            network = {k: v for k, v in network.items() if k not in FLASHBIAS}
        state = build_network(network).state_dict()
        torch.save({"params": state, "params_ema": state}, path)


def small_run(options: dict[str, Any]) -> list[str]:
    """Entries that make batch, patch and run small."""
    entries = []
    train = options["datasets"].get("train")
    if train is not None:
        entries = ["train:total_iter=2", "logger:print_freq=1"]
        entries += ["datasets:train:batch_size=1", "datasets:train:num_worker_per_gpu=0"]
        patch = 12 * options["scale"]
        entries.append(f"{'gt_size' if 'gt_size' in options else 'datasets:train:gt_size'}={patch}")
    return entries


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which the command takes as root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_file_runs(name: str, work_folder: Path) -> None:
    options = load(name)
    if "perceptual_opt" in options.get("train", {}):
        write_vgg19(work_folder)
    entries = make_data(options, work_folder, pictures=("only",))
    write_checkpoints(options, entries)
    entries += small_run(options)
    path = str(OPTIONS / f"{name}.yml")
    training = name.startswith("train_")
    assert check_options(path, entries, is_train=training).errors == []

    command = "train" if training else "test"
    assert main([command, "-opt", path, "--force_yml", *entries]) == 0

    if training:
        saved = work_folder / "experiments" / name / "models" / "net_g_latest.pth"
        weights = torch.load(saved, weights_only=True)
        card = weights.pop("card")
        assert card["architecture"] == options["network_g"]["type"]
        assert weights.keys() == {"params", "params_ema"}
        for state in weights.values():
            assert all(torch.isfinite(value).all() for value in state.values())
    else:
        images = list((work_folder / "results" / name / "visualization").rglob("*.png"))
        assert len(images) == len(options["datasets"])


def write_vgg19(folder: Path) -> None:
    """Put random weights where BasicSR looks before it downloads VGG19's."""
    from torchvision.models import vgg19

    path = folder / "experiments" / "pretrained_models" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    torch.save(vgg19().state_dict(), path)
