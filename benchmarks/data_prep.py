"""Speed and memory of data preparation, against BasicSR's own on the same images in one run.

    OMP_NUM_THREADS=1 python benchmarks/data_prep.py --images DIR

DIR has photographs; DIV2K-sized images are made of them by laying them side by side. What is
compared runs in turn, `--repeats` times, and the fastest of each counts: other work on the machine
only ever adds time. For the same reason what runs in one process is timed in seconds of its own
CPU time; what runs in several, by the clock, and so only an idle machine tells the truth of it.
"""

import argparse
import contextlib
import io
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch

import esc_arch  # noqa: F401
from esc_arch.prepare.images import encode_png, list_images, read_image
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.parallel import default_workers
from esc_arch.prepare.subimages import Cutting, cut_into_sub_images, find_sources, pack_sub_images

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize as basicsr_imresize

HEIGHT, WIDTH = 1356, 2040
GT_SIZE, BATCH_SIZE = 128, 16
NOTES = """
- The second column is what the row names after its semicolon, else BasicSR's own.
- Downscaling is from 8 bit to 8 bit for both. BasicSR's imresize works on floats without MATLAB's
  rounding between the passes, so its LR are not the papers'. At x3 one value in 162 is an exact
  half and is summed again in the papers' order.
- Packing: ours reads the HR files and cuts them; BasicSR's reads sub-images already cut. PNG
  coding is reading the HR files and encoding the sub-images, nothing else.
- Loading is by BasicSR's PairedImageDataset and data loader; the PNG files are the same sub-images,
  in the page cache like the LMDB.
- div2k.py is run as a user runs it, with its start: HR, x2, x3 and x4. Its memory is that of all
  its processes together, shared pages counted once (Linux's PSS).
"""
SCRIPT = Path(__file__).parents[1] / "datasets_prep" / "div2k.py"


def make_images(photographs: Path, folder: Path, count: int) -> None:
    """Write images of DIV2K's usual size, made of photographs side by side."""
    folder.mkdir()
    paths = list_images(photographs, "--images")
    images = [read_image(path)[0] for path in paths[: 25 * count]]
    images = [image for image in images if image.shape[0] < image.shape[1]]
    tile_height = min(image.shape[0] for image in images)
    tile_width = min(image.shape[1] for image in images)
    rows, columns = -(-HEIGHT // tile_height), -(-WIDTH // tile_width)
    for number in range(count):
        start = number * rows * columns
        tiles = [
            images[(start + i) % len(images)][:tile_height, :tile_width]
            for i in range(rows * columns)
        ]
        bands = [np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)]
        image = np.vstack(bands)[:HEIGHT, :WIDTH]
        (folder / f"{number:04d}.png").write_bytes(encode_png(image))


