"""The option files hold what was published, and pass the preflight once the data is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from option_data import make_data, write_empty_vgg19

from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import ARCH_REGISTRY

OPTIONS = Path(__file__).parents[2] / "options"
FILES = sorted(path.stem for path in OPTIONS.glob("*.yml"))

ESC = dict(
    type="ESC",
    dim=64,
    pdim=16,
    kernel_size=13,
    n_blocks=5,
    conv_blocks=5,
    window_size=32,
    num_heads=4,
    exp_ratio=1.25,
)
NETWORKS = {
    "ESC": ESC,
    "ESC_DFLIP": ESC,
    "ESC_light": {**ESC, "n_blocks": 3},
    "ESC_FP": {**ESC, "type": "ESCFP", "dim": 48, "num_heads": 3},
    "ESC_XL_DF2K": {
        **ESC,
        "dim": 192,
        "pdim": 48,
        "n_blocks": 8,
        "window_size": 48,
        "num_heads": 12,
        "use_ln": True,
    },
    "ESC_FlashBias": {**ESC, "attn_type": "FlashBias", "flashbias_rank": 48},
    "ESC_Real": {**ESC, "type": "ESCReal", "n_blocks": 10, "exp_ratio": 2},
}
NETWORKS["ESC_Real_FlashBias"] = {
    **NETWORKS["ESC_Real"],
    "attn_type": "FlashBias",
    "flashbias_rank": 48,
}
PARAMETERS = {
    "ESC": {2: 946728, 3: 955383, 4: 967500},
    "ESC_DFLIP": {2: 946728, 3: 955383, 4: 967500},
    "ESC_light": {2: 603600, 3: 612255, 4: 624372},
    "ESC_FP": {2: 523675, 3: 530170, 4: 539263},
    "ESC_XL_DF2K": {2: 12455916, 3: 12481851, 4: 12518160},
    "ESC_Real": {4: 2265307},
}
CLASSIC = [(name, scale) for name in ("ESC", "ESC_light", "ESC_FP") for scale in (2, 3, 4)]


def load(name: str) -> dict[str, Any]:
    """Read an option file as BasicSR does."""
    return yaml.load((OPTIONS / f"{name}.yml").read_text(), Loader=ordered_yaml()[0])


def family(name: str) -> tuple[str, int]:
    """ESC_light and 2 for train_ESC_light_x2."""
    model, _, rest = name.split("_", 1)[1].rpartition("_x")
    return model, int(rest[0])


def family_files() -> list[str]:
    return [name for name in FILES if "demo" not in name]


def test_every_model_of_the_family_has_its_files() -> None:
    expected = {f"{mode}_{m}_x{s}" for mode in ("train", "test") for m, s in CLASSIC}
    expected |= {f"test_{m}_x{s}" for m in ("ESC_DFLIP", "ESC_XL_DF2K") for s in (2, 3, 4)}
    expected |= {f"train_ESC_XL_DF2K_x{s}_{stage}" for s in (2, 3, 4) for stage in ("PT", "FT")}
    expected |= {f"{mode}_ESC_FlashBias_x2" for mode in ("train", "test")}
    expected |= {"test_ESC_Real_FlashBias_x4_GAN"}
    expected |= {f"{mode}_ESC_Real_x4_{s}" for mode in ("train", "test") for s in ("MSE", "GAN")}
    assert expected <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_file_reads_alone_and_is_named_after_its_experiment(name: str) -> None:
    events = list(yaml.parse((OPTIONS / f"{name}.yml").read_text()))
    assert not any(getattr(event, "anchor", None) for event in events)
    assert load(name)["name"] == name
    assert load(name)["num_gpu"] == "auto"


@pytest.mark.parametrize("name", family_files())
def test_network_is_the_published_one(name: str) -> None:
    model, scale = family(name)
    options = load(name)
    network = dict(options["network_g"])
    assert network == {**NETWORKS[model], "upscaling_factor": scale}
    assert options["scale"] == scale
    if model in PARAMETERS:
        with torch.device("meta"):
            built = ARCH_REGISTRY.get(network.pop("type"))(**network)
        count = sum(parameter.numel() for parameter in built.parameters())
        assert count == PARAMETERS[model][scale]


@pytest.mark.parametrize("model, scale", CLASSIC)
def test_training_on_div2k_is_as_published(model: str, scale: int) -> None:
    options = load(f"train_{model}_x{scale}")
    data, train = options["datasets"]["train"], options["train"]
    assert options["model_type"] == "ESCModel"
    assert isinstance(options["manual_seed"], int)
    assert data["io_backend"]["type"] == "lmdb"
    assert data["gt_size"] == 64 * scale
    assert (data["batch_size"], data["batch_size_per_gpu"]) == (64, 16)
    assert data["use_hflip"] is data["use_rot"] is True
    assert data["dataroot_gt"] == "datasets/DIV2K/DIV2K_train_HR_sub.lmdb"
    assert data["dataroot_lq"] == f"datasets/DIV2K/DIV2K_train_LR_bicubic_X{scale}_sub.lmdb"
    assert train["optim_g"] == dict(type="AdamW", lr=5e-4, betas=[0.9, 0.9], weight_decay=0)
    assert train["warmup_iter"] == 20000
    assert train["total_iter"] == 500000
    assert train["scheduler"]["type"] == "MultiStepLR"
    assert train["scheduler"]["milestones"] == [250000, 400000, 450000, 475000, 490000]
    assert train["scheduler"]["gamma"] == 0.5
    assert train["ema_decay"] == 0.999
    assert train["pixel_opt"] == dict(type="L1Loss", loss_weight=1.0, reduction="mean")
    start = options["path"]["pretrain_network_g"]
    if scale == 2:
        assert start is None
    else:
        assert start == f"experiments/train_{model}_x2/models/net_g_latest.pth"
        assert options["path"]["param_key_g"] == "params_ema"
        assert options["path"]["strict_load_g"] is True


@pytest.mark.parametrize("name", family_files())
def test_metrics_are_on_y_without_a_border_of_scale_pixels(name: str) -> None:
    options = load(name)
    metrics = options["val"].get("metrics")
    if "ESC_Real" in name:
        # Real photographs have no GT.
        assert metrics is None
        return
    assert {metric["type"] for metric in metrics.values()} == {"calculate_psnr", "calculate_ssim"}
    for metric in metrics.values():
        assert metric["crop_border"] == options["scale"]
        assert metric["test_y_channel"] is True


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_xl_trains_in_two_stages(scale: int) -> None:
    first, second = (load(f"train_ESC_XL_DF2K_x{scale}_{stage}") for stage in ("PT", "FT"))
    assert first["train"]["total_iter"] == 300000
    assert first["datasets"]["train"]["gt_size"] == 64 * scale
    assert second["train"]["total_iter"] == 250000
    assert second["datasets"]["train"]["gt_size"] == 96 * scale
    assert f"train_ESC_XL_DF2K_x{scale}_PT/" in second["path"]["pretrain_network_g"]
    assert second["path"]["param_key_g"] == "params_ema"
    for options in (first, second):
        assert "DF2K" in options["datasets"]["train"]["dataroot_gt"]
        assert options["train"]["optim_g"]["lr"] == 5e-4


def test_flashbias_fine_tunes_the_x2_model() -> None:
    options = load("train_ESC_FlashBias_x2")
    assert options["train"]["optim_g"]["lr"] == 5e-5
    assert options["path"]["pretrain_network_g"].startswith("experiments/train_ESC_x2/")
    # The factors are not in the x2 model.
    assert options["path"]["strict_load_g"] is False


@pytest.mark.parametrize("stage, model", [("MSE", "RealHATMSEModel"), ("GAN", "RealHATGANModel")])
def test_real_world_model_degrades_as_real_esrgan(stage: str, model: str) -> None:
    options = load(f"train_ESC_Real_x4_{stage}")
    data = options["datasets"]["train"]
    assert options["model_type"] == model
    assert data["type"] == "RealESRGANDataset"
    assert options["gt_size"] == 256
    assert data["io_backend"]["type"] == "disk" and "meta_info" not in data
    assert data["batch_size"] == 48
    assert options["resize_prob"] == [0.2, 0.7, 0.1]
    assert options["resize_range2"] == [0.3, 1.2]
    assert options["jpeg_range"] == options["jpeg_range2"] == [30, 95]
    assert data["kernel_prob"] == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    assert data["final_sinc_prob"] == 0.8


def test_real_world_first_stage_is_l1() -> None:
    train = load("train_ESC_Real_x4_MSE")["train"]
    assert (train["optim_g"]["type"], train["optim_g"]["lr"]) == ("AdamW", 5e-4)
    assert train["total_iter"] == 1000000
    assert train["scheduler"]["milestones"] == [100000]
    assert train["scheduler"]["gamma"] == 0.4
    assert train["pixel_opt"]["type"] == "L1Loss"


def test_real_world_second_stage_is_a_gan() -> None:
    options = load("train_ESC_Real_x4_GAN")
    train = options["train"]
    for key in ("optim_g", "optim_d"):
        assert train[key] == dict(type="Adam", lr=1e-4, weight_decay=0, betas=[0.9, 0.99])
    assert train["total_iter"] == 400000
    assert train["pixel_opt"]["loss_weight"] == 1
    assert train["perceptual_opt"]["vgg_type"] == "vgg19"
    assert train["perceptual_opt"]["perceptual_weight"] == 1
    assert train["gan_opt"]["gan_type"] == "vanilla"
    assert train["gan_opt"]["loss_weight"] == 0.1
    assert options["network_d"]["type"] == "UNetDiscriminatorSN"
    assert "train_ESC_Real_x4_MSE/" in options["path"]["pretrain_network_g"]


@pytest.mark.parametrize("name", [n for n in family_files() if n.startswith("test_")])
def test_testing_uses_ema_weights_on_the_benchmarks(name: str) -> None:
    options = load(name)
    model, scale = family(name)
    assert options["path"]["param_key_g"] == "params_ema"
    if not model.startswith("ESC_Real"):
        sets = {data["name"]: data for data in options["datasets"].values()}
        all_sets = ["Set5", "Set14", "B100", "Urban100", "Manga109"]
        # What ships was measured on the first two.
        assert list(sets) == (all_sets[:2] if name.endswith("_BSD") else all_sets)
        for benchmark, data in sets.items():
            assert data["dataroot_gt"] == f"datasets/benchmarks/{benchmark}/HR"
            assert data["dataroot_lq"] == f"datasets/benchmarks/{benchmark}/LR_bicubic/X{scale}"
            assert data["filename_tmpl"] == f"{{}}x{scale}"


@pytest.mark.parametrize("name", FILES)
def test_file_passes_the_preflight_once_the_data_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_empty_vgg19(tmp_path)
    is_train = name.startswith("train_")
    path = OPTIONS / f"{name}.yml"
    report = check_options(path, make_data(load(name), tmp_path), is_train)
    assert (report.errors, report.warnings) == ([], [])


@pytest.mark.parametrize(
    "name",
    [
        "train_ESC_x2",
        "train_ESC_light_x3",
        "train_ESC_XL_DF2K_x4_FT",
        "train_ESC_Real_x4_GAN",
        "test_ESC_DFLIP_x2",
        "test_ESC_Real_x4_MSE",
    ],
)
def test_preflight_says_how_to_get_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = check_options(OPTIONS / f"{name}.yml", is_train=name.startswith("train_")).errors
    assert errors
    for error in errors:
        if not re.search("datasets/(real|DF2K_OST)", error):
            commands = ("basicsr ", "; bring https://")
            assert any(command in error for command in commands)
    assert list(tmp_path.iterdir()) == []
