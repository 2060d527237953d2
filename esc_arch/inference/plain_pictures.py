"""Reading and writing the plainest pictures by Pillow, where libvips is missing; and BMP."""

import functools
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from esc_arch.errors import UserError, printable
from esc_arch.inference.bmp_files import beyond_palette, plain_mode, read_bmp
from esc_arch.inference.metadata import Metadata
from esc_arch.inference.picture_files import Picture, Source, source_in_memory
from esc_arch.inference.png_chunks import COLOUR_CHUNKS, ChunkWriter, read_chunks
from esc_arch.inference.vips_errors import damaged


def open_plain(path: Path, kind: str, page: int | None = None) -> Source:
    """As `picture_files.open_picture`, of 8-bit PNG, JPEG, WebP and BMP only.

    Raises:
        UserError: One line; another kind says that libvips is what reads it.
    """
    from PIL import Image, ImageOps

    shown = printable(path)
    if kind == "bmp":
        if page not in (None, 1):
            raise UserError(f"{shown}: --page {page}: it has 1")
        return source_in_memory(Picture(*read_bmp(path, path.read_bytes())), path)
    _tell_once()
    if kind == "tiff" or page not in (None, 1):
        raise UserError(f"{shown}: needs libvips, which is not installed; {_INSTALL}")
    chunks = {}
    if kind == "png":
        with open(path, "rb") as file:
            chunks = read_chunks(file)
    if chunks.get(b"IHDR", b"")[8:9] == b"\x10":
        raise UserError(f"{shown}: 16 bits a value need libvips; {_INSTALL}")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=[kind.upper()]) as image:
            warnings.simplefilter("ignore")
            if image.mode == "P" and image.getextrema()[1] >= (
                named := len(image.getpalette()) // 3
            ):
                raise UserError(beyond_palette(path, named))
            profile, exif = image.info.get("icc_profile"), image.info.get("exif")
            mode = plain_mode(image)
            pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:
        most = 2e-6 * Image.MAX_IMAGE_PIXELS
        raise UserError(f"{shown}: has more than {most:.0f} megapixels; save it as PNG") from None
    except Exception as error:
        # Pillow raises a different class for each kind of damage in each format.
        raise damaged(path, error) from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    colours = {name: chunks[name] for name in COLOUR_CHUNKS if name in chunks}
    metadata = Metadata(profile, colours, exif).of(pixels.shape[2])
    return source_in_memory(Picture(pixels, metadata), path)


def encode_plain(picture: Picture, kind: str, quality: int | None) -> bytes:
    """The file of a picture of 8 bits.

    Raises:
        UserError: It has 16 bits, or the format is TIFF.
    """
    from PIL import Image

    if picture.pixels.dtype != np.uint8 or kind == "tiff":
        raise UserError(f"16 bits a value and TIFF need libvips; {_INSTALL}")
    pixels = picture.pixels[:, :, 0] if picture.pixels.shape[2] == 1 else picture.pixels
    of_jpeg = quality or 95
    options: dict[str, Any] = {
        "png": {},
        "jpeg": {"quality": of_jpeg, "subsampling": 0 if of_jpeg >= 90 else 2},
        "webp": {"lossless": True} if quality in (None, 100) else {"quality": quality},
    }[kind]
    buffer = io.BytesIO()
    writer = ChunkWriter(buffer, picture.metadata.colour_chunks, ()) if kind == "png" else buffer
    encoded = io.BytesIO()
    options["icc_profile"] = picture.metadata.icc_profile
    Image.fromarray(pixels).save(encoded, kind.upper(), **options)
    writer.write(encoded.getvalue())
    return buffer.getvalue()


_INSTALL = "install it with: pip install 'pyvips[binary]'"


@functools.cache
def _tell_once() -> None:
    only = "libvips is not installed, so only PNG, JPEG, WebP and BMP of 8 bits are read"
    print(f"basicsr: {only}; {_INSTALL}", file=sys.stderr)