def fastest(
    functions: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Seconds of each function, run in turn: the fastest of the repeats."""
    seconds = {name: float("inf") for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            # tqdm and prints would be measured with the rest on a slow terminal.
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                start = clock()
                function()
                seconds[name] = min(seconds[name], clock() - start)
    return seconds


def basicsr_downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """8 bit to 8 bit with BasicSR's imresize, which takes floats in [0, 1]."""
    resized = basicsr_imresize(image.astype(np.float32) / 255, 1 / scale)
    return np.clip(resized * 255, 0, 255).round().astype(np.uint8)


def downscaling(images: list[np.ndarray], repeats: int) -> None:
    """Images per second of imresize here and in BasicSR, both on one core."""
    for scale in (2, 3, 4):
        seconds = fastest(
            {
                "ours": lambda scale=scale: [imresize(image, 1 / scale) for image in images],
                "BasicSR": lambda scale=scale: [basicsr_downscale(i, scale) for i in images],
            },
            repeats,
        )
        rates = {name: len(images) / value for name, value in seconds.items()}
        print(
            f"| downscaling x{scale}, images/s, one core | {rates['ours']:.1f} "
            f"| {rates['BasicSR']:.1f} | {rates['ours'] / rates['BasicSR']:.1f} |"
        )


def packing(hr: Path, folder: Path, repeats: int) -> None:
    """Sub-images per second into an LMDB, one process; and the share of PNG coding."""
    cutting = Cutting()
    sources = find_sources([hr], "--images")
    pieces_folder = folder / "sub-images"
    pieces_folder.mkdir()
    pieces = []
    for source in sources:
        image = read_image(source.hr)[0]
        for index, piece in enumerate(cut_into_sub_images(image, 480, 240), start=1):
            pieces.append(piece)
            (pieces_folder / f"{source.name}_s{index:03d}.png").write_bytes(encode_png(piece))
    names = sorted(path.name for path in pieces_folder.iterdir())
    run = iter(range(10**6))

    def ours(scales: tuple[int, ...], workers: int) -> None:
        place = folder / f"ours{next(run)}"
        databases = {scale: place / f"X{scale}.lmdb" for scale in scales}
        pack_sub_images(sources, databases, cutting, workers)

    def basicsr() -> None:
        path = str(folder / f"basicsr{next(run)}.lmdb")
        keys = [name[: -len(".png")] for name in names]
        make_lmdb_from_imgs(str(pieces_folder), path, names, keys)

    def coding() -> None:
        for source in sources:
            read_image(source.hr)
        for piece in pieces:
            encode_png(piece)

    scales = (1, 2, 3, 4)
    seconds = fastest(
        {
            "ours": lambda: ours((1,), 1),
            "BasicSR": basicsr,
            "coding": coding,
            "all": lambda: ours(scales, 1),
        },
        repeats,
    )
    rate = {name: len(names) / value for name, value in seconds.items()}
    print(
        f"| packing HR, sub-images/s, one process | {rate['ours']:.1f} | {rate['BasicSR']:.1f} "
        f"| {rate['ours'] / rate['BasicSR']:.2f} |"
    )
    print(f"| share of PNG coding in ours | {seconds['coding'] / seconds['ours']:.0%} | | |")
    print(f"| HR, x2, x3, x4, images/s, one process | {len(sources) / seconds['all']:.2f} | | |")


def loading(folder: Path, samples: int, repeats: int) -> None:
    """Samples per second of BasicSR's training loader from an LMDB and from PNG files."""
    lmdbs = {scale: next(folder.glob(f"ours*/X{scale}.lmdb")) for scale in (2,)}
    lmdbs[1] = lmdbs[2].with_name("X1.lmdb")
    with_files = folder / "files"
    for scale, path in lmdbs.items():
        (with_files / str(scale)).mkdir(parents=True)
        with lmdb.open(str(path), readonly=True, lock=False) as environment:
            with environment.begin() as transaction:
                for key, content in transaction.cursor():
                    (with_files / str(scale) / f"{key.decode()}.png").write_bytes(content)

    def read(kind: str, workers: int) -> None:
        roots = lmdbs if kind == "lmdb" else {scale: with_files / str(scale) for scale in (1, 2)}
        opt = {
            "name": kind,
            "type": "PairedImageDataset",
            "phase": "train",
            "scale": 2,
            "dataroot_gt": str(roots[1]),
            "dataroot_lq": str(roots[2]),
            "io_backend": {"type": kind},
            "gt_size": GT_SIZE,
            "use_hflip": True,
            "use_rot": True,
            "num_worker_per_gpu": workers,
            "batch_size_per_gpu": BATCH_SIZE,
        }
        dataset = build_dataset(opt)
        sampler = EnlargedSampler(dataset, 1, 0, ratio=math.ceil(samples / len(dataset)))
        batches = iter(build_dataloader(dataset, opt, sampler=sampler, seed=0))
        for _ in range(samples // BATCH_SIZE):
            next(batches)

    samples -= samples % BATCH_SIZE
    for workers, clock in ((0, time.process_time), (max(default_workers(), 2), time.perf_counter)):
        seconds = fastest(
            {
                kind: lambda kind=kind, workers=workers: read(kind, workers)
                for kind in ("lmdb", "disk")
            },
            repeats,
            clock,
        )
        lmdb_rate, disk_rate = samples / seconds["lmdb"], samples / seconds["disk"]
        processes = f"{workers} loading processes, by the clock" if workers else "one process"
        print(
            f"| loading from LMDB, samples/s, {processes}; from PNG files "
            f"| {lmdb_rate:.1f} | {disk_rate:.1f} | {lmdb_rate / disk_rate:.2f} |"
        )


def memory_of(process_ids: list[int]) -> int:
    """Bytes that processes hold together, shared pages counted once (Linux's PSS)."""
    total = 0
    for process_id in process_ids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total


def session_of(leader: int) -> list[int]:
    """The processes of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == leader:
                members.append(int(entry.name))
    return members


def prepare(hr: Path, out: Path, workers: int) -> tuple[float, int]:
    """Run `div2k.py` as a user does.

    Returns:
        Seconds by the clock, and the peak of the memory of it and its workers in bytes.
    """
    command = [sys.executable, SCRIPT, "--name", "Set", "--hr", hr, "--out", out]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command), "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(session_of(process.pid)))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {process.returncode}")
    return seconds, peak


def whole_command(hr: Path, folder: Path, repeats: int) -> None:
    """Speed-up by processes, and peak memory of small and larger sets."""
    sets = {}
    for copies in (2, 6):
        sets[copies] = folder / f"copies{copies}"
        sets[copies].mkdir()
        for copy in range(copies):
            for path in hr.iterdir():
                (sets[copies] / f"{copy}_{path.name}").symlink_to(path)
    processes = max(default_workers(), 2)
    run = iter(range(10**6))
    seconds = {1: float("inf"), processes: float("inf")}
    peaks: dict[int, int] = {}
    for _ in range(repeats):
        for workers in seconds:
            taken, peaks[2] = prepare(sets[2], folder / f"command{next(run)}", workers)
            seconds[workers] = min(seconds[workers], taken)
    _, peaks[6] = prepare(sets[6], folder / f"command{next(run)}", processes)
    images = {copies: len(list(place.iterdir())) for copies, place in sets.items()}
    alone, together = (images[2] / seconds[workers] for workers in (1, processes))
    print(
        f"| div2k.py with {processes} processes, images/s by the clock; with 1 | {together:.2f} "
        f"| {alone:.2f} | {together / alone:.2f} |"
    )
    for copies, peak in peaks.items():
        print(
            f"| peak memory of it, GB, {images[copies]} images, {processes} processes "
            f"| {peak / 1e9:.2f} | | |"
        )


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs")
    parser.add_argument("--count", type=int, default=4, help="images to make (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("# Data preparation\n")
    print(
        f"    OMP_NUM_THREADS=1 python benchmarks/data_prep.py --images {arguments.images.name} "
        f"--count {arguments.count} --repeats {arguments.repeats}\n"
    )
    libraries = ", ".join(f"{n} {version(n)}" for n in ("basicsr", "numpy", "torch", "lmdb"))
    print(
        f"{arguments.count} images of {WIDTH}x{HEIGHT}, fastest of {arguments.repeats} repeats. "
        f"{default_workers()} cores, {processor()}; load {os.getloadavg()[0]:.1f} before the run. "
        f"Python {platform.python_version()}, {libraries}, OpenCV {cv2.__version__}.\n"
    )
    print("| what | ours | theirs | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(arguments.images, folder / "HR", arguments.count)
        images = [read_image(path)[0] for path in sorted((folder / "HR").iterdir())]
        downscaling(images, arguments.repeats)
        packing(folder / "HR", folder, arguments.repeats)
        loading(folder, 160, arguments.repeats)
        whole_command(folder / "HR", folder, arguments.repeats)
    print(NOTES)


if __name__ == "__main__":
    main()
