"""Real-ESRGAN's training data from folders of images, without a list of them."""

import os
from pathlib import Path
from typing import Any

from basicsr.data.realesrgan_dataset import RealESRGANDataset as ListedRealESRGANDataset

from esc_arch.errors import UserError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def images_below(root: str) -> list[str]:
    """Paths of all images below a folder, at any depth, sorted."""
    return sorted(str(path) for path in Path(root).rglob("*") if path.suffix.lower() in SUFFIXES)


class RealESRGANDataset(ListedRealESRGANDataset):
    """BasicSR's data set of this name; `meta_info` may be absent with the disk backend.

    Then every image below `dataroot_gt` is used, at any depth, sorted by its path.

    Args:
        opt: Options of the data set, BasicSR's.

    Raises:
        UserError: There are no images.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        root, listed = str(opt["dataroot_gt"]), opt.get("meta_info") is not None
        if listed or opt["io_backend"]["type"] != "disk":
            super().__init__(opt)
            return
        super().__init__({**opt, "meta_info": os.devnull})
        self.opt = opt
        self.paths = images_below(root)
        if not self.paths:
            raise UserError(f"dataroot_gt {root}: no images in it, at any depth")
