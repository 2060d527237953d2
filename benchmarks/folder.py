"""What a folder of pictures takes beside the network alone: `python benchmarks/folder.py`.

The network's own time is that of the same batches through the same upscaler, without files. The
two are measured in turns, each the first in every second one; every turn fills and empties the
queues anew, which a folder does once. Wall-clock time counts where the machine is idle; where it is
not, CPU seconds tell more. Both are printed, with the load. `--pictures 100 --turns 5` takes about
five minutes on two cores.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

import esc_arch
from esc_arch.inference.folders import run_jobs
from esc_arch.inference.picture_files import Picture
from esc_arch.inference.upscaler import Upscaler
from esc_arch.inference.work import Job, Settings


def crops(count: int, width: int, height: int) -> list[np.ndarray]:
    """Different parts of scikit-image's photographs."""
    photographs = [skimage.data.astronaut(), skimage.data.rocket(), skimage.data.coffee()]
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        while photograph.shape[0] < height or photograph.shape[1] < width:
            photograph = np.concatenate([photograph, photograph[::-1]])
            photograph = np.concatenate([photograph, photograph[:, ::-1]], 1)
        top = generator.integers(photograph.shape[0] - height + 1)
        left = generator.integers(photograph.shape[1] - width + 1)
        found.append(photograph[top : top + height, left : left + width])
    return found


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def network_alone(upscaler: Upscaler, pictures: list[np.ndarray], batch: int) -> None:
    for start in range(0, len(pictures), batch):
        upscaler.upscale_pictures([Picture(one) for one in pictures[start : start + batch]])


def folder(upscaler: Upscaler, sources: list[Path], out: Path, batch: int) -> None:
    jobs = [Job(source, out / source.name) for source in sources]
    for _, result in run_jobs(jobs, [upscaler], Settings(batch=batch)):
        if isinstance(result, Exception):
            raise result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--size", default="480x320", help="WxH of each (default: 480x320)")
    parser.add_argument("--model", help="default: the weights that ship")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=10, help="parts that are measured in turns")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width, height = map(int, args.size.split("x"))
    upscaler = esc_arch.load(args.model)
    pictures = crops(args.pictures, width, height)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        sources = [Path(name) / f"{number}.png" for number in range(len(pictures))]
        for source, pixels in zip(sources, pictures, strict=True):
            Image.fromarray(pixels).save(source)
        network_alone(upscaler, pictures[:1], 1)
        folder(upscaler, sources[:1], Path(name) / "out", 1)
        parts = np.array_split(np.arange(len(pictures)), min(args.turns, len(pictures)))
        alone, whole = [], []
        for turn, part in enumerate(parts):
            these = [pictures[number] for number in part]
            names = [sources[number] for number in part]
            out = Path(name) / "out"
            kinds = [
                (alone, partial(network_alone, upscaler, these, args.batch)),
                (whole, partial(folder, upscaler, names, out, args.batch)),
            ]
            for times, run in kinds if turn % 2 == 0 else reversed(kinds):
                times.append(timed(run))
    print(
        f"{args.pictures} pictures of {args.size}, x{upscaler.scale}, batch {args.batch}, "
        f"{args.threads} threads, load of the machine {os.getloadavg()[0]:.1f}"
    )
    for kind, index in (("wall-clock", 0), ("CPU", 1)):
        first, second = (sum(one[index] for one in times) for times in (alone, whole))
        ratios = [b[index] / a[index] for a, b in zip(alone, whole, strict=True)]
        each = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
        print(
            f"{kind}: network alone {first:.1f} s, folder {second:.1f} s, ratio "
            f"{second / first:.3f} (turns: {each})"
        )


if __name__ == "__main__":
    main()
