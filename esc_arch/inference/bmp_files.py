"""Reading BMP, which libvips does not, by Pillow; its header tells what Pillow would lose."""

import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esc_arch.errors import UserError, printable
from esc_arch.inference.metadata import Metadata

if TYPE_CHECKING:
    import PIL.Image

_CORE, _RLE_4, _MASKS, _ALPHA_MASKS = 12, 2, 3, 6
_EMBEDDED_PROFILE = b"DEBM"


def read_bmp(path: Path, content: bytes) -> tuple[np.ndarray, Metadata]:
    """Pixels (H, W, C) of 8 bits, and what goes along.

    Args:
        path: The file, for the error.
        content: All of it, with or without the 14 bytes in front of its header.

    Raises:
        UserError: One line; rare kinds are not read.
    """
    from PIL import Image

    shown = printable(path)
    named = content[:2] == b"BM"
    header = content[14 * named :].ljust(124, b"\0")
    fault = _fault(header)
    try:
        if fault is not None:
            raise UserError(f"{shown}: a BMP of a kind that is not read: {fault}; save it as PNG")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=["BMP" if named else "DIB"]) as image:
                if image.mode == "P" and image.getextrema()[1] >= (
                    colours := len(image.getpalette()) // 3
                ):
                    raise UserError(beyond_palette(path, colours))
                pixels = np.asarray(image.convert(plain_mode(image)))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:
        most = 2e-6 * Image.MAX_IMAGE_PIXELS
        raise UserError(f"{shown}: has more than {most:.0f} megapixels; save it as PNG") from None
    except Exception as error:
        # Pillow raises a different class for each kind of damage.
        if "Unsupported BMP" in str(error):
            kind = str(error).removeprefix("Unsupported BMP ")
            told = f"a BMP of a kind that is not read: {kind}; save it as PNG"
        else:
            told = f"damaged, or not a picture: {printable(error)}"
        raise UserError(f"{shown}: {told}") from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    profile = known = None
    if header[56:60] == _EMBEDDED_PROFILE:
        offset, length = struct.unpack_from("<II", header, 112)
        profile = content[14 * named + offset :][:length]
    across, down = struct.unpack_from("<ii", header, 24)
    if _CORE < header[0] and min(across, down) > 0:
        known = (across / 1000, down / 1000)
    return pixels, Metadata(profile, resolution=known).of(pixels.shape[2])


def beyond_palette(path: Path, named: int) -> str:
    """The line on a picture with other colours than those of its palette."""
    return f"{printable(path)}: damaged: it has pixels of colours beyond the {named} of its palette"


def plain_mode(image: "PIL.Image.Image") -> str:
    """Grey or RGB, with alpha where an image of Pillow has transparency."""
    grey = image.mode in ("1", "L", "LA", "La")
    return ("L" if grey else "RGB") + "A" * image.has_transparency_data


def _fault(header: bytes) -> str | None:
    """What Pillow would read as something else, if it is that."""
    size, bits, compression = struct.unpack_from("<I10xHI", header)
    if size == _CORE:
        return None
    if compression == _RLE_4:
        return "RLE4"
    if compression in (_MASKS, _ALPHA_MASKS):
        *colours, alpha = struct.unpack_from("<4I", header, 40)
        if bits == 16 and alpha and (size >= 56 or compression == _ALPHA_MASKS):
            return "16 bits a pixel with transparency"
        if not all(colours):
            return "masks of no colours"
    return None
