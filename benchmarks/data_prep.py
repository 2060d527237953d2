"""Speed and memory of data preparation, against BasicSR's own on the same images in one run.

    python benchmarks/data_prep.py --images DIR

DIR has photographs; DIV2K-sized images are made of them by laying them side by side. What is
compared runs in turn, `--repeats` times, and the fastest of each counts: other work on the machine
only ever adds time. For the same reason what runs in one process is timed in seconds of its own
CPU time; what runs in several, by the clock.
"""

import argparse
import contextlib
import io
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
from sr_data.images import encode_png, list_images, read_image
from sr_data.imresize import imresize
from sr_data.parallel import default_workers
from sr_data.subimages import Cutting, cut_into_sub_images, find_sources, pack_sub_images

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize as basicsr_imresize

HEIGHT, WIDTH = 1356, 2040
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
    workers = default_workers()
    by_clock = fastest(
        {str(count): lambda count=count: ours(scales, count) for count in (1, workers)},
        repeats,
        time.perf_counter,
    )
    for count, value in by_clock.items():
        print(f"| the same by the clock, {count} processes | {len(sources) / value:.2f} | | |")


def loading(folder: Path, samples: int, repeats: int) -> None:
    """Samples per second of BasicSR's paired dataset from an LMDB and from PNG files."""
    lmdbs = {scale: next(folder.glob(f"ours*/X{scale}.lmdb")) for scale in (2,)}
    lmdbs[1] = lmdbs[2].with_name("X1.lmdb")
    with_files = folder / "files"
    for scale, path in lmdbs.items():
        (with_files / str(scale)).mkdir(parents=True)
        with lmdb.open(str(path), readonly=True, lock=False) as environment:
            with environment.begin() as transaction:
                for key, content in transaction.cursor():
                    (with_files / str(scale) / f"{key.decode()}.png").write_bytes(content)

    def dataset(kind: str):
        roots = lmdbs if kind == "lmdb" else {scale: with_files / str(scale) for scale in (1, 2)}
        return build_dataset(
            {
                "name": kind,
                "type": "PairedImageDataset",
                "phase": "train",
                "scale": 2,
                "dataroot_gt": str(roots[1]),
                "dataroot_lq": str(roots[2]),
                "io_backend": {"type": kind},
                "gt_size": 128,
                "use_hflip": True,
                "use_rot": True,
            }
        )

    sets = {kind: dataset(kind) for kind in ("lmdb", "disk")}
    indices = np.random.default_rng(0).integers(0, len(sets["lmdb"]), samples)
    seconds = fastest(
        {k: lambda data=data: [data[int(i)] for i in indices] for k, data in sets.items()}, repeats
    )
    lmdb_rate, disk_rate = samples / seconds["lmdb"], samples / seconds["disk"]
    print(
        f"| loading, samples/s, one process: LMDB here, PNG files beside | {lmdb_rate:.1f} "
        f"| {disk_rate:.1f} | {lmdb_rate / disk_rate:.2f} |"
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


def peak_memory(hr: Path, out: Path, copies: int, workers: int) -> int:
    """Peak of the memory of `div2k.py` and its workers, in bytes."""
    folder = out / f"copies{copies}"
    folder.mkdir()
    for copy in range(copies):
        for path in hr.iterdir():
            (folder / f"{copy}_{path.name}").symlink_to(path)
    command = [sys.executable, SCRIPT, "--name", "Set", "--hr", folder, "--out", out / f"m{copies}"]
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
    if process.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {process.returncode}")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs")
    parser.add_argument("--count", type=int, default=4, help="images to make (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    libraries = ", ".join(f"{n} {version(n)}" for n in ("basicsr", "numpy", "torch", "lmdb"))
    print(
        f"{arguments.count} images of {WIDTH}x{HEIGHT}; {default_workers()} cores, "
        f"{platform.machine()}; Python {platform.python_version()}, {libraries}, "
        f"OpenCV {cv2.__version__}\n"
    )
    print("| what | ours | BasicSR | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(arguments.images, folder / "HR", arguments.count)
        images = [read_image(path)[0] for path in sorted((folder / "HR").iterdir())]
        downscaling(images, arguments.repeats)
        packing(folder / "HR", folder, arguments.repeats)
        loading(folder, 100, arguments.repeats)
        workers = default_workers()
        for copies in (2, 6):
            peak = peak_memory(folder / "HR", folder, copies, workers) / 1e9
            count = copies * arguments.count
            print(f"| peak memory, GB, {count} images, {workers} processes | {peak:.2f} | | |")


if __name__ == "__main__":
    main()
