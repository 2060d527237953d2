"""`basicsr train` in a process of its own, to be watched and disturbed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NETWORK = {
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
OPTIONS = {
    "model_type": "ESCModel",
    "network_g": NETWORK,
    "datasets:train:num_worker_per_gpu": 2,
    # 24 samples an epoch: 12 iterations, so that 20 end in the second.
    "datasets:train:dataset_enlarge_ratio": 3,
    "train:total_iter": 20,
    "val:val_freq": 5,
    "val:pbar": False,
    "logger:save_checkpoint_freq": 5,
}


class Run:
    """A `basicsr train` under way."""

    def __init__(self, folder: Path, *arguments: object, preexec: Callable | None = None) -> None:
        # Unbuffered, so that the log can be watched.
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "esc_arch.cli", "train", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=preexec,
        )
        self.log = ""

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.log):
            line = self.process.stdout.readline()
            assert line, self.log[-3000:]
            self.log += line

    def finish(self) -> int:
        self.log += self.process.stdout.read()
        return self.process.wait(timeout=120)


def losses(log: str) -> dict[int, str]:
    """Losses as printed, by iteration."""
    found = re.findall(r"iter: +([\d,]+), .*l_pix: (\S+)", log)
    return {int(iteration.replace(",", "")): loss for iteration, loss in found}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)
