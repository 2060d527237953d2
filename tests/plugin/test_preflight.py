"""Everything wrong with an option file is said at once, one line each, and right files pass."""

import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from option_data import make_data, write_empty_vgg19, write_weights

from esc_arch.plugin.preflight import build

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from preflight_checks import BASICSR_OPTIONS, OPTIONS, WriteOptions, check, find, only_error


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
    # What BasicSR's samplers once read, and what its models read at the top level only.
    unread = ["use_shuffle"] if "train" in options["datasets"] else []
    unread = ["gt_size", *unread] if "RealESR" in path.stem and unread else unread
    assert report.warnings == [
        f"datasets:train:{key}: nothing reads this key, it has no effect" for key in unread
    ]
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
    (
        {"network_g:type": "EDVRNet"},
        "'EDVRNet' is registered; if it is another repository's, install that as a plugin; here "
        "there are EDVR, ",
    ),
    ({"datasets:train:type": "PairdImageDataset"}, "did you mean PairedImageDataset?"),
    ({"train:pixel_opt:type": "L1Los"}, "train:pixel_opt:type: no loss 'L1Los'"),
    ({"val:metrics:psnr:type": "calculate_psrn"}, "did you mean calculate_psnr?"),
    ({"train:optim_g:type": "Adamw"}, "train:optim_g:type: no optimizer 'Adamw' in torch.optim"),
    ({"train:optim_g:type": "Lion"}, "no optimizer 'Lion' in torch.optim; there are "),
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
    ({"train:optim_g:betas": 0.9}, "train:optim_g:betas: must be a list of numbers from 0 to"),
    ({"train:optim_g:betas": [0.9]}, "train:optim_g:betas: must be a list of 2 numbers, not [0.9]"),
    ({"train": [1, 2]}, "train: must be a section, key: value, not [1, 2]"),
    ({"val:metrics": ""}, "val:metrics: must be a section, key: value, not ''"),
    ({"datasets:train:io_backend": "lmdb"}, "datasets:train:io_backend: must be a section"),
    ({"num_gpu": "all"}, "num_gpu: must be auto or a whole number at least 0, not 'all'"),
    ({"name": "../elsewhere"}, "name: must be text that can name a folder"),
    ({"name": "a\rbasicsr: fine"}, "name: must be text that can name a folder, without a slash or"),
    ({"val:suffix": "a\x1b[2J"}, "val:suffix: must be text that can name a folder"),
    ({"datasets:val:name": "a\u202eb"}, "datasets:val:name: must be text that can name a"),
    ({"a\x1b[2J": 1}, "a\\x1b[2J: a key must be without control characters"),
    ({"val:metrics:a\nb": {"type": "calculate_psnr", "crop_border": 2}}, "a key must be without"),
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


@pytest.mark.parametrize("key", [None, 2, 2.5, True], ids=str)
@pytest.mark.parametrize("value", [2.0, "None", ""], ids=repr)
def test_a_key_that_is_no_text_is_named(
    key: Any, value: Any, write_train_options: WriteOptions
) -> None:
    path = write_train_options()
    options = yaml.safe_load(path.read_text())
    options["train"][key] = {"lr": value}
    path.write_text(yaml.safe_dump(options))
    assert any(f"train:{key}" in error for error in check(path)), check(path)


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


PLUGIN = """
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel

class PluginModel(SRModel):
    def init_training_settings(self):
        super().init_training_settings()
        self.teacher = self.opt["train"]["teacher_opt"]["weight"]
        self.helper(self.opt["val"])
        # What this package means otherwise.
        self.mine = self.opt["train"].get("grad_clip"), self.opt.get("use_amp")
        self.tile = self.opt.get("tile")

    def helper(self, settings):
        self.ensemble = settings.get("self_ensemble", False)
        self.others = [key for key in self.opt["train"] if key.endswith("_distill_opt")]
        train = self.opt["train"]
        for part in ("eye", "mouth"):
            self.more = train.get(part + "_region_opt"), train.get("%s_style_opt" % part)
            self.more = train.get("{}_shape_opt".format(part)), train.get(f"local_{part}_opt")

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
            "train:eye_region_opt": {"type": "L1Loss"},
            "train:eye_style_opt": {"type": "L1Loss"},
            "train:eye_shape_opt": {"type": "L1Loss"},
            "train:local_eye_opt": {"type": "L1Loss"},
            "val:self_ensemble": True,
            "train:grad_clip": True,
            "use_amp": "fp16",
            "tile": [512, 32],
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
