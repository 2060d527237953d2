"""PSNR of the rows that have weights."""

from pathlib import Path

import cv2
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils import img2tensor, tensor2img

from esc_arch.errors import UserError
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.study.bench.networks import DTYPES, Spec, make_super_resolver, weights_of


def psnr(spec: Spec, scale: int, device: str, dataset: Path) -> float | None:
    """Mean PSNR over a benchmark set, as published: on Y, `scale` pixels of border cropped.

    Args:
        spec: The row; its images are computed in the row's dtype and backend.
        scale: Scale.
        device: Where to compute.
        dataset: Folder with `HR/*.png` and `LR_bicubic/X{scale}/{name}x{scale}.png`.

    Returns:
        dB; None if the row has no weights or the folder is not there.

    Raises:
        UserError: An LR image is missing or is not the HR image's size over the scale.
    """
    hr_paths = sorted((dataset / "HR").glob("*.png"))
    if weights_of(spec)[0] is None or not hr_paths:
        return None
    values = []
    super_resolver = None
    for hr_path in hr_paths:
        lr_path = dataset / "LR_bicubic" / f"X{scale}" / f"{hr_path.stem}x{scale}.png"
        hr, lr = cv2.imread(str(hr_path)), cv2.imread(str(lr_path))
        if hr is None or lr is None:
            raise UserError(f"--dataset {dataset}: {lr_path} is missing or no image")
        height, width = lr.shape[:2]
        if hr.shape[0] // scale != height or hr.shape[1] // scale != width:
            raise UserError(f"--dataset {dataset}: {lr_path} is not {hr_path.name} over {scale}")
        x = img2tensor(lr / 255.0, bgr2rgb=True, float32=True).unsqueeze(0)
        x = x.to(device, DTYPES[spec.dtype])
        if super_resolver is None:
            super_resolver, _ = make_super_resolver(spec, scale, device, x)
        # Evaluation pads the whole image, which the pooling in ConvAttn then sees.
        window_size = getattr(super_resolver.network, "window_size", 1)
        with torch.no_grad():
            sr = super_resolver(pad_to_multiple(x, window_size))
        sr = tensor2img(sr[..., : height * scale, : width * scale].float())
        hr = hr[: height * scale, : width * scale]
        values.append(calculate_psnr(sr, hr, crop_border=scale, test_y_channel=True))
    return round(sum(values) / len(values), 3)
