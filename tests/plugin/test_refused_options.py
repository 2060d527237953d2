"""Option files that cannot be trained as they are: `basicsr train` and `test` say why, and wait.

Each ends with a line for each thing that is wrong, before any folder is made or renamed.
"""

from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from option_data import picture, write_folder
from runs_in_process import (
    WriteOptions,
    command,
    folder,  # noqa: F401  (each test starts in it)
    refused,
    train,
)
from training_runs import NETWORK

GAN = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1}
SSIM = {"type": "SSIMLoss", "loss_weight": 0.1}
COSINE = {"type": "CosineAnnealingRestartLR", "periods": [2], "restart_weights": [1]}
PERCEPTUAL = {"type": "PerceptualLoss", "layer_weights": {"conv9_9": 1}}
VGG_D = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 8, "input_size": 128}
SRGAN = {
    "model_type": "SRGANModel",
    "network_d": VGG_D,
    "train:optim_d": {"type": "Adam", "lr": 1e-4},
    "train:gan_opt": GAN,
}
FAILS = "val:metrics:psnr: calculate_psnr fails on a picture of 48 x 40"
UNREAD = "nothing reads this key"

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a table of biases of terabytes": (
        {"model_type": "ESCModel", "network_g": {**NETWORK, "window_size": 10**6}},
        ("network_g: its weights need 5.96e+04 GiB of memory, of which ",),
    ),
    "convolutions of terabytes": (
        {"model_type": "ESCModel", "network_g": {**NETWORK, "dim": 2 * 10**6}},
        ("network_g: its weights need 9.24e+05 GiB of memory, of which ",),
    ),
    "a kernel of terabytes": (
        {"model_type": "ESCModel", "network_g": {**NETWORK, "kernel_size": 10**6 + 1}},
        ("network_g: its weights need 1.19e+05 GiB of memory, of which ",),
    ),
    "an epoch of exabytes": (
        {"datasets:train:dataset_enlarge_ratio": 10**18},
        ("dataset_enlarge_ratio: 1e+18 times 8 pictures are more than 100000000 an epoch",),
    ),
    "losses under SRModel": (
        {"train:gan_opt": GAN, "train:edge_opt": {"type": "EdgeLoss"}, "train:ssim_opt": SSIM},
        (f"train:gan_opt: {UNREAD}; ", f"train:edge_opt: {UNREAD}", f"train:ssim_opt: {UNREAD}"),
    ),
    "losses under ESCModel": (
        {"model_type": "ESCModel", "train:gan_opt": GAN, "train:ssim_opt": SSIM},
        (f"train:gan_opt: {UNREAD}; ", f"train:ssim_opt: {UNREAD}"),
    ),
    "seeds": (
        {"seed": 1, "train:manual_seed": 1, "manual_seed": None},
        (
            f"seed: {UNREAD}; here it is manual_seed at the top level",
            f"train:manual_seed: {UNREAD}; here it is manual_seed at the top level",
        ),
    ),
    "weights and losses at the top level": (
        {"weights": "x.pth", "generator": "y.safetensors", "loss": "l1", "percep_weight": 0.1},
        tuple(f"{key}: {UNREAD}" for key in ("weights", "generator", "loss", "percep_weight")),
    ),
    "a name that is a number": (
        {"name": 5},
        ("name: must be text that can name a folder; put it",),
    ),
    # No hint to a key that is there already, nor to a model that has the word in its states.
    "a seed beside manual_seed": ({"train:seed": 1}, ("train:seed: nothing reads this key\n",)),
    "weights by MMSR's name": (
        {"path:pretrain_model_G": "x.pth"},
        (f"path:pretrain_model_G: {UNREAD}, and BasicSR makes a folder of it; here it is path: ",),
    ),
    "a metric's argument": (
        {"val:metrics:psnr:input_order": "CWH"},
        (f"{FAILS} (ValueError: Wrong input_order CWH.",),
    ),
    "a metric that gives no number": (
        {"val:metrics:psnr:input_order": "CHW"},
        (f"{FAILS} (ValueError: its result is not a number)",),
    ),
    "a metric of tensors": (
        {"val:metrics:psnr": {"type": "calculate_psnr_pt", "crop_border": 2}},
        (
            "calculate_psnr_pt fails on a picture of 48 x 40 (",
            "validation has pictures: calculate_psnr",
        ),
    ),
    "images too small for a metric": (
        {"val:metrics:niqe": {"type": "calculate_niqe", "crop_border": 0}},
        ("val:metrics:niqe: calculate_niqe fails on a picture of 48 x 40 (",),
    ),
    "periods before the end": (
        {"train:scheduler": COSINE},
        ("train:scheduler:periods: end after 2 iterations, but total_iter is 4",),
    ),
    "a discriminator of another size": (
        {**SRGAN, "val": None, "datasets:val": None},
        ("network_d:input_size: is 128, but gt_size is 32: must be the same",),
    ),
    "patches beyond the pictures of an LMDB": (
        {"datasets:train:gt_size": 128},
        ("datasets:train:gt_size: 128 is more than astronaut_100 has, 64 x 64",),
    ),
    "a batch for all GPUs that are asked for": (
        {"num_gpu": 8},
        ("batch_size_per_gpu: 2, times num_gpu 8, but there are 8 pictures a process: not one",),
    ),
    "wandb without TensorBoard or a login": (
        {"logger:wandb": {"project": "p"}},
        ("logger:use_tb_logger: must be true", "logger:wandb:project: not logged in to W&B; run"),
    ),
    "VGG's layers and weights": (
        {"train:perceptual_opt": PERCEPTUAL},
        ("layer_weights:conv9_9: no such layer in vgg19", "vgg_type: vgg19's weights are neither"),
    ),
    "a list of folders": (
        {"datasets:train:dataroot_gt": ["a", "b"], "datasets:train:dataroot_lq": ["a", "b"]},
        ("dataroot_gt: must be one path, not a list", "dataroot_lq: must be one path, not a list"),
    ),
    "120 letters of three bytes": (
        {"name": "名" * 120},
        ("name: is too long for a folder: 360 bytes in UTF-8, at most 180 fit",),
    ),
    "Y for three channels": (
        {"datasets:train:color": "y"},
        ("datasets:train:color: y gives pictures of one channel, but network_g takes three",),
    ),
    "scale left out": ({"scale": None}, ("scale: missing\n",)),
    "a model of another repository": (
        {"model_type": "DATModel", "train:scheduler:type": "CosineLR"},
        (
            "install that as a plugin, or take SRModel or ESCModel; here there",
            "train:scheduler:type: ",
        ),
    ),
    "backend that imports": (
        {"datasets:train:io_backend": {"type": "memcached", "sys_path": "."}},
        ("datasets:train:io_backend:type: memcached is refused",),
    ),
    "video without a GPU": (
        {"model_type": "VideoRecurrentModel"},
        ("val:metrics: VideoRecurrentModel adds them up on a GPU",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_a_line_each_and_makes_no_folder(
    case: str,
    write_train_options: WriteOptions,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    # Nobody is logged in to W&B, which is installed.
    monkeypatch.setenv("HOME", str(tmp_path))
    site = tmp_path_factory.mktemp("site")
    (site / "wandb.py").touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.setattr("esc_arch.plugin.preflight.vgg._answers", lambda address: False)
    changes, expected = REFUSED[case]
    lines = refused(write_train_options(changes)) + "\n"
    for words in expected:
        assert words in lines, lines
    found = lines.splitlines()
    assert len(found) == len(expected) or case == "a metric of tensors", found
    assert [path.name for path in tmp_path.iterdir()] == ["train.yml"]


INTEGER_KEYS: dict[str, tuple[str, ...]] = {
    "train:scheduler": ("train", "scheduler"),
    "val:metrics:psnr": ("val", "metrics", "psnr"),
    "network_g": ("network_g",),
    "datasets": ("datasets",),
}


@pytest.mark.parametrize("place", INTEGER_KEYS)
@pytest.mark.parametrize("subcommand", ["train", "test"])
def test_a_key_that_is_a_number_is_named_however_deep(
    place: str,
    subcommand: str,
    write_train_options: WriteOptions,
    write_test_options: WriteOptions,
    tmp_path: Path,
) -> None:
    path = write_train_options() if subcommand == "train" else write_test_options()
    options = yaml.safe_load(path.read_text())
    section = options
    for key in INTEGER_KEYS[place]:
        section = section.setdefault(key, {})
    section[7] = {8: 1}
    path.write_text(yaml.safe_dump(options))
    lines = refused(path, subcommand=subcommand).splitlines()
    for name in (f"{place}:7", f"{place}:7:8"):
        assert f"{name}: a key must be text; put it in quotes" in lines
    # Those that pass by the check of mistakes are told too: BasicSR cannot log such options.
    assert refused(path, "--no-preflight", subcommand=subcommand).splitlines() == [
        f"{name}: a key must be text; put it in quotes" for name in (f"{place}:7", f"{place}:7:8")
    ]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_has_no_effect_is_warned_of_once_and_trained_without(
    write_train_options: WriteOptions,
) -> None:
    unread = {
        "use_amp": True,
        "compile": True,
        "train:accum_iter": 2,
        "train:clip_grad_norm": 1.0,
        "datasets:train:use_shuffle": True,
        "network_d": VGG_D,
        "train:optim_d": {"type": "Adam", "lr": 1e-4},
        "tile": {"tile_size": 64, "tile_pad": 8},
        # Nothing that is trained depends on it.
        "val:lpips_net": "alex.pth",
    }
    metric = {"type": "calculate_psnr", "crop_border": 2, "y_channel": True}
    changes = {**unread, "val:metrics": {"psnr": metric}, "train:total_iter": 1}
    status, said = command("train", "-opt", write_train_options(changes))
    assert status == 0
    start = "basicsr: warning: "
    warnings = [line for line in said.splitlines() if line.startswith(start)]
    assert len(warnings) == len(unread) + 1, warnings
    for key in unread:
        assert sum(line.startswith(f"{start}{key}: {UNREAD}, it has no") for line in warnings) == 1
    assert f"{start}val:metrics:psnr:y_channel: calculate_psnr ignores this key; did you mean " in (
        said.replace("test_y_channel?", "")
    )


def test_two_keys_alike_are_one_and_others_are_refused(write_train_options: WriteOptions) -> None:
    path = write_train_options({"train:total_iter": 1})
    text = path.read_text()
    alike = text.replace("use_rot: true", "use_rot: true\n    use_rot: True")
    alike = alike.replace(
        "pretrain_network_g: null", "pretrain_network_g:\n  pretrain_network_g: ~"
    )
    path.write_text(alike + "name: 'tiny'\nscale: 2.0\n")
    train(path)
    path.write_text(text + "name: other\n")
    assert "the key 'name' is there twice, with another value in line 1" in refused(path)
    # Whatever else is wrong with the file.
    path.write_text(text + "name: other\nnum_gpu: !!int x\n")
    assert "the key 'name' is there twice, with another value in line 1" in refused(path)


@pytest.mark.parametrize("name", ["2026-01-31", "8:20", "2026-01-31 08:20:00", "1:30.5"])
def test_what_yaml_takes_for_a_date_or_a_number_to_base_60_is_text(
    name: str, write_train_options: WriteOptions
) -> None:
    path = write_train_options({"train:total_iter": 1})
    text = path.read_text()
    path.write_text(text.replace("name: tiny\n", f"name: {name}\n", 1))
    train(path, name=name)
    path.write_text(text.replace("total_iter: 1", f"total_iter: {name}"))
    assert f"train:total_iter: must be a whole number at least 1, not '{name}'" in refused(path)


def test_null_and_numbers_are_taken_where_basicsr_tests_for_truth(
    write_train_options: WriteOptions,
) -> None:
    path = write_train_options(
        {
            "train:total_iter": 1.0,
            "datasets:train:batch_size_per_gpu": 2.0,
            "datasets:train:gt_size": 32.0,
            "datasets:train:use_hflip": 1,
            "datasets:train:use_rot": 0,
            "train:perceptual_opt": False,
        }
    )
    options = yaml.safe_load(path.read_text())
    options["path"]["strict_load_g"] = None
    options["val"]["save_img"] = None
    options["val"]["suffix"] = ""
    path.write_text(yaml.safe_dump(options))
    train(path)
    weights = "experiments/tiny/models/net_g_latest.pth"
    options["path"] |= {"pretrain_network_g": weights, "param_key_g": None}
    path.write_text(yaml.safe_dump({**options, "name": "next"}))
    assert f"from {weights} [params]." in train(path, name="next")
    options["path"] |= {"pretrain_network_g": None}
    options["val"] = None
    del options["datasets"]["val"]
    path.write_text(yaml.safe_dump(options))
    train(path)


def test_a_list_below_the_home_folder_is_read(
    write_train_options: WriteOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_text("coffee.png (40,48,3)\n")
    changes = {"datasets:val:meta_info_file": "~/list.txt", "train:total_iter": 1}
    assert "Number of val images/folders in tiny_val: 1" in train(write_train_options(changes))


def test_a_test_without_weights_is_refused_unless_they_are_to_be_random(
    write_test_options: WriteOptions,
) -> None:
    path = write_test_options({"path:pretrain_network_g": None, "path:param_key_g": None})
    lines = refused(path, subcommand="test")
    assert lines.startswith("path:pretrain_network_g: missing: the network would be random")
    assert "--random-weights" in lines
    wrong = write_test_options({"path:pretrain_network_g": False})
    assert refused(wrong, subcommand="test") == "path:pretrain_network_g: must be text, not False"
    path = write_test_options({"path:pretrain_network_g": None, "path:param_key_g": None})
    status, said = command("test", "-opt", path, "--random-weights")
    assert status == 0 and "# psnr: " in said


def test_all_pictures_are_looked_at_before_the_start(
    write_train_options: WriteOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of forty is of another size, small, or none, and stands beside those looked at first.
    names = [f"{number:02d}" for number in range(40)]
    write_folder(tmp_path / "gt", {name: picture(64) for name in names})
    write_folder(tmp_path / "lq", {name: picture(32) for name in names})
    changes = {
        "datasets:train:dataroot_gt": str(tmp_path / "gt"),
        "datasets:train:dataroot_lq": str(tmp_path / "lq"),
        "datasets:train:io_backend": {"type": "disk"},
        "train:total_iter": 1,
    }
    odd = "17.png"
    train(write_train_options(changes))
    for gt, lq, expected in (
        (60, 32, f"{odd} is 32 x 32, but its partner in dataroot_gt 60 x 60: that is not scale 2"),
        (28, 14, f"datasets:train:gt_size: 32 is more than {odd} has, 28 x 28"),
        (64, 0, f"{odd} or its partner in dataroot_gt is not a picture that can be read"),
        (0, 32, f"datasets:train:dataroot_gt: {odd} is not a picture that can be read"),
    ):
        for side, size in (("gt", gt), ("lq", lq)):
            (tmp_path / side / odd).write_bytes(
                cv2.imencode(".png", picture(size))[1].tobytes() if size else b"none"
            )
        assert expected in refused(write_train_options(changes))
        # Where such samples are to be left out, the run begins.
        skip = write_train_options({**changes, "datasets:train:on_bad_sample": "skip"})
        status, said = command("train", "-opt", skip)
        assert status == 0 and "basicsr: warning: datasets:train:" in said and odd in said

    # What there was no time for is said.
    monkeypatch.setattr("esc_arch.plugin.preflight.pictures.SECONDS", -1.0)
    status, said = command("train", "-opt", write_train_options(changes))
    assert "basicsr: warning: datasets:train: 8 of 40 pictures were looked at" in said
    # Of LMDBs the list tells.
    lines = refused(write_train_options({"datasets:train:gt_size": 128}))
    assert "128 is more than" in lines
    monkeypatch.undo()


def test_pictures_that_only_opencv_reads_are_no_fault(
    write_train_options: WriteOptions, tmp_path: Path
) -> None:
    for side, size in (("gt", 48), ("lq", 24)):
        (tmp_path / side).mkdir()
        for name in "ab":
            # Pillow knows no such file.
            assert cv2.imwrite(str(tmp_path / side / f"{name}.ras"), picture(size))
    changes = {
        "datasets:train:dataroot_gt": str(tmp_path / "gt"),
        "datasets:train:dataroot_lq": str(tmp_path / "lq"),
        "datasets:train:io_backend": {"type": "disk"},
        "train:total_iter": 1,
    }
    train(write_train_options(changes))
    said = refused(write_train_options({**changes, "scale": 3, "network_g:upscale": 3}))
    assert "a.ras is 24 x 24, but its partner in dataroot_gt 48 x 48: that is not scale 3" in said
