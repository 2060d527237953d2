"""What starting costs: CPU time and memory of the command, beside those of `import torch`.

    python benchmarks/startup.py [--runs N] [--other PYTHON]

Each figure is the median over fresh processes, which take turns: CPU time of the process and its
children, in user and system mode, and the largest memory that the process had. `--other` measures
`basicsr --help` of another installation too, such as an older version's environment.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from esc_arch.children import basicsr_command

SIDE = 64


def measure(command: list[str], folder: str) -> tuple[float, float]:
    """CPU time in seconds and peak memory in MB of a command that has to succeed."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.execv(command[0], command)
    _, status, usage = os.wait4(child, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def commands(folder: str, other: str | None) -> dict[str, list[str]]:
    """What is measured, by name."""
    picture = Path(folder) / "picture.png"
    values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(values).save(picture)
    found = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import esc_arch": [sys.executable, "-c", "import esc_arch"],
        "basicsr --help": basicsr_command("--help"),
        f"basicsr upscale, {SIDE}x{SIDE}": basicsr_command("upscale", picture, "--overwrite"),
    }
    if other is not None:
        script = str(Path(other).with_name("basicsr"))
        found["other basicsr --help"] = [other, script, "--help"]
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="processes of each (default: 7)")
    parser.add_argument("--other", metavar="PYTHON", help="Python of another installation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = commands(folder, args.other)
        figures = {name: [] for name in found}
        for run in range(args.runs + 1):
            for name, command in found.items():
                figure = measure(command, folder)
                if run:  # The first fills the disk's cache.
                    figures[name].append(figure)
    medians = {
        name: tuple(map(statistics.median, zip(*measured, strict=True)))
        for name, measured in figures.items()
    }
    torch_time, torch_memory = medians["import torch"]
    print(f"Medians of {args.runs} processes on {os.cpu_count()} cores")
    print(f"{'':<26}{'CPU time':>10}{'memory':>10}{'above import torch':>26}")
    for name, (seconds, megabytes) in medians.items():
        above = f"{seconds - torch_time:+.2f} s {megabytes - torch_memory:+6.0f} MB"
        print(f"{name:<26}{seconds:>8.2f} s{megabytes:>7.0f} MB{above:>26}")


if __name__ == "__main__":
    main()
