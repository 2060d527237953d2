"""The photographs of the second part of ESC_light_x2_BSD's training, from those of the first.

BSDS400's are JPEG files: made smaller, they have less of its noise and more detail a pixel. T91's
are few and come four times. From the root of a clone, with both folders in raw/:

    python recipes/rescale_photographs.py
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from esc_arch.prepare.imresize import imresize

FACTORS = (0.85, 0.7, 0.6, 0.5)
# In HR pixels: sub-images must hold patches of 128, and sides are cut to multiples of 12.
SHORTEST_SIDE = 132
COPIES = "abcd"


def main() -> None:
    """Write BSDS400_smaller and T91_four_times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "folder with BSDS400 and T91, for the two new ones too (default: %(default)s)"
    parser.add_argument("--raw", type=Path, default=Path("raw"), metavar="DIR", help=text)
    raw = parser.parse_args().raw
    smaller, copies = raw / "BSDS400_smaller", raw / "T91_four_times"
    for folder in (smaller, copies):
        folder.mkdir(exist_ok=True)
    for path in sorted((raw / "BSDS400").iterdir()):
        pixels = np.array(Image.open(path).convert("RGB"))
        for factor in FACTORS:
            name = f"{path.stem}_{round(100 * factor)}.png"
            Image.fromarray(imresize(pixels, factor)).save(smaller / name)
    for path in sorted((raw / "T91").iterdir()):
        image = Image.open(path).convert("RGB")
        if min(image.size) >= SHORTEST_SIDE:
            for copy in COPIES:
                image.save(copies / f"{path.stem}_{copy}.png")


if __name__ == "__main__":
    main()
