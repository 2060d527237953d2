"""Kill a training at random moments, resume it each time, and compare it with one left alone.

Makes a tiny data set, trains a tiny ESC once without interruption, then again under `kill -9`, and
prints what came of it as Markdown. The exit status is 0 if nothing was lost.

    OMP_NUM_THREADS=1 python benchmarks/soak.py > benchmarks/results/soak.md
"""

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import esc_arch  # noqa: F401  (BasicSR does not import on new libraries before it)

# isort: split
import cv2
import numpy as np
import torch
import yaml
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

from esc_arch.errors import UserError
from esc_arch.study.speed.results import describe
from esc_arch.zoo.store import load_state

NAME = "soak"
# Of the kills, this many fall before the first iteration: in imports, preflight or resumption.
KILLS_AT_START = 0.2


def make_data(folder: Path) -> None:
    """Write 16 pairs of 32x32 and 16x16 pixels as LMDBs, and 2 as images for validation.

    Args:
        folder: Gets `GT.lmdb`, `LQ.lmdb` and the folders of the images.
    """
    generator = np.random.default_rng(0)
    names = [f"{number:02}" for number in range(16)]
    for side in ("GT", "LQ", "val_GT", "val_LQ"):
        (folder / side).mkdir(parents=True)
    for name in names:
        gt = cv2.resize(generator.integers(0, 256, (6, 6, 3), np.uint8), (32, 32))
        lq = cv2.resize(gt, (16, 16), interpolation=cv2.INTER_AREA)
        for prefix in ("", "val_") if name < "02" else ("",):
            cv2.imwrite(str(folder / f"{prefix}GT" / f"{name}.png"), gt)
            cv2.imwrite(str(folder / f"{prefix}LQ" / f"{name}.png"), lq)
    for side in ("GT", "LQ"):
        files = [f"{name}.png" for name in names]
        # Its messages would end up in the report.
        with contextlib.redirect_stdout(sys.stderr):
            make_lmdb_from_imgs(str(folder / side), str(folder / f"{side}.lmdb"), files, names)


def write_options(data: Path, iterations: int, path: Path) -> None:
    """Write the option file of the training: saved every 2 iterations, validated every 10.

    Args:
        data: Folder that `make_data` filled.
        iterations: How many.
        path: Where to write.
    """

    def pair(prefix: str, suffix: str, backend: str) -> dict[str, Any]:
        return {
            "name": f"{NAME}{prefix}",
            "type": "PairedImageDataset",
            "dataroot_gt": str(data / f"{prefix}GT{suffix}"),
            "dataroot_lq": str(data / f"{prefix}LQ{suffix}"),
            "io_backend": {"type": backend},
        }

    loading = {
        "gt_size": 24,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": 1,
        "batch_size_per_gpu": 2,
        # 48 samples an epoch: 24 iterations, so that many kills fall within one.
        "dataset_enlarge_ratio": 3,
    }
    options = {
        "name": NAME,
        "model_type": "ESCModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": {**pair("", ".lmdb", "lmdb"), **loading},
            "val": pair("val_", "", "disk"),
        },
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
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.99,
            "optim_g": {"type": "AdamW", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [iterations // 2], "gamma": 0.5},
            "total_iter": iterations,
            "warmup_iter": 10,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {
            "val_freq": 10,
            "save_img": False,
            "pbar": False,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}},
        },
        "logger": {
            "print_freq": 1,
            "save_checkpoint_freq": 2,
            "keep_checkpoints": 4,
            "use_tb_logger": False,
        },
    }
    path.write_text(yaml.safe_dump(options, sort_keys=False))


class Training:
    """A `basicsr train` under way in a process group of its own.

    Args:
        folder: The current folder of the run.
        options: The option file.
        resumed_from: The iteration that it must go on from.
    """

    def __init__(self, folder: Path, options: Path, resumed_from: int = 0) -> None:
        self.resumed_from = resumed_from
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "esc_arch.cli", "train", "-opt", options, "--auto_resume"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def iterations(self) -> Iterator[int]:
        """Yield the number of each iteration as it is done; ends with the process.

        Raises:
            RuntimeError: The first is not the one after that resumed from.
        """
        self.log = ""
        previous = self.resumed_from
        for line in self.process.stdout:
            self.log += line
            if found := re.search(r"iter: +([\d,]+), ", line):
                reached = int(found[1].replace(",", ""))
                if reached != previous + 1:
                    raise RuntimeError(f"iteration {reached} after {previous}:\n{self.log[-3000:]}")
                yield reached
                previous = reached

    def finish(self) -> tuple[float, float]:
        """Let it run to its end.

        Returns:
            Seconds from the start of the process to the end of its first iteration, and seconds
            an iteration after that.

        Raises:
            RuntimeError: It fails.
        """
        done = [time.monotonic() for _ in self.iterations()]
        if self.process.wait() != 0:
            raise RuntimeError(f"the training fails:\n{self.log[-3000:]}")
        # Killed after its last save, it has nothing more to do.
        done = done or [time.monotonic()]
        return done[0] - self.started, (done[-1] - done[0]) / max(1, len(done) - 1)

    def kill(self) -> bool:
        """`kill -9` it and its loading processes.

        Returns:
            Whether it was still running.

        Raises:
            RuntimeError: It had failed before.
        """
        status = self.process.poll()
        if status is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        rest = self.process.communicate()[0]
        if status not in (None, 0):
            raise RuntimeError(f"the training fails:\n{rest[-3000:]}")
        return status is None


