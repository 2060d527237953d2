"""BasicSR on machines without a GPU: options, distribution, resuming and Real-ESRGAN's models."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_python import run_python

from esc_arch.plugin.compat import option_files

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


TRAIN = """
import os, esc_arch
from basicsr.train import train_pipeline
if __name__ == "__main__":
    train_pipeline(os.getcwd())
"""


@needs_no_gpu
def test_options_that_ask_for_gpus_are_lowered_with_a_line_each(
    write_train_options: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from basicsr.utils.options import parse_options

    path = write_train_options(
        {
            "num_gpu": 4,
            "datasets:train:prefetch_mode": "cuda",
            "datasets:train:pin_memory": True,
        }
    )
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(path)])
    opt, _ = parse_options(str(tmp_path), is_train=True)
    assert opt["num_gpu"] == 0
    assert opt["datasets"]["train"]["prefetch_mode"] is None
    assert opt["datasets"]["train"]["pin_memory"] is False
    assert {
        "num_gpu: 4, but 0 found: using the CPU",
        "datasets:train:prefetch_mode: cuda needs a GPU: loading without it",
    } < set(caplog.messages)
    (batch,) = [line for line in caplog.messages if "batch_size_per_gpu" in line]
    assert "8 images an iteration all the same, in 4 parts" in batch


@needs_no_gpu
def test_options_that_ask_for_no_gpu_are_left_as_they_are(
    write_train_options: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from basicsr.utils.options import parse_options

    path = write_train_options({"num_gpu": 0, "datasets:train:prefetch_mode": "cpu"})
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(path)])
    opt, _ = parse_options(str(tmp_path), is_train=True)
    assert opt["num_gpu"] == 0
    assert opt["datasets"]["train"]["prefetch_mode"] == "cpu"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("num_gpu", "dist", "available", "expected"),
    [(4, False, 1, 1), (2, False, 4, 2), (4, True, 1, 4), (4, True, 0, 0), (0, False, 2, 0)],
)
def test_num_gpu_is_lowered_to_what_a_process_can_use(
    num_gpu: int, dist: bool, available: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(option_files, "gpu_count", lambda: available)
    opt = {"num_gpu": num_gpu, "dist": dist, "rank": 0, "datasets": {}}
    option_files._fit_to_gpus(opt)
    assert opt["num_gpu"] == expected


@pytest.mark.slow
@needs_no_gpu
def test_training_resumes_without_a_gpu_and_continues_where_it_was(
    write_train_options: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_train_options({"name": "whole"})
    assert run_python(TRAIN, "-opt", path, cwd=tmp_path).returncode == 0
    # The same run as it was after its second iteration, when it had saved its state.
    half = tmp_path / "experiments" / "half"
    (tmp_path / "experiments" / "whole").rename(half)
    for name in ("net_g_4.pth", "net_g_latest.pth"):
        (half / "models" / name).rename(tmp_path / name)
    (half / "training_states" / "4.state").unlink()

    path = write_train_options({"name": "half"})
    result = run_python(TRAIN, "-opt", path, "--auto_resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Resuming training from epoch: 0, iter: 2." in result.stderr
    assert (half / "training_states" / "4.state").exists()
    state = torch.load(half / "training_states" / "4.state", weights_only=True)
    assert state["iter"] == 4
    assert state["optimizers"][0]["state"][0]["step"] == 4
    assert state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(5e-4)


NO_OPTIMIZERS = {"optimizers": [], "schedulers": []}


@needs_no_gpu
@pytest.mark.parametrize("states", [["2", "10", "9"], []])
def test_auto_resume_takes_the_highest_iteration_below_the_root(
    states: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basicsr.train import load_resume_state

    folder = tmp_path / "root" / "experiments" / "run" / "training_states"
    folder.mkdir(parents=True)
    models = tmp_path / "root" / "experiments" / "run" / "models"
    models.mkdir()
    (folder / "latest.state").write_text("not a state of an iteration")
    for state in states:
        torch.save({"iter": int(state), "epoch": 0, **NO_OPTIMIZERS}, folder / f"{state}.state")
        torch.save({"params": {}}, models / f"net_g_{state}.pth")
    opt = {
        "rank": 0,
        "name": "run",
        "auto_resume": True,
        "network_g": {},
        "path": {
            "training_states": str(folder),
            "models": str(models),
            "resume_state": None,
        },
    }
    monkeypatch.chdir(tmp_path)
    state = load_resume_state(opt)
    assert (state and state["iter"]) == (10 if states else None)
    assert opt["path"].get("pretrain_network_g") == (
        str(models / "net_g_10.pth") if states else None
    )


def test_the_state_of_an_optimizer_and_a_scheduler_is_loaded_as_it_was(tmp_path: Path) -> None:
    from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
    from basicsr.train import load_resume_state

    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], 1e-3)
    schedulers = [
        MultiStepRestartLR(optimizer, [2, 2, 5]),
        CosineAnnealingRestartLR(optimizer, [4, 4], [1, 0.5]),
    ]
    parameter.sum().backward()
    optimizer.step()
    saved = {
        "epoch": 1,
        "iter": 7,
        "optimizers": [optimizer.state_dict()],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }
    torch.save(saved, tmp_path / "7.state")
    path = {"resume_state": str(tmp_path / "7.state"), "models": "models"}
    state = load_resume_state({"auto_resume": False, "path": path})
    assert state["schedulers"] == saved["schedulers"]
    moments = state["optimizers"][0]["state"][0]
    torch.testing.assert_close(moments, saved["optimizers"][0]["state"][0], rtol=0, atol=0)


@pytest.mark.slow
@needs_no_gpu
def test_a_slurm_task_without_a_gpu_joins_over_gloo(tmp_path: Path) -> None:
    code = """
