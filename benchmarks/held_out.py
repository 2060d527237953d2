"""PSNR of weights on photographs that are in neither the training nor the test sets.

    python benchmarks/held_out.py [FILE ...]

prints the mean over four photographs of scikit-image, in dB on Y, of each file of weights of any
scale; without one, of the weights that ship. LR images are MATLAB's bicubic, a border of as many
pixels as the scale is left out.
"""

import argparse
from pathlib import Path

import numpy as np

import esc_arch
from esc_arch.prepare.demo_data import photograph
from esc_arch.prepare.imresize import imresize
from esc_arch.zoo.catalogue import SHIPPED_FOLDER

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.metrics import calculate_psnr

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def psnr_of(upscaler: "esc_arch.Upscaler", name: str) -> float:
    """PSNR in dB on Y of a photograph made smaller and upscaled again."""
    scale = upscaler.scale
    hr = photograph(name)
    height, width = (side - side % scale for side in hr.shape[:2])
    hr = hr[:height, :width]
    # OpenCV's BGR here, RGB there.
    sr = upscaler.upscale(imresize(hr, 1 / scale)[..., ::-1])[..., ::-1]
    return calculate_psnr(sr, hr, crop_border=scale, test_y_channel=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="weights")
    files = parser.parse_args().files or sorted(SHIPPED_FOLDER.glob("*.safetensors"))
    print(f"| weights | mean | {' | '.join(PHOTOGRAPHS)} |")
    print(f"|---|{'---:|' * (len(PHOTOGRAPHS) + 1)}")
    for path in files:
        upscaler = esc_arch.load(path)
        found = [psnr_of(upscaler, name) for name in PHOTOGRAPHS]
        cells = " | ".join(f"{psnr:.3f}" for psnr in (np.mean(found), *found))
        print(f"| {path.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
