"""Runs resumed with other options: what has changed is said, and nothing of both is mixed up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from esc_arch.plugin.models.resuming import fitting_scheduler_state, options_in_use

# isort: split
from published_templates import MSRRESNET
from runs_in_process import (
    WriteOptions,
    command,
    folder,  # noqa: F401  (each test starts in it)
    state,
    train,
)

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o)]),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}
CHANGED = "Options that have changed, and hold from iteration 5 on: "
KEPT = "Resuming keeps what the training state says: "
LONGER = {"train:total_iter": 6}


def log_of_resumption(write: WriteOptions, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Train four iterations, then two more with other options."""
    train(write(before))
    return train(write({**before, **LONGER, **after}), "--auto_resume")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            {
                "model_type": "SRGANModel",
                "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
                "train:optim_d": {"type": "Adam", "lr": 1e-3},
                "train:gan_opt": {"type": "GANLoss", "gan_type": "vanilla"},
            },
            "--auto_resume: tiny has trained without net_d, which the options have: give this run ",
        ),
        (
            {"network_g": {**MSRRESNET, "upscale": 2}},
            "net_g_4.pth: does not fit MSRResNet with these options: ",
        ),
    ],
)
def test_a_run_of_other_networks_is_neither_gone_on_with_nor_begun_anew(
    after: dict[str, Any], said: str, write_train_options: WriteOptions
):
    train(write_train_options())
    before = sorted(Path("experiments").rglob("*.pth"))
    options = write_train_options({**LONGER, **after})
    status, lines = command("train", "-opt", options, "--auto_resume")
    errors = [line for line in lines.splitlines() if "basicsr: error: " in line]
    assert status == 2 and len(errors) == 1 and said in errors[0]
    assert "WARNING" not in lines
    assert sorted(Path("experiments").rglob("*.pth")) == before


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"train:ema_decay": 0.5}, "train:ema_decay 0.9 -> 0.5."),
        ({"train:ema_decay": None}, "train:ema_decay 0.9 -> none."),
        ({"train:pixel_opt:loss_weight": 2.0}, "train:pixel_opt:loss_weight 1.0 -> 2.0."),
        ({"train:grad_clip": 0.1}, "train:grad_clip none -> 0.1."),
        ({"manual_seed": 7}, "manual_seed 0 -> 7."),
        ({"datasets:train:gt_size": 16}, "datasets:train:gt_size 32 -> 16."),
        ({"datasets:train:batch_size_per_gpu": 4}, "images an iteration 2 -> 4."),
        ({"model_type": "ESCModel", "use_amp": False}, "model_type SRModel -> ESCModel, use_amp"),
        ({"train:optim_g": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0}}, "Adam -> AdamW."),
    ],
)
def test_options_that_have_changed_are_told_in_one_line(
    after: dict[str, Any], said: str, write_train_options: WriteOptions
):
    log = log_of_resumption(write_train_options, {}, after)
    (line,) = (line for line in log.splitlines() if CHANGED in line)
    assert said in line
    assert KEPT not in log


def test_what_does_not_change_the_training_is_not_told(write_train_options: WriteOptions):
    before = {"datasets:train:batch_size_per_gpu": 4}
    after = {
        "datasets:train:batch_size_per_gpu": 2,
        "datasets:train:batch_size": 4,
        "datasets:train:num_worker_per_gpu": 1,
        "logger:print_freq": 2,
        "val:val_freq": 3,
    }
    log = log_of_resumption(write_train_options, before, after)
    assert CHANGED not in log and KEPT not in log


def test_what_the_state_decides_is_told_for_every_option_of_an_optimizer(
    write_train_options: WriteOptions,
):
    adam = {"type": "Adam", "lr": 1e-3, "eps": 1e-4, "betas": [0.9, 0.9]}
    log = log_of_resumption(write_train_options, {}, {"train:optim_g": adam})
    assert f"{KEPT}betas [0.9, 0.999] (the options say [0.9, 0.9]), eps 1e-08" in log
    assert CHANGED not in log


def test_weights_by_another_key_and_averaged_ones_are_for_the_start_only(
    write_train_options: WriteOptions,
):
    train(write_train_options({"name": "first"}), name="first")
    weights = torch.load("experiments/first/models/net_g_4.pth", weights_only=True)
    torch.save({"mine": weights["params_ema"], **weights}, "foreign.pth")
    for how in ({"path:param_key_g": "mine"}, {"use_ema": True}):
        options = {"path:pretrain_network_g": "foreign.pth", **how}
        train(write_train_options(options))
        log = train(write_train_options({**options, **LONGER}), "--auto_resume")
        assert "net_g_4.pth [params]." in log
        interrupted = torch.load("experiments/tiny/models/net_g_6.pth", weights_only=True)
        train(write_train_options({**options, **LONGER}))
        whole = torch.load("experiments/tiny/models/net_g_6.pth", weights_only=True)
        for key in ("params", "params_ema"):
            assert all(map(torch.equal, whole[key].values(), interrupted[key].values()))


