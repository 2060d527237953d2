"""Everything wrong with an option file is said at once, one line each, and right files pass."""

import copy
import functools
import importlib
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from option_data import make_data, write_empty_vgg19, write_weights

from esc_arch.plugin.preflight import Report, build, check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

OPTIONS = Path(__file__).parents[2] / "options"
BASICSR_OPTIONS = sorted((Path(__file__).parents[1] / "data" / "basicsr_options").glob("*.yml"))

WriteOptions = Callable[..., Path]


def find(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> Report:
    """Preflight, with what must hold of any result."""
    report = check_options(path, force_yml, is_train)
    for line in report.errors + report.warnings:
        assert len(line.splitlines()) == 1
        assert len(line) < 1500
    return report


def check(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> list[str]:
    """The errors that preflight finds."""
    return find(path, force_yml, is_train).errors


def only_error(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> str:
    errors = check(path, force_yml, is_train)
    assert len(errors) == 1, errors
    return errors[0]


def test_right_training_and_test_files_pass(
    write_train_options: WriteOptions, write_test_options: WriteOptions, tmp_path: Path
) -> None:
    assert check(write_train_options()) == []
    weights = tmp_path / "net_g.pth"
    path = write_test_options({"path:pretrain_network_g": str(weights)})
    write_weights(weights, yaml.safe_load(path.read_text())["network_g"])
    assert check(path, is_train=False) == []


@pytest.mark.parametrize("path", BASICSR_OPTIONS, ids=lambda path: path.stem)
def test_basicsr_option_files_pass_once_the_data_is_there(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_empty_vgg19(tmp_path)
    options = yaml.safe_load(path.read_text())
    fewer = []
    if options["network_g"]["type"] == "RRDBNet":
        # Fewer blocks are built faster, and keys are all that this test is about.
        options["network_g"]["num_block"] = 1
        fewer = ["network_g:num_block=1"]
    entries = make_data(options, tmp_path) + fewer
    report = find(path, entries, is_train=path.stem.startswith("train"))
    # What BasicSR's samplers once read.
    unread = "datasets:train:use_shuffle: nothing reads this key, it has no effect"
    assert report.warnings == ([unread] if "train" in options["datasets"] else [])
    # Without a GPU neither its operators nor its validation of videos work.
    without_gpu = {
        "StyleGAN2": ["operator fused_act, which needs an NVIDIA GPU"] * 2,
        "VSR": ["val:metrics: VideoRecurrentModel adds them up on a GPU"],
        "EDVR": ["val:metrics: EDVRModel adds them up on a GPU"],
    }
    expected = [words for part, words in without_gpu.items() if part in path.stem]
    expected = [] if torch.cuda.is_available() or not expected else expected[0]
    assert len(report.errors) == len(expected), report.errors
    assert all(words in error for words, error in zip(expected, report.errors, strict=True))


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "SRModl"},
        "model_type: no model 'SRModl' is registered; did you mean SRModel?",
    ),
    ({"model_type": "escmodel"}, "did you mean ESCModel?"),
    ({"model_type": "ESCMODL"}, "did you mean ESCModel?"),
    (
        {"network_g:type": "ECS"},
        "network_g:type: no network 'ECS' is registered; did you mean ESC?",
    ),
    ({"datasets:train:type": "PairdImageDataset"}, "did you mean PairedImageDataset?"),
    ({"train:pixel_opt:type": "L1Los"}, "train:pixel_opt:type: no loss 'L1Los'"),
    ({"val:metrics:psnr:type": "calculate_psrn"}, "did you mean calculate_psnr?"),
    ({"train:optim_g:type": "Adamw"}, "train:optim_g:type: no optimizer 'Adamw' in torch.optim"),
    ({"train:scheduler:type": "CosineLR"}, "train:scheduler:type: BasicSR knows CosineAnneal"),
    ({"model_type": 3}, "model_type: must be text, not 3"),
    # unknown keywords
    ({"network_g:num_blok": 2}, "network_g:num_blok: EDSR takes no such keyword"),
    ({"train:pixel_opt:weight": 1}, "train:pixel_opt:weight: L1Loss takes no such keyword"),
    ({"train:optim_g:momentum": 1}, "train:optim_g:momentum: Adam takes no such keyword"),
    ({"train:scheduler:step": 1}, "train:scheduler:step: MultiStepRestartLR takes no such keyword"),
    ({"network_g:num_in_ch": None}, "network_g:num_in_ch: missing; EDSR needs it"),
    # misspelt keys that decide what is trained
    ({"seed": 1, "manual_seed": None}, "seed: nothing reads this key; here it is manual_seed at"),
    ({"train:manual_seed": 1}, "train:manual_seed: nothing reads this key"),
    ({"train:pixl_opt": {"type": "L1Loss"}}, "train:pixl_opt: nothing reads this key"),
    ({"path:pretrain_netwrok_g": "x"}, "path:pretrain_netwrok_g: nothing reads this key"),
    ({"path:strict_load_gg": True}, "path:strict_load_gg: nothing reads this key"),
    ({"path:pretrain_model_G": "x.pth"}, "here it is path: pretrain_network_g"),
    ({"path:extra": 5}, "path:extra: nothing reads this key, and BasicSR makes a folder of it"),
    ({"path:extra": "/abs/dir"}, "path:extra: nothing reads this key, and BasicSR makes a folder"),
    # types
    ({"train:optim_g:lr": "5e-4"}, "train:optim_g:lr: '5e-4' is text to YAML, which wants"),
    ({"train:optim_g:lr": "1e5"}, "write 1.0e+5"),
    ({"train:total_iter": "many"}, "train:total_iter: must be a whole number at least 1"),
    ({"val:save_img": "yes please"}, "val:save_img: must be true or false, not 'yes please'"),
    ({"datasets:train:use_rot": 2}, "datasets:train:use_rot: must be true or false, not 2"),
    ({"network_g:num_feat": "eight"}, "network_g:num_feat: must be a number, not 'eight'"),
    ({"network_g:num_feat": 8.5}, "network_g: cannot be built of"),
    ({"train:optim_g:betas": 0.9}, "train:optim_g:betas: must be a list of 2 numbers"),
    ({"train": [1, 2]}, "train: must be a section, key: value, not [1, 2]"),
    ({"datasets:train:io_backend": "lmdb"}, "datasets:train:io_backend: must be a section"),
    ({"num_gpu": "all"}, "num_gpu: must be auto or a whole number at least 0, not 'all'"),
    ({"name": "../elsewhere"}, "name: must be text that can name a folder"),
    ({"name": "名" * 150}, "name: is too long for a folder: 450 bytes in UTF-8, at most 180 fit"),
    ({"datasets:val:name": "a/../../b"}, "datasets:val:name: must be text that can name a folder"),
    ({"datasets:val:filename_tmpl": "{:>3000000000}"}, "datasets:val:filename_tmpl: must be text"),
    ({"datasets:val:filename_tmpl": "x2"}, "datasets:val:filename_tmpl: must be text with {}"),
    # ranges
    ({"datasets:train:batch_size_per_gpu": 0}, "batch_size_per_gpu: must be a whole number from 1"),
    (
        {"datasets:train:num_worker_per_gpu": -1},
        "num_worker_per_gpu: must be a whole number from",
    ),
    ({"train:total_iter": -5}, "train:total_iter: must be a whole number at least 1, not -5"),
    ({"train:ema_decay": 1.5}, "train:ema_decay: must be a number at least 0 and at most 1"),
    ({"train:optim_g:lr": 0}, "train:optim_g:lr: must be a number above 0, not 0"),
    ({"train:optim_g:lr": float("nan")}, "train:optim_g:lr: must be a number above 0, not nan"),
    ({"train:optim_g:betas": [0.9, 1.0]}, "numbers from 0 to below 1"),
    ({"manual_seed": -1}, "manual_seed: must be a whole number from 0"),
    ({"datasets:train:gt_size": 33}, "datasets:train:gt_size: 33 must be a multiple of scale, 2"),
    # values that contradict each other
    ({"network_g:upscale": 4}, "network_g:upscale: is 4, but scale is 2: they must be the same"),
    (
        {"train:scheduler:restarts": [0, 2], "train:scheduler:restart_weights": [1]},
        "train:scheduler:restart_weights: has 1 values, but restarts has 2",
    ),
    ({"datasets:train:prefetch_mode": "cuda"}, "prefetch_mode: cuda needs pin_memory: true"),
    ({"logger:wandb": {"project": "p"}}, "logger:use_tb_logger: must be true when wandb"),
    ({"train:pixel_opt": None}, "train:pixel_opt: missing; there is no loss to train with"),
    (
        {"train:pixel_opt:reduction": "median"},
        "train:pixel_opt: Unsupported reduction mode",
    ),
    # missing
    ({"name": None}, "name: missing"),
    ({"path": None}, "path: missing"),
    ({"train:total_iter": None}, "train:total_iter: missing"),
    ({"train:optim_g": None}, "train:optim_g: missing"),
    ({"train:optim_g:lr": None}, "train:optim_g:lr: missing; it is the learning rate"),
    ({"train:scheduler:milestones": None}, "train:scheduler:milestones: missing"),
    ({"network_g": None}, "network_g: missing"),
    ({"network_g:type": None}, "network_g:type: missing; it names the network"),
    ({"model_type": None}, "model_type: missing"),
    ({"logger:print_freq": None}, "logger:print_freq: missing"),
    ({"val:val_freq": None}, "val:val_freq: missing"),
    ({"datasets:train": None}, "datasets:train: missing; it is the data to train on"),
    ({"datasets:train:use_hflip": None}, "datasets:train:use_hflip: missing"),
    ({"datasets:train:gt_size": None}, "datasets:train:gt_size: missing"),
    ({"datasets:train:batch_size_per_gpu": None}, "datasets:train:batch_size_per_gpu: missing"),
    ({"datasets:val:name": None}, "datasets:val:name: missing"),
    ({"datasets:val:io_backend": {}}, "datasets:val:io_backend:type: missing; disk or lmdb"),
    ({"val:metrics:psnr:crop_border": None}, "val:metrics:psnr:crop_border: missing"),
    # files
    ({"datasets:train:dataroot_gt": "nowhere.lmdb"}, "no such LMDB: nowhere.lmdb"),
    ({"datasets:train:dataroot_gt": "folder"}, "the name of an LMDB must end with .lmdb"),
    ({"datasets:val:dataroot_lq": "nowhere"}, "datasets:val:dataroot_lq: no such folder: nowhere"),
    ({"datasets:val:dataroot_lq": "a\0b"}, "datasets:val:dataroot_lq: no such folder"),
    ({"datasets:val:meta_info_file": "no.txt"}, "meta_info_file: no such file: no.txt"),
    ({"path:pretrain_network_g": "no.pth"}, "path:pretrain_network_g: no.pth: no such checkpoint"),
    ({"path:pretrain_network_g": "/"}, "path:pretrain_network_g: /: is a folder"),
    ({"path:pretrain_network_g": "~nobody/x.pth"}, "path:pretrain_network_g: ~nobody/x.pth: "),
    (
        {"path:pretrain_network_g": "RCAN_X2"},
        "it is neither a file nor a name that `basicsr checkpoints list` shows",
    ),
    (
        {"path:pretrain_network_g": "esc_div2k_x22"},
        "esc_div2k_x22: no such checkpoint; did you mean ESC_DIV2K_X2?",
    ),
    ({"path:resume_state": "9.state"}, "path:resume_state: no such training state: 9.state"),
    ({"datasets:train:io_backend:type": "lmbd"}, "must be one of disk, lmdb, not 'lmbd'"),
    ({"datasets:test_1": {"name": "x"}}, "datasets:test_1: the name of a data set must be like"),
]


@pytest.mark.parametrize("change, expected", WRONG, ids=lambda value: str(value)[:60])
def test_each_error_names_the_option_and_what_would_be_right(
    change: dict[str, Any], expected: str, write_train_options: WriteOptions
) -> None:
    errors = check(write_train_options(change))
    assert any(expected in error for error in errors), errors


def test_all_errors_are_said_at_once(write_train_options: WriteOptions) -> None:
    errors = check(
        write_train_options(
            {
                "train:edge_opt": {"type": "EdgeLoss", "loss_weight": 0.05},
                "network_g:upscale": 3,
                "datasets:train:batch_size_per_gpu": 0,
            }
        )
    )
    assert len(errors) == 3


@pytest.mark.parametrize(
    "network, expected",
    [
        ({"kernel_size": 12}, "network_g:kernel_size: is 12; it must be odd"),
        ({"num_heads": 3}, "num_heads"),
        ({"dim": 0}, "network_g:dim: is 0; it must be an integer of at least 1"),
        ({"attn_type": "Falsh"}, "attn_type"),
        ({"upscaling_factor": 3}, "network_g:upscaling_factor: is 3, but scale is 2"),
        ({"n_blocks": 10**12}, "network_g:n_blocks: 1000000000000 is too large to build"),
        ({"window_size": "32"}, "network_g:window_size: must be a number, not '32'"),
    ],
)
def test_values_that_esc_refuses_are_found_without_building_weights(
    network: dict[str, Any],
    expected: str,
    write_train_options: WriteOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "MAX_CALLS", 500_000)
    esc = yaml.safe_load((OPTIONS / "train_ESC_light_x2.yml").read_text())["network_g"]
    error = only_error(write_train_options({"network_g": {**esc, **network}}))
    assert expected in error


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"name: [1, 2", "line 1: not YAML"),
        (b"- a\n- b\n", "must be a mapping of options"),
        (b"", "must be a mapping of options"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"a: " + b"[" * 100_000, "nested too deeply"),
        (b"a: &a [*a]\n", "an alias (*name) contains itself"),
        (b"a: !!python/object/apply:os.system ['touch ran']\n", "Python objects"),
        (b"a: &a " + b"x" * 900_000 + b"\nb: [*a, *a, *a]\n", "more than 2000000 letters"),
        (
            b"x: &a0 [1, 1]\n"
            + b"".join(
                b"x%d: &a%d [*a%d, *a%d, *a%d]\n" % (i, i, i - 1, i - 1, i - 1)
                for i in range(1, 40)
            ),
            "more than 20000 values",
        ),
        (b"a: 2024-99-99\n", "month must be in 1..12"),
        (b"#" * 1_000_001, "larger than 1000000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_that_are_no_option_files_get_one_line(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong.yml"
    path.write_bytes(content)
    error = only_error(path)
    assert error.startswith(f"-opt {path}: ")
    assert expected in error
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_a_folder_and_a_pipe_get_one_line(tmp_path: Path) -> None:
    assert "no such option file" in only_error(tmp_path / "no.yml")
    assert "is not a file" in only_error(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in only_error(tmp_path / "pipe")


@pytest.mark.parametrize(
    "entry, expected",
    [
        ("train:total_iter", "must be KEY:KEY=VALUE with one '='"),
        ("train:total_iter=1=2", "must be KEY:KEY=VALUE with one '='"),
        ('train:x"]=1;y["=1', "must be KEY:KEY=VALUE with one '='"),
        ("trian:total_iter=2", "there is no section trian; did you mean train?"),
        ("train:total_iter:x=2", "there is no section train:total_iter"),
        ("datasets:train:mean=[a, b]", "is not a value; text in lists needs quotes"),
        ("datasets:train:mean=[__import__('os').mkdir('ran')]", "is not a value"),
        ("train:optim_g:lr=5e-4", "'5e-4' is text to YAML"),
    ],
)
def test_wrong_overrides_get_one_line(
    entry: str,
    expected: str,
    write_train_options: WriteOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in only_error(write_train_options(), [entry])
    assert not (tmp_path / "ran").exists()


def test_overrides_are_applied_as_basicsr_applies_them(write_train_options: WriteOptions) -> None:
    path = write_train_options({"train:optim_g:lr": "wrong", "datasets:train:gt_size": 0})
    assert len(check(path)) == 2
    assert check(path, ["train:optim_g:lr=!!float 1e-3", "datasets:train:gt_size=32"]) == []
    assert check(path, ["train:optim_g:lr=0.001", "datasets:train:gt_size=32", "scale=2"]) == []


EDSR = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "upscale": 2,
}
TINY_ESC = {
    "type": "ESC",
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "upscaling_factor": 2,
}


@pytest.mark.parametrize(
    "weights, path, expected",
    [
        ({}, {}, None),
        # Its last convolution is resized.
        ({"upscaling_factor": 4}, {}, None),
        ({"dim": 16}, {}, "does not fit ESC with these options: size mismatch for "),
        ({"n_blocks": 2}, {}, "does not fit ESC with these options: Unexpected key"),
        ({"n_blocks": 2}, {"strict_load_g": False}, None),
    ],
)
def test_weights_of_another_network_are_found(
    weights: dict[str, Any],
    path: dict[str, Any],
    expected: str | None,
    write_test_options: WriteOptions,
    tmp_path: Path,
) -> None:
    file = tmp_path / "net_g.pth"
    write_weights(file, {**TINY_ESC, **weights})
    changes = {"network_g": TINY_ESC, "path:pretrain_network_g": str(file)}
    options = yaml.safe_load(write_test_options(changes).read_text())
    options["path"].update(path)
    (tmp_path / "test.yml").write_text(yaml.safe_dump(options))
    if expected is None:
        assert check(tmp_path / "test.yml", is_train=False) == []
    else:
        error = only_error(tmp_path / "test.yml", is_train=False)
        assert error.startswith(f"path:pretrain_network_g: {file}: {expected}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"<html>"])
def test_weights_that_are_no_checkpoint_are_found(
    content: bytes, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    file = tmp_path / "net_g.pth"
    file.write_bytes(content)
    error = only_error(write_train_options({"path:pretrain_network_g": str(file)}))
    assert error.startswith(f"path:pretrain_network_g: {file}: ")
    assert "not a checkpoint" in error


def test_training_files_are_not_tested_and_the_reverse() -> None:
    train = str(OPTIONS / "train_ESC_XL_DF2K_x2_FT.yml")
    test = str(OPTIONS / "test_ESC_XL_DF2K_x2.yml")
    assert only_error(Path(train), is_train=False) == (
        f"-opt {train}: is a training file (it has datasets:train); test with: basicsr test "
        f"-opt {test} --force_yml path:pretrain_network_g="
        "experiments/train_ESC_XL_DF2K_x2_FT/models/net_g_latest.pth"
    )
    assert only_error(OPTIONS / "test_ESC_x2.yml") == (
        f"-opt {OPTIONS / 'test_ESC_x2.yml'}: is a test file (it has datasets:test_1 and no "
        f"datasets:train); train with: basicsr train -opt {OPTIONS / 'train_ESC_x2.yml'}"
    )


def test_a_null_for_a_folder_of_pairs_is_named(write_train_options: WriteOptions) -> None:
    path = write_train_options()
    error = "datasets:val:dataroot_lq: must be a path, not None"
    assert only_error(path, ["datasets:val:dataroot_lq=~"]) == error


def test_where_some_test_sets_are_absent_the_others_are_offered(
    write_test_options: WriteOptions, tmp_path: Path
) -> None:
    write_weights(tmp_path / "net_g.pth", EDSR)
    absent = {
        "name": "Set14",
        "type": "PairedImageDataset",
        "dataroot_gt": "absent",
        "dataroot_lq": "absent",
        "io_backend": {"type": "disk"},
    }
    changes = {"path:pretrain_network_g": str(tmp_path / "net_g.pth"), "network_g": EDSR}
    path = write_test_options({**changes, "datasets:test_2": absent})
    assert check(path, is_train=False) == [
        "datasets:test_2:dataroot_gt: no such folder: absent",
        "datasets:test_2:dataroot_lq: no such folder: absent",
        "datasets: 1 of 2 cannot be read (above); to test on the others only: --datasets tiny_val",
    ]
    assert check_options(path, is_train=False, datasets=["Tiny_Val"]).errors == []
    assert check_options(path, is_train=False, datasets=["test_1"]).errors == []
    assert check_options(path, is_train=False, datasets=["tiny_val", "Set15"]).errors == [
        "--datasets Set15: not in the option file, which has tiny_val, Set14"
    ]


def test_pairs_that_do_not_match_are_named(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
) -> None:
    lq = tmp_path / "lq"
    lq.mkdir()
    for source in paired_data.val_lq.iterdir():
        cv2.imwrite(str(lq / source.name), cv2.imread(str(source)))
    path = write_train_options({"datasets:val:dataroot_lq": str(lq)})
    assert check(path) == []

    (lq / "odd.png").write_bytes((lq / "coffeex2.png").read_bytes())
    assert "has 3 files, but dataroot_gt has 2" in only_error(path)

    (lq / "odd.png").unlink()
    (lq / "coffeex2.png").rename(lq / "coffee.png")
    assert "has no coffeex2.png, the partner of coffee.png" in only_error(path)

    cv2.imwrite(str(lq / "coffeex2.png"), np.zeros((9, 9, 3), np.uint8))
    (lq / "coffee.png").unlink()
    assert "coffeex2.png is 9 x 9, but its partner in dataroot_gt 48 x 40" in only_error(path)

    (lq / "coffeex2.png").write_bytes(b"not a picture")
    assert "not a picture that can be read" in only_error(path)


def test_lmdbs_that_do_not_match_are_named(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
) -> None:
    lq = tmp_path / "lq.lmdb"
    lq.mkdir()
    path = write_train_options({"datasets:train:dataroot_lq": str(lq)})
    assert "has no data.mdb, so it is not whole" in only_error(path)

    (lq / "data.mdb").write_bytes((paired_data.train_lq / "data.mdb").read_bytes())
    listing = (paired_data.train_lq / "meta_info.txt").read_text().splitlines()
    (lq / "meta_info.txt").write_text("\n".join(listing[1:]))
    assert "holds other pictures than dataroot_gt: 8 there and 7 here" in only_error(path)

    (lq / "meta_info.txt").write_text("\n".join(listing).replace("(32,32,3)", "(16,16,3)"))
    assert "that is not scale 2" in only_error(path)


PLUGIN = """
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel

class PluginModel(SRModel):
    def init_training_settings(self):
        super().init_training_settings()
        self.teacher = self.opt["train"]["teacher_opt"]["weight"]
        self.helper(self.opt["val"])

    def helper(self, settings):
        self.ensemble = settings.get("self_ensemble", False)
        self.others = [key for key in self.opt["train"] if key.endswith("_distill_opt")]

class PluginDataset(PairedImageDataset):
    def __init__(self, opt):
        super().__init__(opt)
        self.mixup = opt.get("use_mixups", 0.0)
"""


def test_plugins_keys_are_found_in_their_source(
    write_train_options: WriteOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_of_this_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    plugin = importlib.import_module("plugin_of_this_test")
    MODEL_REGISTRY.register(plugin.PluginModel)
    DATASET_REGISTRY.register(plugin.PluginDataset)
    try:
        change = {
            "model_type": "PluginModel",
            "train:teacher_opt": {"weight": 0.5},
            "train:wavelet_distill_opt": {"type": "L1Loss"},
            "val:self_ensemble": True,
            "datasets:train:type": "PluginDataset",
            "datasets:train:use_mixups": 0.5,
        }
        report = find(write_train_options(change))
        assert (report.errors, report.warnings) == ([], [])
        change["val:self_ensembl"] = change.pop("val:self_ensemble")
        change["datasets:train:use_mixup"] = change.pop("datasets:train:use_mixups")
        report = find(write_train_options(change))
        assert report.errors == []
        assert report.warnings == [
            "val:self_ensembl: nothing reads this key, it has no effect; did you mean "
            "self_ensemble?",
            "datasets:train:use_mixup: nothing reads this key, it has no effect; did you mean "
            "use_mixups?",
        ]
    finally:
        del MODEL_REGISTRY._obj_map["PluginModel"]
        del DATASET_REGISTRY._obj_map["PluginDataset"]


def test_building_a_network_leaves_no_trace(
    write_train_options: WriteOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Untidy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            print("building")
            random.random()
            np.random.rand()
            torch.rand(1)

    ARCH_REGISTRY.register(Untidy)
    path = write_train_options({"network_g": {"type": "Untidy"}})
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    before = sorted(tmp_path.rglob("*"))
    try:
        assert check(path) == []
    finally:
        del ARCH_REGISTRY._obj_map["Untidy"]
    assert sorted(tmp_path.rglob("*")) == before
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states
    assert capfd.readouterr() == ("", "")


# -- fuzzing

FUZZED = {
    path.stem: yaml.safe_load(path.read_text())
    for path in [
        OPTIONS / "train_ESC_light_x2.yml",
        OPTIONS / "train_ESC_Real_x4_GAN.yml",
        OPTIONS / "test_ESC_FP_x3.yml",
        BASICSR_OPTIONS[0],
    ]
}
for _options in FUZZED.values():
    _options["network_g"].update({"n_blocks": 1} if "n_blocks" in _options["network_g"] else {})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**9, -(10**9), 10**30, 10**400, 2**31, 2**63, 0, 1, -1, 3]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "5e-4", "a" * 5000, "\0", "..", "/", "~", "~nobody/x", "{", "{0.x}"]),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), st.integers(), max_size=3),
    st.just([[[]]]),
    st.just({"type": {"type": []}}),
)


