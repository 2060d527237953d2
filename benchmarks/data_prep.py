"""Speed and memory of data preparation, against BasicSR's own on the same images in one run.

    OMP_NUM_THREADS=1 python benchmarks/data_prep.py --images DIR

DIR has photographs; DIV2K-sized images are made of them by laying them side by side. What is
compared runs in turn, `--repeats` times, and the fastest of each counts, in seconds of CPU time of
one process: other work on the machine only ever adds to it.
"""

import argparse
import contextlib
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch

import esc_arch  # noqa: F401
from esc_arch.prepare.images import encode_png, list_images, read_image
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.subimages import Cutting, cut_into_sub_images, find_sources, pack_sub_images
from esc_arch.study.speed.results import describe

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize as basicsr_imresize

HEIGHT, WIDTH = 1356, 2040
NOTES = """
- The second column is what the row names after its semicolon, else BasicSR's own.
- Downscaling is from 8 bit to 8 bit for both. BasicSR's imresize works on floats without MATLAB's
  rounding between the passes, so its LR are not the papers'. At x3 one value in 162 is an exact
  half and is summed again in the papers' order.
- Packing: ours reads the HR files and cuts them; BasicSR's reads sub-images already cut. PNG
  coding is reading the HR files and encoding the sub-images, nothing else.
"""


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


def fastest(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each function, run in turn: the fastest of the repeats."""
    seconds = {name: float("inf") for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            # tqdm and prints would be measured with the rest on a slow terminal.
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                start = time.process_time()
                function()
                seconds[name] = min(seconds[name], time.process_time() - start)
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
        f"{describe('cpu')['environment']['cpu']}; load {os.getloadavg()[0]:.1f} before the run. "
        f"Python {platform.python_version()}, {libraries}, OpenCV {cv2.__version__}.\n"
    )
    print("| what | ours | theirs | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(arguments.images, folder / "HR", arguments.count)
        images = [read_image(path)[0] for path in sorted((folder / "HR").iterdir())]
        downscaling(images, arguments.repeats)
        packing(folder / "HR", folder, arguments.repeats)
    print(NOTES)


if __name__ == "__main__":
    main()