def test_a_network_that_is_not_resumed_keeps_its_key(write_train_options: WriteOptions):
    train(write_train_options())
    path = {
        "path:resume_state": "experiments/tiny/training_states/4.state",
        "path:ignore_resume_networks": ["network_g"],
        "path:pretrain_network_g": str(Path("experiments/tiny/models/net_g_2.pth").resolve()),
        "path:param_key_g": "params_ema",
    }
    assert "net_g_2.pth [params_ema]." in train(write_train_options({**path, **LONGER}))


def test_a_metric_that_measures_otherwise_begins_anew(write_train_options: WriteOptions):
    freq = {"val:val_freq": 2}
    other = {"type": "calculate_psnr", "crop_border": 8, "test_y_channel": False}
    log = log_of_resumption(write_train_options, freq, {"val:metrics": {"psnr": other}})
    assert "psnr: measured otherwise from now on, so that the best results begin anew." in log
    measured = json.loads(Path("experiments/tiny/validation.json").read_text())["tiny_val"]
    assert sorted(measured["psnr until iteration 4"]) == ["2", "4"]
    # Of iteration 4 too, which is where the run goes on.
    assert set(measured["psnr"]) <= {"4", "6"}
    assert f"Best: {measured['psnr']['6']:.4f} @ 6 iter" in log or "@ 4 iter" in log


def test_metrics_that_are_added_or_left_out_keep_their_results(write_train_options: WriteOptions):
    ssim = {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True}
    log = log_of_resumption(write_train_options, {}, {"val:metrics": {"ssim": ssim}})
    assert CHANGED in log and "begin anew" not in log
    measured = json.loads(Path("experiments/tiny/validation.json").read_text())["tiny_val"]
    assert sorted(measured) == ["psnr", "ssim"]


@pytest.mark.parametrize("after", [{"train:warmup_iter": -1}, {"train:warmup": "exact"}])
def test_a_warm_up_that_ends_on_resuming_is_told_with_its_rate(
    after: dict[str, Any], write_train_options: WriteOptions
):
    warmup = {"train:warmup_iter": 10}
    log = log_of_resumption(write_train_options, warmup, after)
    assert "The warm-up ends with a learning rate of 0.0004, from which" in log
    options = {**warmup, **after, **LONGER, "path:resume_schedule": "options"}
    train(write_train_options(warmup))
    log = train(write_train_options(options), "--auto_resume")
    assert "The warm-up ends" not in log
    (group,) = state(6)["optimizers"][0]["param_groups"]
    # The milestone at 3 halves it; the exact warm-up has six tenths of that.
    assert group["lr"] == pytest.approx(5e-4 if "train:warmup_iter" in after else 3e-4)


def test_a_longer_warm_up_is_no_end_of_it(write_train_options: WriteOptions):
    before, after = {"train:warmup_iter": 10}, {"train:warmup_iter": 12}
    log = log_of_resumption(write_train_options, before, after)
    assert f"{CHANGED}train:warmup_iter 10 -> 12." in log
    assert "The warm-up ends" not in log


@pytest.mark.parametrize("kept", [5, {}, [], {1: 2}, {"train:x": torch.ones(9)}, {"a": {"b": 1}}])
def test_strange_options_of_a_state_are_no_harm(kept: Any, write_train_options: WriteOptions):
    train(write_train_options())
    path = "experiments/tiny/training_states/4.state"
    torch.save({**state(4), "options": kept}, path)
    status, said = command("train", "-opt", write_train_options(LONGER), "--auto_resume")
    assert status == 0, said


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_plugins_take_from_torch_are_gone_on_with(name: str, tmp_path: Path):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizers = [SGD([weight], lr=0.1, momentum=0.9) for _ in range(2)]
    made = [SCHEDULERS[name](optimizer) for optimizer in optimizers]
    for _ in range(4):
        optimizers[0].step()
        made[0].step(*([1.0] if name == "ReduceLROnPlateau" else []))
    torch.save(made[0].state_dict(), tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    made[1].load_state_dict(fitting_scheduler_state(saved, made[1]))
    assert made[1].state_dict() == made[0].state_dict()


def test_options_of_a_plugins_scheduler_are_told_by_their_names():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    # As optimizers of others keep it.
    optimizer.param_groups[0]["steps_taken"] = 3
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.01)
    used = options_in_use([optimizer], [scheduler], ["T_max", "type"])
    assert (used["T_max"], used["eta_min"], used["nesterov"]) == (10, 0.01, False)
    assert "steps_taken" not in used