def places(section: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of nested dictionaries."""
    found = []
    for key, value in section.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


@st.composite
def mutated_options(
    draw: st.DrawFn, files: dict[str, dict[str, Any]] = FUZZED
) -> tuple[dict[str, Any], bool]:
    """One of our option files with one to three changes, and whether it is for training."""
    name = draw(st.sampled_from(sorted(files)))
    options = copy.deepcopy(files[name])
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(places(options) or [("name",)]))
        section = options
        for parent in parents:
            section = section[parent]
        change = draw(st.sampled_from(["drop", "replace", "misspell", "scale", "rename"]))
        value = section.pop(key, None)
        if change == "replace":
            # A later change may fall within it, and some are the same object each time.
            section[key] = copy.deepcopy(draw(VALUES))
        elif change == "misspell" and isinstance(key, str):  # Not what was renamed before.
            position = draw(st.integers(0, len(key) - 1)) if key else 0
            section[key[:position] + key[position + 1 :]] = value
        elif change == "rename":
            section[draw(st.one_of(st.text(max_size=8), st.integers(), st.none()))] = value
        elif change == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
            section[key] = value * draw(st.sampled_from([-1, 0, 10**6, 10**12, 0.5, 1e300]))
    return options, draw(st.booleans())


FUZZING = settings(
    deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), database=None
)


@FUZZING
@given(mutated_options())
def test_no_mutation_of_an_option_file_ends_in_a_traceback(case: tuple[Any, bool]) -> None:
    options, is_train = case
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(build, "MAX_CALLS", 1_500_000)
        path = Path(folder, "options.yml")
        path.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        # The data is missing, so there is always something to say.
        assert check(path, is_train=is_train)
        assert os.listdir(folder) == ["options.yml"]


@pytest.fixture(scope="module")
def fuzzed_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same option files with data and checkpoints that are there."""
    found = {}
    for name, options in FUZZED.items():
        found[name] = copy.deepcopy(options)
        for entry in make_data(options, tmp_path_factory.mktemp(name)):
            keys, _, value = entry.partition("=")
            *parents, key = keys.split(":")
            functools.reduce(dict.__getitem__, parents, found[name])[key] = value
    return found


@FUZZING
@given(data=st.data())
def test_no_mutation_ends_in_a_traceback_where_the_data_is_there(
    data: st.DataObject, fuzzed_data: dict[str, dict[str, Any]]
) -> None:
    options, is_train = data.draw(mutated_options(fuzzed_data))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(build, "MAX_CALLS", 1_500_000)
        path = Path(folder, "options.yml")
        path.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        check(path, is_train=is_train)
        assert os.listdir(folder) == ["options.yml"]


@FUZZING
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_file_ends_in_a_traceback(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "options.yml")
        path.write_bytes(content)
        assert check(path)


@FUZZING
@given(st.text(max_size=40), st.text(max_size=20))
def test_no_override_ends_in_a_traceback(keys: str, value: str) -> None:
    path = BASICSR_OPTIONS[0]
    check(path, [f"{keys}={value}", keys, f"val:suffix={value}"], is_train=False)