import esc_arch, torch.distributed
from basicsr.utils.dist_util import get_dist_info, init_dist
init_dist("slurm", port=0)
print(torch.distributed.get_backend(), *get_dist_info())
"""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho 127.0.0.1\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODELIST": "localhost"}
    env = {**slurm, "PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}
    result = run_python(code, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["gloo", "0", "1"]


@needs_no_gpu
def test_real_esrgan_degrades_a_batch_without_a_gpu(
    photographs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from basicsr.models import build_model

    degradation = {
        "gt_usm": True,
        "resize_prob": [0.2, 0.7, 0.1],
        "resize_range": [0.5, 1.5],
        "gaussian_noise_prob": 0.5,
        "noise_range": [1, 30],
        "poisson_scale_range": [0.05, 3],
        "gray_noise_prob": 0.4,
        "jpeg_range": [30, 95],
        "second_blur_prob": 0.8,
        "resize_prob2": [0.3, 0.4, 0.3],
        "resize_range2": [0.6, 1.2],
        "gaussian_noise_prob2": 0.5,
        "noise_range2": [1, 25],
        "poisson_scale_range2": [0.05, 2.5],
        "gray_noise_prob2": 0.4,
        "jpeg_range2": [30, 95],
        "gt_size": 32,
        "queue_size": 2,
    }
    model = build_model(
        {
            **degradation,
            "model_type": "RealESRNetModel",
            "scale": 4,
            "num_gpu": 0,
            "dist": False,
            "is_train": True,
            "high_order_degradation": True,
            "network_g": {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1, "upscale": 4},
            "path": {},
            "train": {
                "optim_g": {"type": "Adam", "lr": 1e-4},
                "scheduler": {"type": "MultiStepLR", "milestones": [10], "gamma": 0.5},
                "pixel_opt": {"type": "L1Loss"},
            },
        }
    )
    image = torch.from_numpy(photographs["rocket"][:64, :64].transpose(2, 0, 1).copy())[None] / 255
    kernel = torch.full((1, 7, 7), 1 / 49)
    batch = {"gt": image, "kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel}
    model.feed_data({name: value.repeat_interleave(2, 0) for name, value in batch.items()})
    model.feed_data({name: value.repeat_interleave(2, 0) for name, value in batch.items()})
    assert model.lq.shape == (2, 3, 8, 8)
    assert model.lq.device.type == "cpu"
    model.optimize_parameters(1)
    assert np.isfinite(model.log_dict["l_pix"])
