"""Time and peak memory of `basicsr test` with tiles on one large LR image.

    python benchmarks/large_image.py [--megapixels 8] [--tile 512]

makes a mosaic of photographs, upscales it twice by the weights that ship, and prints a line of
Markdown. The peak is of the process of `basicsr test`, as the operating system counts it.
"""

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import yaml

from esc_arch.prepare.demo import photograph

OPTIONS = Path(__file__).parent.parent / "options" / "test_ESC_light_x2_BSD.yml"


def mosaic(megapixels: float) -> np.ndarray:
    """Repeat photographs to an image (H, W, 3), BGR, uint8, of 3:2 and about so many pixels."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(1.5 * height)
    patches = [photograph(name)[:300, :400] for name in ("coffee", "chelsea", "astronaut")]
    rows = [
        np.concatenate([patches[(row + column) % 3] for column in range(-(-width // 400))], axis=1)
        for row in range(-(-height // 300))
    ]
    return np.concatenate(rows)[:height, :width]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=8, help="of the LR image (default: 8)")
    parser.add_argument("--tile", type=int, default=512, help="side in LR pixels (default: 512)")
    args = parser.parse_args()
    image = mosaic(args.megapixels)
    options = yaml.safe_load(OPTIONS.read_text())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "LR").mkdir()
        cv2.imwrite(f"{folder}/LR/mosaic.png", image)
        data = {"name": "mosaic", "type": "SingleImageDataset", "dataroot_lq": f"{folder}/LR"}
        options["datasets"] = {"test_1": {**data, "io_backend": {"type": "disk"}}}
        options["val"] = {"save_img": True, "suffix": None, "tile": {"tile_size": args.tile}}
        (Path(folder) / "large.yml").write_text(yaml.safe_dump(options))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "esc_arch.cli", "test", "-opt", "large.yml"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        if not any(Path(folder, "results").rglob("mosaic*.png")):
            sys.exit("basicsr test wrote no picture")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"| {image.shape[1]}x{image.shape[0]} | tiles of {args.tile} | {os.cpu_count()} cores ",
        end="",
    )
    print(f"| {seconds:.0f} s | {peak:.2f} GB |")


if __name__ == "__main__":
    main()
