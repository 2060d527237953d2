"""Training on HR images alone: LR is made as an image is loaded."""

import random
from os import path as osp
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.data_util import paths_from_folder, paths_from_lmdb
from basicsr.data.transforms import augment, mod_crop
from basicsr.utils import FileClient, imfrombytes
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize

from esc_arch.errors import UserError


class DownsampleImageDataset(Dataset):
    """HR images, and LR made from them by antialiased bicubic interpolation on 8 bit.

    In training a random patch of HR is cut out and augmented first, and LR is made of the patch.
    Otherwise the image is cut at the bottom and right to a multiple of the scale.

    Args:
        opt: Options of the data set:
            dataroot_gt (str): Folder or LMDB of HR images.
            meta_info_file (str, optional): Text file whose lines start with the names of the
                images to use. Default: all images of the folder or LMDB.
            io_backend (dict): `type: lmdb` or `type: disk`, and further options of it.
            gt_size (int): Side of the HR patch in training, a multiple of the scale.
            use_hflip (bool): Flip at random in training.
            use_rot (bool): Rotate by quarter turns at random in training.
            mean, std (list, optional): Subtracted from and divided by, for each channel of LR and
                HR (RGB in [0, 1]).
            scale (int), phase (str): Added by BasicSR.

    Raises:
        UserError: `gt_size` does not fit the scale, or there are no images.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.scale: int = opt["scale"]
        self.is_train = opt["phase"] == "train"
        if self.is_train and (opt["gt_size"] < 1 or opt["gt_size"] % self.scale):
            raise UserError(
                f"gt_size {opt['gt_size']}: a positive multiple of scale {self.scale} is needed"
            )
        self.root = str(opt["dataroot_gt"])
        self.backend = dict(opt["io_backend"])
        self.is_lmdb = self.backend["type"] == "lmdb"
        if self.is_lmdb:
            self.backend.update(db_paths=[self.root], client_keys=["gt"])
        self.file_client: FileClient | None = None
        self.paths = self._paths()
        if not self.paths:
            raise UserError(f"dataroot_gt {self.root}: no images in it")

    def _paths(self) -> list[str]:
        listing = self.opt.get("meta_info_file")
        if listing is None:
            find = paths_from_lmdb if self.is_lmdb else paths_from_folder
            return sorted(find(self.root))
        try:
            with open(listing) as file:
                names = [line.split()[0] for line in file if line.strip()]
        except OSError as error:
            raise UserError(f"meta_info_file {listing}: {error.strerror}") from None
        if self.is_lmdb:
            return [osp.splitext(name)[0] for name in names]
        return [osp.join(self.root, name) for name in names]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair.

        Args:
            index: Number of the image.

        Returns:
            `lq` and `gt`, (3, H, W) float32 RGB tensors in [0, 1], and `lq_path` and `gt_path`,
            both the path or key of the HR image.
        """
        path = self.paths[index]
        gt = self._read(path)
        if self.is_train:
            gt = self._random_patch(gt, path)
            gt = augment(gt, self.opt["use_hflip"], self.opt["use_rot"])
        else:
            gt = mod_crop(gt, self.scale)
        rgb = cv2.cvtColor(gt, cv2.COLOR_BGR2RGB)
        gt = torch.from_numpy(rgb).permute(2, 0, 1).contiguous()
        size = [side // self.scale for side in gt.shape[1:]]
        lq = resize(gt, size, InterpolationMode.BICUBIC, antialias=True)
        return {
            "lq": self._normalize(lq.float() / 255),
            "gt": self._normalize(gt.float() / 255),
            "lq_path": path,
            "gt_path": path,
        }

    def _normalize(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = self.opt.get("mean"), self.opt.get("std")
        if mean is None and std is None:
            return image
        return normalize(image, mean or [0.0] * 3, std or [1.0] * 3)

    def _read(self, path: str) -> np.ndarray:
        # Opened in the loader's own process: an LMDB must not be carried across a fork.
        if self.file_client is None:
            backend = dict(self.backend)
            self.file_client = FileClient(backend.pop("type"), **backend)
        content = self.file_client.get(path, "gt")
        if content is None:
            raise UserError(f"dataroot_gt {self.root}: {path} is not in it")
        return imfrombytes(content)

    def _random_patch(self, image: np.ndarray, path: str) -> np.ndarray:
        side = self.opt["gt_size"]
        height, width = image.shape[:2]
        if min(height, width) < side:
            raise UserError(f"gt_size {side}: {path} has only {width}x{height} pixels; remove it")
        top = random.randint(0, height - side)
        left = random.randint(0, width - side)
        return image[top : top + side, left : left + side]
