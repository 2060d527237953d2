"""What BasicSR would measure, save or compare wrongly when it validates: right, or refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs_in_process import (
    WriteOptions,
    folder,  # noqa: F401  (each test starts in it)
    log_of,
    refused,
    state,
    test_of,
    told,
    train,
)


def test_a_set_without_gt_is_not_compared_with_the_last_training_patch(
    write_train_options: WriteOptions, paired_data: Any
):
    single = {
        "name": "real",
        "type": "SingleImageDataset",
        "dataroot_lq": str(paired_data.val_lq),
        "io_backend": {"type": "disk"},
    }
    log = train(write_train_options({"datasets:val_2": single}))
    assert "real: has no GT, so psnr is left out." in log
    measured = json.loads(Path("experiments/tiny/validation.json").read_text())
    assert measured["real"] == {} and measured["tiny_val"]["psnr"]


def test_with_niqe_the_checkpoint_of_the_lowest_is_kept(
    write_train_options: WriteOptions, photographs: Any, tmp_path: Path
):
    (tmp_path / "lq").mkdir()
    Image.fromarray(photographs["coffee"][100:196, 200:296]).save(tmp_path / "lq" / "cup.png")
    options = {
        "datasets:val": {
            "name": "real",
            "type": "SingleImageDataset",
            "dataroot_lq": str(tmp_path / "lq"),
            "io_backend": {"type": "disk"},
        },
        "val": {"val_freq": 1, "metrics": {"niqe": {"type": "calculate_niqe", "crop_border": 0}}},
        # Steps this long change what is measured.
        "train:optim_g": {"type": "SGD", "lr": 0.5},
        "train:ema_decay": None,
        "train:total_iter": 5,
        "logger:save_checkpoint_freq": 1,
        "logger:keep_checkpoints": 1,
    }
    log = train(write_train_options(options))
    values = json.loads(Path("experiments/tiny/validation.json").read_text())["real"]["niqe"]
    lowest = min(values, key=values.__getitem__)
    assert max(values, key=values.__getitem__) != lowest
    kept = {path.stem for path in Path("experiments/tiny/training_states").iterdir()}
    assert kept == {lowest, "5"}
    assert re.findall(r"Best: [\d.]+ @ (\d+) iter", log)[-1] == lowest


def test_two_sets_of_one_name_are_refused(write_train_options: WriteOptions):
    opt = yaml.safe_load(write_train_options().read_text())
    options = write_train_options({"datasets:val_2": opt["datasets"]["val"]})
    assert "datasets:val_2:name: 'tiny_val' is datasets:val's name too" in refused(options)
    said = refused(options, "--no-preflight")
    assert "val and val_2 both have name: tiny_val" in said


def test_images_of_one_name_are_refused_where_they_would_be_saved(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
):
    shutil.copytree(paired_data.val_lq, tmp_path / "lq")
    chelsea = cv2.imread(str(tmp_path / "lq" / "chelseax2.png"))
    cv2.imwrite(str(tmp_path / "lq" / "chelseax2.bmp"), chelsea)
    single = {
        "name": "real",
        "type": "SingleImageDataset",
        "dataroot_lq": str(tmp_path / "lq"),
        "io_backend": {"type": "disk"},
    }
    said = refused(write_train_options({"datasets:val_2": single, "val:save_img": True}))
    assert re.search(r"chelseax2\.(bmp|png) would both be saved as chelseax2", said)
    # Before the first iteration.
    assert not list(Path("experiments/tiny/training_states").iterdir())


def test_a_test_refuses_images_that_would_be_saved_under_one_name(
    write_test_options: WriteOptions, paired_data: Any, tmp_path: Path
):
    shutil.copytree(paired_data.val_lq, tmp_path / "lq")
    chelsea = cv2.imread(str(tmp_path / "lq" / "chelseax2.png"))
    cv2.imwrite(str(tmp_path / "lq" / "chelseax2.bmp"), chelsea)
    single = {
        "name": "real",
        "type": "SingleImageDataset",
        "dataroot_lq": str(tmp_path / "lq"),
        "io_backend": {"type": "disk"},
    }
    changes = {"datasets:test_1": single, "path:pretrain_network_g": None}
    options = write_test_options({**changes, "path:param_key_g": None})
    Path("results/tiny_test/visualization").mkdir(parents=True)
    Path("results/tiny_test/visualization/older.png").write_bytes(b"older")
    said = refused(options, "--random-weights", subcommand="test")
    assert re.search(r"chelseax2\.(bmp|png) would both be saved as chelseax2", said)
    assert [path.name for path in Path("results").rglob("*")] == [
        "tiny_test",
        "visualization",
        "older.png",
    ]
    test_of(write_test_options({**changes, "val:save_img": False}), "--random-weights")


def test_images_of_two_sets_with_equal_names_are_saved_apart(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
):
    shutil.copytree(paired_data.val_lq, tmp_path / "lq")
    flipped = cv2.flip(cv2.imread(str(tmp_path / "lq" / "chelseax2.png")), 1)
    cv2.imwrite(str(tmp_path / "lq" / "chelseax2.png"), flipped)
    single = {
        "name": "real",
        "type": "SingleImageDataset",
        "dataroot_lq": str(tmp_path / "lq"),
        "io_backend": {"type": "disk"},
    }
    log = train(write_train_options({"datasets:val_2": single, "val:save_img": True}))
    assert "real: chelseax2 is an image of tiny_val too: images of real are saved in" in log
    pictures = Path("experiments/tiny/visualization")
    # Where BasicSR puts them, and apart.
    first, second = (
        cv2.imread(str(pictures / part / "chelseax2" / "chelseax2_4.png")) for part in ("", "real")
    )
    assert first.shape == second.shape and (first != second).any()
    assert (pictures / "real" / "coffeex2" / "coffeex2_4.png").is_file()


@pytest.mark.parametrize("listed", [False, True])
def test_gt_that_is_too_large_for_its_lq_is_refused_in_validation(
    listed: bool, write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
):
    (tmp_path / "gt").mkdir()
    for path in paired_data.val_gt.iterdir():
        image = cv2.imread(str(path))
        cv2.imwrite(str(tmp_path / "gt" / path.name), cv2.resize(image, None, fx=2, fy=2))
    changes = {"datasets:val:dataroot_gt": str(tmp_path / "gt")}
    if listed:
        (tmp_path / "list.txt").write_text("chelsea.png\ncoffee.png\n")
        changes["datasets:val:meta_info_file"] = str(tmp_path / "list.txt")
    options = write_train_options(changes)
    assert "is 24 x 20, but its partner in dataroot_gt 96 x 80: that is not" in refused(options)
    said = refused(options, "--no-preflight")
    assert "GT is 96 x 80 and LQ 24 x 20: that is not scale 2" in said


def test_a_border_that_leaves_nothing_is_refused_after_saving(write_train_options: WriteOptions):
    metric = {"type": "calculate_psnr", "crop_border": 200}
    options = write_train_options(
        {"val:metrics": {"psnr": metric}, "val:val_freq": 3, "logger:save_checkpoint_freq": 100}
    )
    assert "crop_border: 200 leaves nothing of" in refused(options)
    said = refused(options, "--no-preflight")
    assert "psnr: crop_border: 200: nothing is left of an image" in said
    assert state(3)["iter"] == 3
    assert "The run ends with an error; saved iteration 3." in log_of("tiny")


def test_mean_and_std_of_the_data_do_not_change_what_is_measured(
    write_train_options: WriteOptions, write_test_options: WriteOptions, paired_data: Any
):
    train(write_train_options())
    # Halves and doubles: the network is nearly linear in neither, so only GT itself tells.
    from basicsr.models import build_model
    from torch.utils.data import DataLoader

    from esc_arch.plugin.models.durable import durable

    opt = yaml.safe_load(write_test_options({"val:save_img": False}).read_text())
    opt.update(num_gpu=0, dist=False, is_train=False, rank=0, manual_seed=0)
    model = durable(type(build_model(opt)))(opt)

    class Normalized(torch.utils.data.Dataset):
        opt = {"name": "tiny_val", "mean": [0.4, 0.5, 0.6], "std": [2.0, 2.0, 2.0]}

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, Any]:
            image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
            mean = torch.tensor(self.opt["mean"]).reshape(3, 1, 1)
            return {"lq": (image - mean) / 2, "gt": (image - mean) / 2, "lq_path": "a.png"}

    # A network that changes nothing: the result is GT, so PSNR is infinite, if both are brought
    # back alike, and the visuals are what they were before they were normalized.
    model.net_g = torch.nn.Identity()
    seen = []
    original = model.get_current_visuals
    model.get_current_visuals = lambda: seen.append(original()) or seen[-1]
    model.nondist_validation(DataLoader(Normalized()), 1, None, False)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0]["result"][0], image)
    torch.testing.assert_close(seen[0]["gt"][0], image)
    assert model.metric_results["psnr"] == float("inf")


@pytest.mark.parametrize("val", [None, {"save_img": True}])
def test_a_test_needs_neither_val_nor_suffix(
    val: dict | None, write_train_options: WriteOptions, write_test_options: WriteOptions
):
    train(write_train_options())
    opt = yaml.safe_load(write_test_options().read_text())
    opt["val"] = val
    Path("test.yml").write_text(yaml.safe_dump(opt))
    test_of(Path("test.yml"))
    images = list(Path("results/tiny_test/visualization").rglob("*.png"))
    assert len(images) == (2 if val else 0)


def test_equal_images_are_left_out_of_the_mean_and_said(write_train_options: WriteOptions):
    from basicsr.models import build_model
    from torch.utils.data import DataLoader

    from esc_arch.plugin.models.durable import durable

    opt = yaml.safe_load(write_train_options().read_text())
    opt.update(num_gpu=0, dist=False, is_train=False, rank=0)
    opt["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    model = durable(type(build_model(opt)))(opt)
    model.net_g = torch.nn.Identity()

    class Pairs(torch.utils.data.Dataset):
        opt = {"name": "pairs"}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, Any]:
            lq = torch.full((3, 8, 8), 0.5)
            return {"lq": lq, "gt": lq + 10 / 255 * index, "lq_path": f"{index}.png"}

    with told() as lines:
        model.nondist_validation(DataLoader(Pairs()), 1, None, False)
    assert model.metric_results["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=0.2)
    assert any("psnr of 1 of 2 images, which equal their GT, is infinite" in x for x in lines)