def unreadable(experiment: Path) -> list[str]:
    """What is wrong with the files that a killed training left, one line a file."""
    faults = []
    for path in [*experiment.glob("models/*.pth"), *experiment.glob("training_states/*.state")]:
        try:
            load_state(path)
        except UserError as error:
            faults.append(str(error))
    for path in experiment.glob("validation.json"):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            faults.append(f"{path}: {error}")
    return faults


def newest_iteration(experiment: Path) -> int:
    """The iteration that the next run can resume from; 0 without one."""
    return max((int(path.stem) for path in experiment.glob("training_states/*.state")), default=0)


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def soak(folder: Path, kills: int, iterations: int, seed: int) -> dict[str, Any]:
    """Train with and without kills.

    Args:
        folder: An empty folder to work in.
        kills: How many there are to be.
        iterations: Length of the training; more than `kills`.
        seed: Of the moments.

    Returns:
        Figures by what they are; `different` and `unreadable` list what went wrong.

    Raises:
        RuntimeError: A training fails by itself.
    """
    moments = random.Random(seed)
    make_data(folder / "data")
    options = folder / "soak.yml"
    write_options(folder / "data", iterations, options)
    alone, killed = folder / "alone", folder / "killed"
    for run in (alone, killed):
        run.mkdir()
    seconds_to_start, took = Training(alone, options).finish()
    experiment = killed / "experiments" / NAME

    faults, at_start, within, lost = [], 0, 0, 0
    while at_start + within < kills:
        resumed_from = newest_iteration(experiment)
        training = Training(killed, options, resumed_from)
        reached = resumed_from
        # Near the end the run must not finish before all kills are done.
        if moments.random() < KILLS_AT_START or resumed_from > iterations - 6:
            time.sleep(moments.uniform(0, seconds_to_start))
            if not training.kill():
                break
            at_start += 1
        else:
            # So far ahead that the iterations last for all kills.
            ahead = 2 * (iterations - resumed_from) / (kills - at_start - within)
            target = resumed_from + moments.uniform(1, max(2, min(ahead, iterations / 4)))
            target = min(target, iterations - 5)
            previous = None
            for reached in training.iterations():
                now = time.monotonic()
                # A shared machine may be faster than it was.
                if previous is None:
                    seconds_to_start = min(seconds_to_start, now - training.started)
                else:
                    took = now - previous
                previous = now
                if reached >= target:
                    # Also the first of a run, which has been measured by the run before.
                    time.sleep(moments.uniform(0, 2 * took))
                    break
            if not training.kill():
                break
            within += 1
        saved = newest_iteration(experiment)
        # What the log had not told of yet may have been saved.
        lost += max(reached - saved, 0)
        faults += unreadable(experiment)
        print(f"kill {at_start + within}: resumes from {saved}", file=sys.stderr, flush=True)
    Training(killed, options, newest_iteration(experiment)).finish()

    files = (
        f"models/net_g_{iterations}.pth",
        "models/net_g_latest.pth",
        f"training_states/{iterations}.state",
    )
    reference = alone / "experiments" / NAME
    different = [
        name
        for name in files
        if not same(load_state(experiment / name), load_state(reference / name))
    ]
    if (experiment / "validation.json").read_text() != (reference / "validation.json").read_text():
        different.append("validation.json")
    return {
        "kills": at_start + within,
        "before the first iteration of a run": at_start,
        "iterations": iterations,
        "iterations done again": lost,
        "unreadable": faults,
        "compared": [*files, "validation.json"],
        "different": different,
    }


def main() -> int:
    """Run the soak and print its report.

    Returns:
        0 if all kills were survived without a trace, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kill -9 so often (default: 50)")
    parser.add_argument("--iterations", type=int, default=300, help="of training (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    if args.kills < 1 or args.iterations < 4 * args.kills:
        parser.error("--iterations must be at least 4 times --kills, and --kills at least 1")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder).resolve(), args.kills, args.iterations, args.seed)
    on = describe("cpu")["environment"]
    hardware = f"{on['cpu']}, {on['cores']} cores, Python {on['python']}, torch {torch.__version__}"
    passed = figures["kills"] == args.kills and not figures["unreadable"] + figures["different"]
    print("# Soak: a training under `kill -9`\n")
    print(
        f"`OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python "
        f"{shlex.join(['benchmarks/soak.py', *sys.argv[1:]])}`\n"
    )
    print(f"{hardware}; {time.strftime('%Y-%m-%d')}; {time.monotonic() - began:.0f} s\n")
    for name, value in figures.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        print(f"- {name}: {shown}")
    print(f"\n**{'Passed' if passed else 'Failed'}**")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
