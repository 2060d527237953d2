"""`basicsr upscale` beside that of an older commit: the same pixels, and no more time.

    python benchmarks/against_older.py OLDER FOLDER [--count 200]

OLDER is the Python of an environment with commit 793030b, FOLDER has plain PNG such as Set5's LR.
Three parts, printed one after another:

- files: each picture of FOLDER from file to file with one network that both have, a convolution and
  a pixel shuffle. What reads, scales, rounds and writes must give the same pixels to the bit.
- kernels: the shipped weights on the same pictures, each commit's float32 against the formulas in
  float64. Where the files differ by a level, it is by the order of sums in the kernels.
- time: COUNT pictures of 480x320 with a tiny ESC, so that the pictures count and not the network,
  or with `--shipped` the weights that ship, by both in turns. CPU seconds of the whole process,
  since other processes may take its cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import esc_arch
from esc_arch.archs import NETWORKS
from esc_arch.inference.picture_files import read_picture

# Run by both; what differs between them is at the top.
CHILD = """
import sys
from pathlib import Path

import numpy as np
import torch

what, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
try:
    from esc_arch.upscale import Job, Upscaler, run_job

    def made(network):
        return Upscaler(network, 32)

    def shipped():
        from esc_arch import checkpoints
        return checkpoints.load_network(checkpoints.default_model(), "cpu", torch.float32)[0]
except ImportError:
    from esc_arch.inference.upscaler import Upscaler
    from esc_arch.inference.work import Job, run_job

    def made(network):
        return Upscaler(network, {"upscaling_factor": 2, "window_size": 32})

    def shipped():
        import esc_arch
        return esc_arch.load(device="cpu").network

class Shuffled(torch.nn.Module):
    upscaling_factor = 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 12, 5, padding=2)

    def forward(self, x):
        small = self.convolution(x) / 4 + x.repeat(1, 4, 1, 1)
        return torch.nn.functional.pixel_shuffle(small, 2)

files = sorted(folder.glob("*.png"))
if what == "files":
    upscaler = made(Shuffled().eval().requires_grad_(False))
    for path in files:
        run_job(Job(path, out / path.name), upscaler)
else:
    network = shipped()
    for path in files:
        lq = torch.from_numpy(np.load(path.with_suffix(".npy")))
        with torch.inference_mode():
            np.save(out / f"{path.stem}.npy", network(lq).numpy())
"""


def run_both(older: str, what: str, folder: Path, place: Path) -> list[Path]:
    """Run the child in both environments; where each has written."""
    folders = []
    for name, python in (("older", older), ("newer", sys.executable)):
        out = place / f"{what}_{name}"
        out.mkdir()
        subprocess.run([python, "-P", "-c", CHILD, what, str(folder), str(out)], check=True)
        folders.append(out)
    return folders


def compare_files(older: str, folder: Path, place: Path) -> None:
    """Pixels of files made with one network."""
    before, after = run_both(older, "files", folder, place)
    for path in sorted(folder.glob("*.png")):
        one, two = (read_picture(out / path.name).pixels for out in (before, after))
        print(f"files: {path.name}: {int((one != two).sum())} of {one.size} values differ")


def compare_kernels(older: str, folder: Path, place: Path) -> None:
    """The shipped network's outputs beside float64."""
    inputs = place / "inputs"
    inputs.mkdir()
    exact = esc_arch.load(device="cpu").network.double()
    for path in sorted(folder.glob("*.png")):
        pixels = read_picture(path).pixels
        height, width = (side // 32 * 32 for side in pixels.shape[:2])
        if min(height, width) == 0:
            continue
        lq = torch.from_numpy(pixels[:height, :width].astype(np.float32) / 255)
        (inputs / path.name).touch()
        np.save(inputs / f"{path.stem}.npy", lq.permute(2, 0, 1)[None].contiguous().numpy())
    outputs = run_both(older, "kernels", inputs, place)
    for path in sorted(inputs.glob("*.npy")):
        with torch.inference_mode():
            right = exact(torch.from_numpy(np.load(path)).double()).numpy()
        levels = [to_levels(right), *(to_levels(np.load(out / path.name)) for out in outputs)]
        told = []
        for name, out, level in zip(("older", "newer"), outputs, levels[1:], strict=True):
            error = np.abs(np.load(out / path.name) - right)
            told.append(
                f"{name} off by at most {error.max():.1e}, {error.mean():.1e} on average, "
                f"{int((level != levels[0]).sum())} values of another level"
            )
        apart = int((levels[1] != levels[2]).sum())
        print(f"kernels: {path.stem}: {'; '.join(told)}; {apart} differ between them")


def to_levels(values: np.ndarray) -> np.ndarray:
    """As they are written in 8 bits."""
    return np.round(values.clip(0, 1) * 255).astype(np.uint8)


def compare_time(older: str, count: int, rounds: int, shipped: bool, place: Path) -> None:
    """Many small pictures by the command, in turns."""
    pictures = place / "pictures"
    pictures.mkdir()
    rows, columns = np.mgrid[:320, :480]
    for number in range(count):
        waves = [np.sin(rows / (9 + k) + number) * np.cos(columns / (7 + k)) for k in range(3)]
        noise = np.random.default_rng(number).normal(0, 0.05, (320, 480, 3))
        pixels = (np.stack(waves, 2) * 0.4 + 0.5 + noise).clip(0, 1)
        Image.fromarray((pixels * 255).astype(np.uint8)).save(pictures / f"{number:03}.png")
    torch.manual_seed(0)
    options = dict(dim=16, pdim=4, kernel_size=5, n_blocks=1, conv_blocks=1, window_size=16)
    network = NETWORKS["ESC"](**options, num_heads=1, exp_ratio=1.25, upscaling_factor=2)
    torch.save({"params": network.state_dict()}, place / "tiny.pth")
    for turn in range(rounds):
        for name, python in (("older", older), ("newer", sys.executable)):
            command = Path(python).with_name("basicsr")
            arguments = ["upscale", pictures, "-o", place / f"{name}{turn}", "--device", "cpu"]
            arguments += [] if shipped else ["--model", place / "tiny.pth"]
            before = os.times()
            run = subprocess.run([command, *arguments], check=True, capture_output=True, text=True)
            after = os.times()
            cpu = sum(after[2:4]) - sum(before[2:4])
            print(
                f"time: {name}: {cpu:.1f} CPU seconds, {after.elapsed - before.elapsed:.1f} s, "
                f"{run.stdout.splitlines()[-1]}",
                flush=True,
            )


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("older", help="Python of the environment with the older commit")
    parser.add_argument("folder", type=Path, help="plain PNG")
    parser.add_argument("--count", type=int, default=200, help="pictures of 480x320 (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--shipped", action="store_true", help="time the weights that ship")
    parts = ("files", "kernels", "time")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if "files" in args.parts:
            compare_files(args.older, args.folder, Path(name))
        if "kernels" in args.parts:
            compare_kernels(args.older, args.folder, Path(name))
        if "time" in args.parts:
            compare_time(args.older, args.count, args.rounds, args.shipped, Path(name))


if __name__ == "__main__":
    main()
