"""`basicsr train` in two processes, and alone to compare with."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OPTIONS = {
    "model_type": "ESCModel",
    "num_gpu": 0,
    "network_g": {
        "type": "ESC",
        "dim": 8,
        "pdim": 4,
        "kernel_size": 5,
        "n_blocks": 1,
        "conv_blocks": 1,
        "window_size": 8,
        "num_heads": 2,
        "upscaling_factor": 2,
    },
    # 24 samples an epoch: 6 iterations of 4, so that 8 end in the second.
    "datasets:train:dataset_enlarge_ratio": 3,
    # Adam would blow differences of rounding up where gradients are nearly zero.
    "train:optim_g": {"type": "SGD", "lr": 0.05},
    # Smaller than the gradients are, so that it is active.
    "train:grad_clip": 0.1,
    "train:total_iter": 8,
    "val:val_freq": 4,
    "val:pbar": False,
    "logger:save_checkpoint_freq": 4,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COMMAND = [sys.executable, "-u", "-m", "esc_arch.cli", "train"]
# Leaves its process id behind; `apart` gives each process a folder of its own.
SHELL = """
echo $$ > pid$RANK
if [ "$1" = apart ]; then cd rank$RANK; fi
shift
exec "$@"
"""


class Run:
    """`basicsr train` in two processes below torchrun."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        apart: bool = False,
        torchrun: list[str] = TORCHRUN,
    ) -> None:
        self.folder = folder
        for rank in (0, 1) if apart else ():
            (folder / f"rank{rank}").mkdir()
        # A file, since torchrun fills in what looks like its variables in arguments.
        (folder / "start.sh").write_text(SHELL)
        shell = ["sh", "start.sh", "apart" if apart else "together"]
        command = [*COMMAND, *map(str, arguments), "--launcher", "pytorch"]
        self.process = subprocess.Popen(
            [*torchrun, "--no-python", *shell, *command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.log = ""

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.log):
            line = self.process.stdout.readline()
            assert line, self.log[-3000:]
            self.log += line

    def signal(self, rank: int, number: int) -> None:
        os.kill(int((self.folder / f"pid{rank}").read_text()), number)

    def finish(self, timeout: float = 120) -> int:
        try:
            self.log += self.process.communicate(timeout=timeout)[0]
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode


def train_alone(folder: Path, *arguments: object) -> str:
    """`basicsr train` in one process; returns its log."""
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def losses(log: str) -> dict[int, float]:
    """Losses by iteration, which only the first process prints."""
    found = re.findall(r"iter: +([\d,]+), .*l_pix: (\S+)", log)
    assert len(found) == len(set(found))
    return {int(iteration): float(loss) for iteration, loss in found}


def weights(folder: Path, iteration: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    path = folder / "experiments" / "tiny" / "models" / f"net_g_{iteration}.pth"
    saved = torch.load(path, weights_only=True)
    return {key: saved[key] for key in ("params", "params_ema") if key in saved}


def measured(folder: Path) -> dict[str, float]:
    """PSNR by iteration."""
    path = folder / "experiments" / "tiny" / "validation.json"
    return json.loads(path.read_text())["tiny_val"]["psnr"]


def check_alike(ours: Path, theirs: Path) -> None:
    """Weights, EMA and validation at the end are the same but for rounding."""
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)
    assert measured(ours) == pytest.approx(measured(theirs), abs=1e-3)
