"""imresize against the published LR of Set5, and bicubic's PSNR on Set5 and Set14.

    python benchmarks/imresize_set5.py --src DIR

DIR has Set5 (with LR_bicubic/X2, X3, X4 as published) and Set14. Ends with status 1 when one value
of one LR image differs, or a PSNR is more than 0.01 dB from the published one.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

import esc_arch  # noqa: F401
from esc_arch.prepare.benchmark_sets import find_benchmark_sets, prepare_set
from esc_arch.prepare.imresize import imresize

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.metrics import calculate_psnr

PUBLISHED = {"Set5": (33.67, 30.40, 28.43), "Set14": (30.33, 27.63, 26.09)}


def differing_values(folder: Path, scale: int) -> tuple[int, int, int]:
    """Images, values, and values in which our LR is not the published one."""
    images = values = differing = 0
    for path in sorted((folder / "HR").iterdir()):
        hr = cv2.imread(str(path))
        height, width = (side - side % scale for side in hr.shape[:2])
        ours = imresize(hr[:height, :width], 1 / scale)
        published = folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"
        images += 1
        values += ours.size
        differing += int((ours != cv2.imread(str(published))).sum())
    return images, values, differing


def bicubic_psnr(folder: Path, scale: int) -> float:
    """Mean PSNR on Y of LR enlarged by imresize, over a set as benchmarks.py makes it."""
    results = []
    for path in sorted((folder / "HR").iterdir()):
        lr = cv2.imread(str(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"))
        sr = imresize(lr, scale)
        hr = cv2.imread(str(path))[: sr.shape[0], : sr.shape[1]]
        results.append(calculate_psnr(sr, hr, crop_border=scale, test_y_channel=True))
    return float(np.mean(results))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--src", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    sets = find_benchmark_sets(arguments.src, list(PUBLISHED))
    right = True
    for scale in (2, 3, 4):
        images, values, differing = differing_values(sets["Set5"], scale)
        print(f"Set5 x{scale}: {images} images, {values} values, {differing} differ")
        right &= differing == 0
    with tempfile.TemporaryDirectory() as out:
        for name, source in sets.items():
            report = prepare_set(name, source, Path(out) / name, workers=1)
            print(report)
            for scale, published in zip((2, 3, 4), PUBLISHED[name], strict=True):
                psnr = bicubic_psnr(Path(out) / name, scale)
                print(f"{name} x{scale}: bicubic {psnr:.3f} dB, published {published:.2f}")
                right &= abs(psnr - published) <= 0.01
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
