"""What the header of a picture tells of it as OpenCV, and so BasicSR, reads it."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import IO, NamedTuple

# Pictures by content: nothing that would start another program, as EPS does.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
_ORIENTATION = 0x0112
_TIFF_SIDES = 0x0100, 0x0101
UPRIGHT = 1


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Within, Pillow tells nothing of damaged metadata, which never decides, nor of large sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Header(NamedTuple):
    """Size of a picture once it stands upright, and its EXIF orientation.

    Attributes:
        height: Of the picture as it is read.
        width: The same.
        turn: Orientation, 1 (upright) to 8; OpenCV turns a picture as it says.
    """

    height: int
    width: int
    turn: int = UPRIGHT


def read_header(source: str | os.PathLike | IO[bytes]) -> Header | None:
    """Read the header of a picture; None where Pillow knows no such picture."""
    from PIL import Image

    try:
        with no_warnings(), Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if image.format == "TIFF":
                tags = image.tag_v2
                # Pillow may have turned the sides already.
                width, height = (tags[side] for side in _TIFF_SIDES)
            else:
                # `getexif` would decode the whole of a PNG, and go by XMP, as OpenCV does not.
                tags = Image.Exif()
                tags.load(image.info.get("exif") or b"")
            turn = tags.get(_ORIENTATION, UPRIGHT)
            turn = turn if turn in range(1, 9) else UPRIGHT
    except Exception:
        # Pillow raises a different class for each kind of damage in each format.
        return None
    return Header(width, height, turn) if turn > 4 else Header(height, width, turn)
