"""What libvips does not tell or read of TIFF: what its pages are, and planes in tiles."""

from pathlib import Path
from typing import Any

import numpy as np

from esc_arch.errors import UserError, printable

_ASSOCIATED_ALPHA = 1
_SEPARATE = 2
# Photometric interpretation of L*a*b* -> what a* and b* of 0 are stored as.
_LAB_ZERO = {8: 0, 9: 128}
_FIELDS = ("icc-profile-data", "exif-data", "xmp-data", "orientation", "n-pages")


def full_pages(path: Path, pages: int) -> list[int]:
    """Those pages of a TIFF that are no smaller versions (thumbnails) and no masks of others.

    Args:
        path: The file.
        pages: How many it has.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            found = [n for n, page in enumerate(file.pages) if not page.subfiletype & 0b101]
    except Exception:  # It raises many classes; without knowing more, every page counts.
        return list(range(pages))
    return found or [0]


def lab_of_8_bits(vips: Any, path: Path, page: int) -> Any | None:
    """A picture in CIE L*a*b* of 8 bits, which libvips takes for RGB or a packing of its own.

    Args:
        vips: The library.
        path: The file.
        page: From 0.

    Returns:
        The image; None if the file is none of these, or cannot be read.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            found = file.pages[page]
            kind, pages = found.photometric, len(file.pages)
            if kind not in _LAB_ZERO or found.dtype != np.uint8 or found.samplesperpixel != 3:
                return None
            planes = found.asarray()
            orientation = found.tags.valueof("Orientation", 1)
            if found.planarconfig == _SEPARATE:
                planes = np.moveaxis(planes, 0, 2)
    except Exception:  # It raises many classes; libvips then tells what is wrong.
        return None
    lab = planes.astype(np.float32)
    # Of CIELAB the last two are signed, of ICCLAB they begin at -128.
    zero = _LAB_ZERO[kind]
    lab[:, :, 1:] = (
        planes[:, :, 1:].astype(np.int16) - zero if zero else planes[:, :, 1:].view("i1")
    )
    lab[:, :, 0] *= 100 / 255
    height, width, _ = lab.shape
    image = vips.Image.new_from_memory(lab.tobytes(), width, height, 3, "float")
    image = image.copy(interpretation="lab")
    told = {"orientation": orientation, "n-pages": pages, "bits-per-sample": 8}
    for name, value in told.items():
        image.set_type(vips.GValue.gint_type, name, int(value))
    return image


def with_planes_in_tiles(vips: Any, path: Path, image: Any, page: int) -> Any:
    """The image itself, or where libvips cannot read its separate planes, the same in memory.

    Args:
        vips: The library.
        path: The file.
        image: As libvips opened it.
        page: From 0.

    Raises:
        UserError: The tiles are compressed in a way that tifffile cannot undo by itself.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            found = file.pages[page]
            # Of grey with alpha in strips libvips takes the planes for something else.
            read_here = found.planarconfig == _SEPARATE and (found.is_tiled or image.bands == 2)
    except Exception:  # It raises many classes; libvips then tells what is wrong.
        return image
    if not read_here:
        return image
    try:
        with tifffile.TiffFile(path) as file:
            found = file.pages[page]
            planes = found.asarray()
            extra = tuple(int(value) for value in found.extrasamples)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{printable(path)}: damaged, or separate planes that cannot be read: "
            f"{printable(reason)}"
        ) from None
    pixels = np.moveaxis(planes, 0, 2).astype(planes.dtype.newbyteorder("="))
    height, width, channels = pixels.shape
    result = vips.Image.new_from_memory(pixels.tobytes(), width, height, channels, image.format)
    result = result.copy(interpretation=image.interpretation, xres=image.xres, yres=image.yres)
    if extra[:1] == (_ASSOCIATED_ALPHA,) and image.format in ("uchar", "ushort"):
        result = result.unpremultiply(max_alpha=np.iinfo(pixels.dtype).max).rint()
        result = result.cast(image.format)
        result = result.copy(interpretation=image.interpretation)
    result = result.copy()
    for name in _FIELDS:
        if image.get_typeof(name):
            result.set_type(image.get_typeof(name), name, image.get(name))
    return result
