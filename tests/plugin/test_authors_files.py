"""Files in the form of the authors' repository: each runs two iterations, or on two images."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from authors_files import all_files
from option_data import make_data
from test_options_run import write_checkpoints, write_vgg19

from esc_arch.cli.main import main
from esc_arch.plugin.preflight import check_options

FILES = dict(all_files())
HAS_PEERS = importlib.util.find_spec("spandrel_extra_arches") is not None
PAGE = Path(__file__).parents[2] / "docs" / "authors_files.md"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)`; (.+?) \| (.+) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, list[str], str]]:
    """Of the page's table by file: model type, networks, and what happens."""
    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {file: (model, re.findall(r"`(\w+)`", nets), here) for file, model, nets, here in found}


def test_the_page_has_a_row_for_each_training_and_test_of_the_authors() -> None:
    table = rows()
    assert set(table) == set(FILES)
    for name, options in FILES.items():
        networks = [options[key]["type"] for key in ("network_g", "network_d") if key in options]
        assert table[name][:2] == (options["model_type"], networks)
        assert table[name][2].startswith(("runs", "refused in one line"))


def test_the_trainings_and_tests_are_those_of_the_released_networks_and_the_peers() -> None:
    kinds = ("ESC", "ESC_light", "ESC_FP", "ESC_DFLIP")
    both = ("train", "test")
    names = {f"{mode}_{kind}_x{s}" for mode in both for kind in kinds for s in (2, 3, 4)}
    names |= {f"train_ESC_XL_DF2K_x{s}_{stage}" for s in (2, 3, 4) for stage in ("PT", "FT")}
    names |= {f"test_ESC_XL_DF2K_x{s}" for s in (2, 3, 4)}
    names |= {f"{mode}_ESC_Real_x4_{stage}" for mode in both for stage in ("MSE", "GAN")}
    names |= {f"{mode}_ESC_FlashBias_x2" for mode in both} | {"test_ESC_Real_FlashBias_x4_GAN"}
    peers = ("ATD", "HiT_SRF", "SRFormer")
    names |= {f"test_{peer}_DFLIP_x{s}" for peer in peers for s in (2, 3, 4)}
    assert set(FILES) == names


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_authors_does_what_the_page_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path, options = tmp_path / f"{name}.yml", FILES[name]
    path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    is_train = name.startswith("train_")
    here = rows()[name][2]
    refused = here.startswith("refused") or ("`peers`" in here and not HAS_PEERS)
    entries = make_data(options, tmp_path)
    if not refused:
        write_checkpoints(options, entries)
    if "perceptual_opt" in options.get("train", {}):
        write_vgg19(tmp_path)
    entries += _small_run(options) if is_train else []
    before = sorted(tmp_path.iterdir())

    report = check_options(path, entries, is_train)
    status = main(["train" if is_train else "test", "-opt", str(path), "--force_yml", *entries])
    lines = [line for line in capsys.readouterr().err.splitlines() if "basicsr: error: " in line]
    if refused:
        assert status == 2
        [line] = lines
        assert "is in no package" in line or "pip install 'esc-arch[peers]'" in line
        assert sorted(tmp_path.iterdir()) == before
        return
    assert (report.errors, report.warnings, lines, status) == ([], [], [], 0)
    if is_train:
        models = tmp_path / "experiments" / name / "models"
        first, last = (torch.load(models / f"net_g_{i}.pth", weights_only=True) for i in (1, 2))
        assert all(torch.isfinite(value).all() for value in last["params"].values())
        assert any((first["params"][key] != last["params"][key]).any() for key in last["params"])
    else:
        pictures = list((tmp_path / "results" / name / "visualization").rglob("*.png"))
        assert len(pictures) == 2 * len(options["datasets"])


def _small_run(options: dict[str, Any]) -> list[str]:
    """Entries for two iterations of small patches, with pictures for 8 an iteration."""
    patch = 16 * options["scale"]
    return [
        "train:total_iter=2",
        "logger:print_freq=1",
        "logger:save_checkpoint_freq=1",
        "val:val_freq=2",
        "datasets:train:num_worker_per_gpu=0",
        "datasets:train:dataset_enlarge_ratio=8",
        f"{'gt_size' if 'gt_size' in options else 'datasets:train:gt_size'}={patch}",
    ]
