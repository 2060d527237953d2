"""Reading, checking, encoding and writing the image files of a data set."""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from esc_arch.errors import UserError
from esc_arch.prepare.bounds import file_fault
from esc_arch.prepare.headers import UPRIGHT, no_warnings, read_header

IMAGE_SUFFIXES = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})
# No others are tried, whatever a file holds: Pillow starts Ghostscript for EPS.
FORMATS = ("PNG", "BMP", "JPEG", "TIFF", "WEBP")
# BasicSR's own level: higher ones save a few per cent of disk at several times the time.
PNG_LEVEL = 1
# Pillow refuses more than 179 megapixels anyway; a file with holes may claim terabytes.
LARGEST_FILE = 1 << 30


def list_images(folder: Path, option: str, recursive: bool = False) -> list[Path]:
    """The image files of a folder, by name.

    Args:
        folder: The folder to look in.
        option: What the user calls the folder, for messages (such as `--hr`).
        recursive: Look in the folders below, too.

    Raises:
        UserError: The folder is missing, unreadable or without images.
    """
    files = find_images(folder, option, recursive)
    if not files:
        raise UserError(f"{option} {folder}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def find_images(folder: Path, option: str, recursive: bool = False) -> list[Path]:
    """As `list_images`, but there need not be any.

    Raises:
        UserError: The folder, or one below it, is missing or unreadable.
    """
    try:
        found = _walk(folder) if recursive else folder.iterdir()
        files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{option} {where}: {error.strerror}; a folder is needed") from None
    # Files such as ._0001.png are what macOS leaves in archives, not images.
    files = [path for path in files if not path.name.startswith(".")]
    return sorted(files, key=lambda path: path.name)


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        # Neither `rglob` nor `walk` says a word of folders that it cannot read.
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def read_image(path: Path) -> tuple[np.ndarray, bool]:
    """Read an 8 bit image and make sure that it is whole.

    OpenCV decodes it, as in BasicSR, but OpenCV fills what is missing of a truncated file with
    grey; so Pillow checks it first.

    Args:
        path: The file.

    Returns:
        The image as (H, W, 3) uint8 in BGR, and whether it was grey and had to be converted.
        A fourth channel (alpha) is dropped. It stands upright, as BasicSR and every viewer turn it
        by its EXIF orientation.

    Raises:
        UserError: The file cannot be read, is no image, is damaged, or is not 8 bit.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if (fault := file_fault(io.BytesIO(content))) is not None:
        raise UserError(f"{path}: {fault}")
    try:
        with no_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.format == "PNG":
                picture.verify()
            else:
                picture.load()
    except Exception as error:
        # Pillow raises a different class for each kind of damage in each format.
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path}: {reason}; a whole image file is needed") from None
    header = read_header(io.BytesIO(content))
    # "Unchanged" is not turned either.
    turned = header is not None and header.turn != UPRIGHT
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if turned else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise UserError(f"{path}: OpenCV cannot decode it; a whole image file is needed")
    if image.dtype != np.uint8:
        raise UserError(f"{path}: its values are {image.dtype}; 8 bit is needed")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), True
    return np.ascontiguousarray(image[:, :, :3]), False


def read_regular(path: Path) -> bytes:
    """Read a file, but neither a pipe nor a device, which need not end.

    Raises:
        OSError: It cannot be read.
        UserError: It is no regular file, or larger than any image of a data set.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is not a regular file; an image file is needed")
    if found.st_size > LARGEST_FILE:
        raise UserError(f"{path}: {found.st_size:,} bytes, more than an image of a data set has")
    return path.read_bytes()


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a (H, W, 3) uint8 BGR image."""
    done, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return content.tobytes()


def png_shape(content: bytes) -> tuple[int, int, int]:
    """Height, width and channels of a PNG file, from its first 26 bytes.

    Raises:
        ValueError: These are not the first bytes of a PNG file.
    """
    header = bytes(content[:26])
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR" or len(header) < 26:
        raise ValueError("not a PNG file")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    return height, width, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[header[25]]
