"""What several tests share: real photographs, a paired LMDB, option files, the command itself."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import yaml

import esc_arch  # noqa: F401  (BasicSR does not import on new libraries before it)


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """Photographs that ship in scikit-image's wheel: RGB uint8 (H, W, 3), sides multiples of 4."""
    images = {
        "astronaut": skimage.data.astronaut(),
        "chelsea": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "rocket": skimage.data.rocket(),
    }
    return {
        name: np.ascontiguousarray(image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4])
        for name, image in images.items()
    }


@dataclass(frozen=True)
class PairedData:
    """A tiny x2 data set: LMDBs to train on, folders of images to validate on."""

    train_gt: Path
    train_lq: Path
    val_gt: Path
    val_lq: Path


@pytest.fixture(scope="session")
def paired_data(
    photographs: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> PairedData:
    """8 crops of 64x64 with their halves in LMDBs, 2 crops of 48x40 with theirs in folders."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    root = tmp_path_factory.mktemp("paired_data")
    crops = {
        f"{name}_{left}": photographs[name][100:164, left : left + 64]
        for name in ("astronaut", "rocket")
        for left in (100, 180, 260, 340)
    }
    for folder, images in {
        "train": crops,
        "val": {name: photographs[name][80:120, 120:168] for name in ("chelsea", "coffee")},
    }.items():
        for side in ("HR", "LRx2"):
            (root / folder / side).mkdir(parents=True)
        for name, image in images.items():
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            half = cv2.resize(bgr, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(root / folder / "HR" / f"{name}.png"), bgr)
            cv2.imwrite(str(root / folder / "LRx2" / f"{name}x2.png"), half)
    for side, suffix in (("HR", ""), ("LRx2", "x2")):
        make_lmdb_from_imgs(
            str(root / "train" / side),
            str(root / f"train_{side}.lmdb"),
            [f"{name}{suffix}.png" for name in crops],
            list(crops),
        )
    return PairedData(
        train_gt=root / "train_HR.lmdb",
        train_lq=root / "train_LRx2.lmdb",
        val_gt=root / "val" / "HR",
        val_lq=root / "val" / "LRx2",
    )


WriteOptions = Callable[..., Path]


@pytest.fixture
def write_train_options(paired_data: PairedData, tmp_path: Path) -> WriteOptions:
    """Writes a BasicSR training option file: 4 iterations of a tiny EDSR, saved every 2.

    Takes overrides as `{"train:total_iter": 2}`; a value of None removes the key. Returns the path.
    """
    options = {
        "name": "tiny",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            "train": {
                "name": "tiny",
                "type": "PairedImageDataset",
                "dataroot_gt": str(paired_data.train_gt),
                "dataroot_lq": str(paired_data.train_lq),
                "io_backend": {"type": "lmdb"},
                "gt_size": 32,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
            },
            "val": {
                "name": "tiny_val",
                "type": "PairedImageDataset",
                "dataroot_gt": str(paired_data.val_gt),
                "dataroot_lq": str(paired_data.val_lq),
                "filename_tmpl": "{}x2",
                "io_backend": {"type": "disk"},
            },
        },
        "network_g": _TINY_NETWORK,
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [3], "gamma": 0.5},
            "total_iter": 4,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {"val_freq": 4, "save_img": False, "metrics": _PSNR},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    return _writer(options, tmp_path / "train.yml")


@pytest.fixture
def write_test_options(paired_data: PairedData, tmp_path: Path) -> WriteOptions:
    """Writes a BasicSR test option file for what `write_train_options` trains, likewise."""
    options = {
        "name": "tiny_test",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            "test_1": {
                "name": "tiny_val",
                "type": "PairedImageDataset",
                "dataroot_gt": str(paired_data.val_gt),
                "dataroot_lq": str(paired_data.val_lq),
                "filename_tmpl": "{}x2",
                "io_backend": {"type": "disk"},
            }
        },
        "network_g": _TINY_NETWORK,
        "path": {
            "pretrain_network_g": "experiments/tiny/models/net_g_latest.pth",
            "param_key_g": "params_ema",
            "strict_load_g": True,
        },
        "val": {"save_img": True, "suffix": None, "metrics": _PSNR},
    }
    return _writer(options, tmp_path / "test.yml")


_TINY_NETWORK = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "upscale": 2,
}
_PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}


def _writer(options: dict[str, Any], path: Path) -> WriteOptions:
    def write(overrides: dict[str, Any] | None = None) -> Path:
        result = copy.deepcopy(options)
        for keys, value in (overrides or {}).items():
            *parents, key = keys.split(":")
            section = result
            for parent in parents:
                section = section.setdefault(parent, {})
            if value is None:
                section.pop(key, None)
            else:
                section[key] = value
        path.write_text(yaml.safe_dump(result, sort_keys=False))
        return path

    return write


@pytest.fixture
def run_basicsr(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the `basicsr` command in `tmp_path`, in a process of its own; `env` adds variables."""

    def run(
        *arguments: object, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "esc_arch.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
