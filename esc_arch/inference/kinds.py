"""What `Upscaler.upscale` takes: tensors, arrays, Pillow images and paths."""

import operator
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from esc_arch.errors import UserError, printable
from esc_arch.inference.bmp_files import plain_mode
from esc_arch.inference.picture_files import Picture

if TYPE_CHECKING:
    import PIL.Image

    from esc_arch.inference.upscaler import Upscaler, Watch


def upscale_tensor(
    upscaler: "Upscaler", image: torch.Tensor, watch: "Watch" = iter
) -> torch.Tensor:
    """Upscale (C, H, W) or (B, C, H, W); see `Upscaler.upscale`."""
    if image.layout != torch.strided or image.is_meta:
        raise UserError("a tensor that is sparse or on meta; one that holds all values is needed")
    # What has no such values, `upscale_tensor` refuses itself.
    if image.is_floating_point() and image.element_size() > 1 and image.numel():
        low, high = (value.item() for value in image.aminmax())
        _check_range(f"a tensor of {image.dtype}", low, high)
    return upscaler.upscale_tensor(image, watch)


def upscale_array(upscaler: "Upscaler", image: np.ndarray, watch: "Watch" = iter) -> np.ndarray:
    """Upscale (H, W), (H, W, C) or (B, H, W, C); see `Upscaler.upscale`."""
    image = np.asarray(image)  # A matrix, say, keeps two dimensions whatever is done to it.
    if image.ndim not in (2, 3, 4):
        raise UserError(f"an array of shape {image.shape}; (H, W), (H, W, C) or (B, H, W, C)")
    if image.size == 0:
        raise UserError(f"an array of shape {image.shape} has no pixels")
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if channels > 4:
        raise UserError(
            f"an array of shape {image.shape} has {channels} channels; 1 to 4 are "
            "taken, in the last dimension: (H, W, C)"
        )
    kind = image.dtype
    # Of the other byte order, or of more bits than torch has.
    usual = np.dtype(np.float64) if kind == np.longdouble else kind.newbyteorder("=")
    if usual != kind and kind.kind in "uf":
        return upscale_array(upscaler, image.astype(usual), watch).astype(kind)
    if image.ndim == 4:
        return np.stack([upscale_array(upscaler, one, watch) for one in image])
    if image.ndim == 2:
        return upscale_array(upscaler, image[:, :, None], watch)[:, :, 0]
    if image.dtype in (np.uint8, np.uint16):
        return upscaler.upscale_picture(Picture(image), watch).pixels
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"an array of {image.dtype}; uint8, uint16 or floats in [0, 1]")
    if channels in (2, 4):
        raise UserError(f"an array of {image.dtype} with alpha; uint8 or uint16 may have alpha")
    _check_range(f"an array of {image.dtype}", image.min(), image.max())
    lq = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return upscaler.upscale_tensor(lq, watch).numpy().transpose(1, 2, 0)


def pixels(name: str, value: object) -> int | None:
    """The number of pixels that an option has, if it is given.

    Raises:
        UserError: It is none.
    """
    return None if value is None else whole_number(name, value, "a number of pixels, 0 or more")


def whole_number(name: str, value: object, wanted: str) -> int:
    """The number that an option has, also where it is NumPy's.

    Raises:
        UserError: It is none, or negative; the message says what is wanted.
    """
    try:
        if not isinstance(value, (bool, np.bool_)) and (number := operator.index(value)) >= 0:
            return number
    except TypeError:
        pass
    raise UserError(f"{name} is {value!r}; it must be {wanted}")


def _check_range(what: str, low: float, high: float) -> None:
    # Written so that values which are no number are refused, too.
    if not (low >= 0 and high <= 1):
        raise UserError(f"{what} from {low:g} to {high:g}; floats must lie between 0 and 1")


def upscale_pillow(
    upscaler: "Upscaler", image: "PIL.Image.Image", watch: "Watch" = iter
) -> "PIL.Image.Image":
    """Upscale a Pillow image; palettes become RGB, one bit becomes grey."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise UserError(
            f"{type(image).__name__}; an array, a tensor, a Pillow image or a path is needed"
        )
    if image.mode == "I;16":
        return Image.fromarray(upscale_array(upscaler, np.asarray(image), watch))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise UserError(f"a Pillow image of mode {image.mode}; 8 or 16 bits a value are needed")
    pixels = np.asarray(image.convert(plain_mode(image)))
    result = Image.fromarray(upscale_array(upscaler, pixels, watch))
    # The profile of other colours says nothing of RGB.
    kept = ("dpi", "exif") if image.mode in ("CMYK", "LAB") else ("dpi", "exif", "icc_profile")
    result.info |= {key: image.info[key] for key in kept if key in image.info}
    return result


def upscale_path(
    upscaler: "Upscaler",
    path: str | os.PathLike,
    watch: "Watch" = iter,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> str | Path:
    """Upscale a file into another; see `Upscaler.upscale`."""
    from esc_arch.inference.encoding import SUFFIXES, Encoding
    from esc_arch.inference.work import Job, Settings, run_job

    if output is not None and not isinstance(output, (str, os.PathLike)):
        raise UserError(f"output is {output!r}; a path is needed")
    source = Path(os.fsdecode(path))
    if not os.fspath(path):
        raise UserError("the path is empty; that of a picture is needed")
    beside = source.parent / f"{source.stem}_x{upscaler.scale}.png"
    target = beside if output is None else Path(output)
    formats = [kind for kind, ends in SUFFIXES.items() if target.suffix.lower() in ends]
    if not formats:
        known = ", ".join(suffix for ends in SUFFIXES.values() for suffix in ends)
        raise UserError(f"output {printable(target)}: must end in one of {known}")
    if os.path.exists(target) and not overwrite:
        raise UserError(f"{printable(target)}: exists; overwrite=True replaces it")
    run_job(Job(source, target), upscaler, Settings(Encoding(formats[0])), watch)
    return str(target) if isinstance(path, str) else target
