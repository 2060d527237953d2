"""`basicsr train` and `basicsr test` with ESCModel, in processes of their own, on real data."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cv2
import pytest
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from basicsr.utils import img2tensor, tensor2img

ESC = {
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
ESC_MODEL = {"model_type": "ESCModel", "network_g": ESC, "train:optim_g:type": "AdamW"}

RunBasicsr = Callable[..., CompletedProcess]
WriteOptions = Callable[..., Path]


def completed(process: CompletedProcess) -> str:
    """What a run that must have gone well logged (to stderr, as BasicSR does)."""
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout + process.stderr


def logged(log: str, pattern: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, log)]


def test_trains_from_lmdb_validates_saves_resumes_and_tests_what_it_saved(
    tmp_path: Path,
    paired_data: Any,
    write_train_options: WriteOptions,
    write_test_options: WriteOptions,
    run_basicsr: RunBasicsr,
):
    second_val = {
        "name": "second_val",
        "type": "PairedImageDataset",
        "dataroot_gt": str(paired_data.train_gt),
        "dataroot_lq": str(paired_data.train_lq),
        "io_backend": {"type": "lmdb"},
    }
    options = {**ESC_MODEL, "datasets:val_2": second_val}
    trained = completed(run_basicsr("train", "-opt", write_train_options(options)))
    losses = logged(trained, r"l_pix: ([\d.e+-]+)")
    assert len(losses) == 4 and all(0 < loss < 1 for loss in losses)
    experiment = tmp_path / "experiments" / "tiny"
    assert {path.name for path in (experiment / "models").iterdir()} == {
        "net_g_2.pth",
        "net_g_4.pth",
        "net_g_latest.pth",
    }
    latest = torch.load(experiment / "models" / "net_g_latest.pth", weights_only=True)
    weights, averaged = (latest[key]["proj.weight"] for key in ("params", "params_ema"))
    assert not torch.equal(weights, averaged)

    # The EMA weights upscale the validation images as well as the run says.
    network = build_network(dict(ESC)).eval()
    network.load_state_dict(latest["params_ema"])
    values = {}
    for gt_path in paired_data.val_gt.iterdir():
        lq = cv2.imread(str(paired_data.val_lq / f"{gt_path.stem}x2.png"))
        pixels = img2tensor(lq.astype("float32") / 255)[None]
        height, width = pixels.shape[-2:]
        padding = (0, -width % 8, 0, -height % 8)
        with torch.no_grad():
            sr = network(torch.nn.functional.pad(pixels, padding, mode="reflect"))
        sr = tensor2img(sr[..., : 2 * height, : 2 * width])
        values[gt_path.stem] = (
            calculate_psnr(sr, cv2.imread(str(gt_path)), 2, test_y_channel=True),
            sr,
        )
    mean = sum(psnr for psnr, _ in values.values()) / len(values)
    results = re.findall(r"Validation (\w+)\s+# psnr: ([\d.]+)", trained)
    assert [name for name, _ in results] == ["tiny_val", "second_val"]
    assert float(results[0][1]) == pytest.approx(mean, abs=1e-3)
    assert results[0][1] != results[1][1]

    overrides = {"model_type": "ESCModel", "network_g": ESC}
    log = completed(run_basicsr("test", "-opt", write_test_options(overrides)))
    assert logged(log, r"# psnr: ([\d.]+)")[-1] == pytest.approx(mean, abs=1e-3)
    for name, (_, sr) in values.items():
        images = tmp_path / "results" / "tiny_test" / "visualization" / "tiny_val"
        saved = cv2.imread(str(images / f"{name}x2_tiny_test.png"))
        assert abs(saved.astype(int) - sr).max() <= 1

    longer = write_train_options({**options, "train:total_iter": 6})
    resumed = completed(run_basicsr("train", "-opt", longer, "--auto_resume"))
    assert re.findall(r"iter: +(\d+),", resumed) == ["5", "6"]


@pytest.mark.slow
def test_esc_trains_in_basicsrs_own_srmodel(
    write_train_options: WriteOptions, run_basicsr: RunBasicsr
):
    log = completed(run_basicsr("train", "-opt", write_train_options({"network_g": ESC})))
    assert len(logged(log, r"l_pix: ([\d.e+-]+)")) == 4
    assert "Model [SRModel] is created" in log
