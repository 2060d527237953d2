"""Options, models and data sets of the authors' option files."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils.registry import MODEL_REGISTRY

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.plugin.compat import option_files
from esc_arch.plugin.models.durable import durable

OPTIONS = Path(__file__).parents[3] / "options"
TINY = {
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
}


def esc_options(**train: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model_type": "ESCModel",
        "scale": 2,
        "num_gpu": 0,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "network_g": {"type": "ESC", "upscaling_factor": 2, **TINY},
        "path": {},
        "train": {
            "ema_decay": 0.5,
            "optim_g": {"type": "SGD", "lr": 0.1},
            "scheduler": {"type": "MultiStepLR", "milestones": [100]},
            "total_iter": 10,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            **train,
        },
        "logger": {},
    }


def build(opt: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return build_model(opt)


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lq": torch.rand(count, 3, 8, 8, generator=generator),
        "gt": torch.rand(count, 3, 16, 16, generator=generator),
    }


def step(model: Any, current_iter: int = 1, count: int = 6) -> dict[str, float]:
    model.feed_data(batch(count))
    model.optimize_parameters(current_iter)
    return dict(model.get_current_log())


@pytest.mark.parametrize("count", [6, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_parts_are_those_of_the_whole_batch(count: int, reduction: str):
    losses = {
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": reduction},
        "wave_opt": {"type": "MSELoss", "loss_weight": 0.5},
    }
    whole = build(esc_options(**copy.deepcopy(losses)))
    parts = build(esc_options(accumulate_steps=3, **copy.deepcopy(losses)))
    logs = step(whole, count=count), step(parts, count=count)
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    for expected, found in zip(whole.net_g.parameters(), parts.net_g.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_for_four_gpus_stays_whole_without_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def parsed(available: int, num_gpu: int, **train: Any) -> tuple[dict, int]:
        monkeypatch.setattr(option_files, "gpu_count", lambda: available)
        opt = {
            "num_gpu": num_gpu,
            "dist": False,
            "rank": 0,
            "world_size": 1,
            "is_train": True,
            "datasets": {"train": {"batch_size_per_gpu": 16}},
            "train": train,
        }
        option_files._fit_to_gpus(opt)
        option_files._fit_batch(opt)
        images = opt["datasets"]["train"]["batch_size_per_gpu"] * max(opt["num_gpu"], 1)
        return opt["train"], images

    assert parsed(0, 4) == ({"accumulate_steps": 4}, 64)
    assert "64 images an iteration all the same, in 4 parts" in caplog.messages[-1]
    assert parsed(1, 4) == ({"accumulate_steps": 4}, 64)
    assert parsed(2, 4) == ({"accumulate_steps": 2}, 64)
    assert parsed(4, 4) == ({}, 64)
    assert parsed(0, 0) == ({}, 16)
    assert parsed(0, 2, accumulate_steps=3) == ({"accumulate_steps": 6}, 96)


def test_the_pool_of_pairs_takes_whole_batches():
    opt = {"dist": False, "rank": 0, "world_size": 1, "num_gpu": 0, "is_train": True}
    data = {"train": {"batch_size_per_gpu": 12}}
    opt.update(datasets=data, train={}, batches_asked=4, queue_size=180)
    option_files._fit_batch(opt)
    assert (data["train"]["batch_size_per_gpu"], opt["queue_size"]) == (48, 192)


def test_a_total_batch_is_shared_among_processes_and_parts():
    def parsed(total: int, world_size: int, at_most: int | None, **train: Any) -> tuple[int, int]:
        data = {"batch_size": total, "batch_size_per_gpu": at_most}
        opt = {
            "num_gpu": 0,
            "dist": world_size > 1,
            "rank": 0,
            "world_size": world_size,
            "is_train": True,
            "datasets": {"train": {key: value for key, value in data.items() if value}},
            "train": train,
        }
        option_files._fit_batch(opt)
        steps = opt["train"].get("accumulate_steps", 1)
        return opt["datasets"]["train"]["batch_size_per_gpu"], steps

    assert parsed(64, 1, None) == (64, 1)
    assert parsed(64, 1, 16) == (64, 4)
    assert parsed(64, 4, 16) == (16, 1)
    assert parsed(64, 8, 16) == (8, 1)
    assert parsed(64, 1, 24) == (64, 3)
    assert parsed(64, 2, 16, accumulate_steps=4) == (32, 4)
    with pytest.raises(UserError, match="batch_size: 10: must be a multiple of 4"):
        parsed(10, 4, 2)
    with pytest.raises(UserError, match="accumulate_steps: 0"):
        parsed(8, 1, 8, accumulate_steps=0)


def test_a_total_batch_trains_as_the_same_batch_per_gpu(
    write_train_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    esc = {"model_type": "ESCModel", "network_g": {"type": "ESC", "upscaling_factor": 2, **TINY}}
    monkeypatch.chdir(tmp_path)
    ends = []
    for batch_size in (
        {"datasets:train:batch_size_per_gpu": 4},
        {"train:accumulate_steps": 2},
        {"datasets:train:batch_size": 4},
    ):
        options = write_train_options({**esc, "train:total_iter": 2, **batch_size})
        assert main(["train", "-opt", str(options)]) == 0
        ends.append(torch.load("experiments/tiny/models/net_g_2.pth", weights_only=True)["params"])
    for name in ends[0]:
        for end in ends[1:]:
            torch.testing.assert_close(end[name], ends[0][name], rtol=1e-3, atol=1e-5)


def test_gradient_clip_is_halved_after_iteration_50000():
    sizes = []
    for current_iter in (1, 50_000, 50_001):
        model = build(esc_options(gradient_clip=0.02, optim_g={"type": "SGD", "lr": 1.0}))
        before = torch.cat([p.detach().flatten().clone() for p in model.net_g.parameters()])
        step(model, current_iter)
        after = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
        sizes.append(float((before - after).norm()))
    assert sizes == pytest.approx([0.02, 0.02, 0.01], rel=1e-3)


def test_mesa_compares_with_the_averaged_network_from_its_start_on():
    mesa = {"type": "L1Loss", "loss_weight": 2.0, "start_ratio": 0.5}
    model = build(esc_options(mesa_opt=mesa))
    assert step(model, 4)["l_mesa"] == 0
    model.feed_data(batch())
    with torch.no_grad():
        expected = 2 * (model.net_g(model.lq) - model.net_g_ema(model.lq)).abs().mean()
    assert expected > 0
    assert step(model, 5)["l_mesa"] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(UserError, match="mesa_opt: .* set ema_decay"):
        build(esc_options(mesa_opt=dict(mesa), ema_decay=0))


def test_momentum_goes_back_to_zero_where_the_options_say_so():
    adam = {"type": "Adam", "lr": 1e-3}
    fresh = build(esc_options(optim_g=dict(adam)))
    model = build(esc_options(optim_g=dict(adam), reset_momentum_iter=3))
    for current_iter in (1, 2):
        step(model, current_iter)
    fresh.net_g.load_state_dict(model.net_g.state_dict())
    step(model, 3)
    step(fresh, 1)
    for expected, found in zip(fresh.net_g.parameters(), model.net_g.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_use_ema_takes_the_averaged_weights_whatever_the_key_says(tmp_path: Path):
    source = build(esc_options())
    step(source)
    weights = {"params": source.net_g.state_dict(), "params_ema": source.net_g_ema.state_dict()}
    torch.save(weights, tmp_path / "both.pth")
    path = {"pretrain_network_g": str(tmp_path / "both.pth"), "param_key_g": "params"}
    model = build({**esc_options(), "use_ema": True, "path": path})
    for name, value in model.net_g.state_dict().items():
        assert torch.equal(value, weights["params_ema"][name])


def real_options(name: str, **changes: Any) -> dict[str, Any]:
    """One of our two files of ESC-Real, as the authors would name its parts, and tiny."""
    opt = yaml.safe_load((OPTIONS / f"train_ESC_Real_x4_{name}.yml").read_text())
    opt["model_type"] = f"RealHAT{name}Model"
    opt["network_g"] = {"type": "ESCReal", "upscaling_factor": 4, "exp_ratio": 2, **TINY}
    if name == "GAN":
        opt["network_d"] = {"type": "DeepUNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8}
        opt["train"].pop("perceptual_opt")
    opt["path"] = {"strict_load_g": True}
    opt.update(num_gpu=0, gt_size=64, queue_size=3)
    return {**opt, **changes}


@pytest.fixture
def photographs_in_folders(photographs: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """Images at several depths, without a list."""
    for number, (name, image) in enumerate(photographs.items()):
        folder = tmp_path / "hr" / "/".join("ab"[: number % 3])
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{name}.png"), image[:100, :100, ::-1])
    (tmp_path / "hr" / "list.txt").write_text("no image")
    return tmp_path / "hr"


@pytest.mark.parametrize("name", ["MSE", "GAN"])
def test_both_stages_train_on_folders_without_a_list(
    name: str, photographs_in_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    opt = real_options(name)
    opt.pop("val")
    train = opt["datasets"]["train"]
    train.update(dataroot_gt=str(photographs_in_folders), io_backend={"type": "disk"})
    # Of the four, two are in the folder itself.
    train.update(batch_size=3, num_worker_per_gpu=0)
    opt["datasets"] = {"train": train}
    opt["train"]["total_iter"] = 2
    opt["logger"] = {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}
    Path("real.yml").write_text(yaml.safe_dump({**opt, "name": "real"}))
    assert main(["train", "-opt", "real.yml"]) == 0
    assert Path("experiments/real/models/net_g_2.pth").is_file()


def test_images_at_any_depth_are_listed_in_order(photographs_in_folders: Path):
    opt = real_options("MSE")["datasets"]["train"]
    opt.update(dataroot_gt=str(photographs_in_folders), io_backend={"type": "disk"})
    opt.pop("meta_info", None)
    dataset = build_dataset({**opt, "phase": "train", "scale": 4})
    assert dataset.paths == sorted(map(str, photographs_in_folders.rglob("*.png")))
    assert len(dataset) == 4
    assert dataset[3]["gt"].shape == (3, 400, 400)
    with pytest.raises(UserError, match="no images in it, at any depth"):
        build_dataset({**opt, "dataroot_gt": str(photographs_in_folders / "none")})


@pytest.mark.parametrize("name", ["MSE", "GAN"])
def test_both_stages_evaluate_on_whole_windows(name: str):
    opt = real_options(name, dist=False, rank=0, world_size=1, is_train=False)
    model = durable(MODEL_REGISTRY.get(opt["model_type"]))(opt)
    lq = torch.rand(1, 3, 19, 23, generator=torch.Generator().manual_seed(0))
    model.feed_data({"lq": lq})
    model.test()
    padded = torch.from_numpy(np.pad(lq.numpy(), ((0, 0), (0, 0), (0, 5), (0, 1)), "reflect"))
    with torch.no_grad():
        expected = model.net_g(padded)[..., :76, :92]
    torch.testing.assert_close(model.output, expected, rtol=0, atol=0)


def test_the_gradient_penalty_is_added_to_the_discriminators_gradients():
    from basicsr.losses import gradient_penalty_loss

    def stepped(**gan: Any) -> Any:
        opt = real_options("GAN", dist=False, rank=0, world_size=1, is_train=True)
        opt["train"]["gan_opt"].update(gan)
        opt["train"]["optim_d"] = {"type": "SGD", "lr": 0.0}
        opt["train"]["optim_g"] = {"type": "SGD", "lr": 0.0}
        opt["high_order_degradation"] = False
        torch.manual_seed(0)
        model = durable(MODEL_REGISTRY.get(opt["model_type"]))(opt)
        pair = {"lq": batch(1)["lq"], "gt": torch.rand(1, 3, 32, 32)}
        model.feed_data(pair)
        torch.manual_seed(3)
        model.optimize_parameters(1)
        return model

    plain, penalized = stepped(), stepped(use_gp=True, gp_lambda=5)
    log = penalized.get_current_log()
    assert "l_d_gp" not in plain.get_current_log() and log["l_d_gp"] > 0
    plain.gt, plain.output = penalized.gt, penalized.output
    torch.manual_seed(3)
    value = gradient_penalty_loss(penalized.net_d, penalized.gt, penalized.output.detach())
    assert float(value) == pytest.approx(log["l_d_gp"], rel=0.2)
    different = [
        not torch.allclose(p.grad, q.grad)
        for p, q in zip(plain.net_d.parameters(), penalized.net_d.parameters(), strict=True)
        if p.grad is not None
    ]
    assert any(different)


def test_the_deep_discriminator_begins_as_the_plain_one_and_learns_to_attend():
    torch.manual_seed(0)
    deep = build_network({"type": "DeepUNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8}).eval()
    plain = build_network({"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8}).eval()
    weights = {
        name.replace(".convolution.", "."): value for name, value in deep.state_dict().items()
    }
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(deep(image), plain(image))
    with torch.no_grad():
        deep.conv2.gamma.fill_(1.0)
    assert not torch.allclose(deep(image), plain(image))
    # By a loop over pixels.
    features = torch.rand(1, 16, 3, 4)
    block = deep.conv2
    block.convolution = torch.nn.Conv2d(16, 32, 1)
    x = block.convolution(features)
    query, key, value = (
        each(x)[0].flatten(1).double() for each in (block.query, block.key, block.value)
    )
    expected = x[0].flatten(1).double().clone()
    for pixel in range(12):
        weights = torch.softmax(torch.stack([query[:, pixel] @ key[:, k] for k in range(12)]), 0)
        expected[:, pixel] += sum(weights[k] * value[:, k] for k in range(12))
    torch.testing.assert_close(
        block(features)[0].flatten(1).double(), expected, rtol=1e-4, atol=1e-5
    )


def test_mean_and_std_normalize_images_that_are_downsampled(tmp_path: Path, photographs: Any):
    (tmp_path / "hr").mkdir()
    cv2.imwrite(str(tmp_path / "hr" / "a.png"), photographs["rocket"][:16, :16, ::-1])
    opt = {
        "type": "DownsampleImageDataset",
        "name": "a",
        "dataroot_gt": str(tmp_path / "hr"),
        "io_backend": {"type": "disk"},
        "scale": 2,
        "phase": "val",
    }
    plain = build_dataset(opt)[0]
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    changed = build_dataset({**opt, "mean": mean, "std": std})[0]
    for side in ("lq", "gt"):
        expected = (plain[side] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
            :, None, None
        ]
        torch.testing.assert_close(changed[side], expected)
