"""Demo data from the photographs that the scikit-image package carries with it."""

from pathlib import Path

import cv2
import numpy as np

from esc_arch.errors import UserError
from esc_arch.prepare.benchmark_sets import prepare_set
from esc_arch.prepare.images import encode_png
from esc_arch.prepare.subimages import Cutting, find_sources, pack_sub_images
from esc_arch.whole_files import write_atomically

TRAINING_PHOTOGRAPHS = (
    "astronaut",
    "stereo_motorcycle",
    "rocket",
    "immunohistochemistry",
    "camera",
    "brick",
    "coins",
    "grass",
    "gravel",
)
VALIDATION_PHOTOGRAPHS = ("chelsea", "coffee")
CUTTING = Cutting(crop_size=240, step=120)


def prepare_demo(out_dir: str | Path = "datasets/demo", workers: int = 1) -> None:
    """Make the data that options/train_ESC_demo_x2.yml trains and validates on.

    No network is needed. The layout is that of the real data sets:

    - `train_HR_sub.lmdb`, `train_LR_bicubic_X2_sub.lmdb`: sub-images to train on,
    - `val/HR`, `val/LR_bicubic/X2`: whole photographs to validate on,
    - `train_HR`: the photographs that the sub-images are cut from.

    What an earlier run has already made is kept.

    Args:
        out_dir: The folder to make.
        workers: Processes. Starting more takes longer than the work on so few images.

    Raises:
        UserError: The installed scikit-image has not got the photographs, or the folder cannot be
            written.
    """
    out = Path(out_dir)
    _write_photographs(TRAINING_PHOTOGRAPHS, out / "train_HR")
    _write_photographs(VALIDATION_PHOTOGRAPHS, out / "val" / "HR")
    pack_sub_images(
        find_sources([out / "train_HR"], "demo"),
        {1: out / "train_HR_sub.lmdb", 2: out / "train_LR_bicubic_X2_sub.lmdb"},
        CUTTING,
        workers,
    )
    prepare_set(
        "demo",
        out / "val",
        out / "val",
        scales=(2,),
        count=len(VALIDATION_PHOTOGRAPHS),
        workers=workers,
    )


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, the left one of a stereo pair, as (H, W, 3) uint8 in BGR.

    Raises:
        UserError: The installed scikit-image would have to download it.
    """
    from skimage import data

    try:
        image = getattr(data, name)()
    except Exception as error:
        # scikit-image raises what its downloader raises, which need not be installed either.
        import skimage

        raise UserError(
            f"scikit-image {skimage.__version__} does not carry its photograph {name} ({error}); "
            "install scikit-image 0.26"
        ) from None
    image = image[0] if isinstance(image, tuple) else image
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def _write_photographs(names: tuple[str, ...], folder: Path) -> None:
    for name in names:
        path = folder / f"{name}.png"
        content = encode_png(photograph(name))
        try:
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
