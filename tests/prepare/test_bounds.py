"""Pictures that would keep a decoder busy for minutes are refused at once; usual ones never are."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.inference.picture_files import read_picture
from esc_arch.plugin.data.exact_order import _may_not_end
from esc_arch.plugin.preflight.pictures import Pictures
from esc_arch.prepare.bounds import MOST_SCANS, file_fault
from esc_arch.prepare.images import read_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
GREY = Image.new("L", (48, 64), 128)


def encoded(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_scans(count: int) -> bytes:
    """A JPEG whose last scan stands there again and again."""
    content = encoded("JPEG", GREY, progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", content)]
    last = content[starts[-1] : -2]
    return content[:-2] + last * (count - len(starts)) + b"\xff\xd9"


def text_of_gigabytes() -> bytes:
    return encoded("PNG")[:33] + struct.pack(">I4s", 2**31 - 1, b"tEXt")


HOLES = {
    "a whole JPEG": (encoded("JPEG"), "more than a picture of 48 x 64 pixels"),
    "half a JPEG": (encoded("JPEG")[:900], "more than a picture of 48 x 64 pixels"),
    "a JPEG's first bytes": (encoded("JPEG")[:20], "more than a picture of its kind"),
    "a BMP": (encoded("BMP"), "more than a picture of 48 x 64 pixels"),
    "a WebP": (encoded("WEBP"), "more than a picture of its kind"),
    "a PNG's text": (text_of_gigabytes(), "its parts 'tEXt' have more bytes"),
}


def holes(path: Path, content: bytes, size: int = 1 << 33) -> Path:
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(size)  # It takes no room on the disk.
    return path


@pytest.mark.parametrize("what", HOLES)
def test_holes_of_gigabytes_are_told_in_one_line(what: str, tmp_path: Path):
    content, told = HOLES[what]
    path = holes(tmp_path / "photo.jpg", content)
    with pytest.raises(UserError, match=f"photo.jpg: .*{told}") as raised:
        read_picture(path)
    assert str(raised.value).isprintable()
    assert told in _may_not_end(str(path))
    assert Pictures(str(tmp_path), ["photo.jpg"]).header("photo.jpg") is None


@pytest.mark.parametrize("what", ["a whole JPEG", "a JPEG's first bytes", "a BMP"])
def test_preparation_tells_of_smaller_holes_too(what: str, tmp_path: Path):
    content, told = HOLES[what]
    with pytest.raises(UserError, match=told):
        read_image(holes(tmp_path / "photo.jpg", content, 1 << 27))


def test_a_jpeg_of_thousands_of_scans_is_told_in_one_line(tmp_path: Path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(with_scans(3000))
    for read in (read_picture, read_image):
        with pytest.raises(UserError, match=f"photo.jpg: has more than {MOST_SCANS} scans; save"):
            read(path)
    assert Pictures(str(tmp_path), ["photo.jpg"]).header("photo.jpg") is None
    path.write_bytes(with_scans(MOST_SCANS))
    assert read_image(path)[0].shape == (64, 48, 3)


def animation() -> bytes:
    return encoded("PNG", save_all=True, append_images=[NOISE.transpose(1)])


def png_with(name: bytes, length: int) -> bytes:
    body = bytes(length)
    chunk = struct.pack(">I", length) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return encoded("PNG")[:33] + chunk + encoded("PNG")[33:]


@pytest.mark.parametrize(
    "content",
    [
        encoded("JPEG", quality=100, subsampling=0),
        encoded("JPEG", progressive=True, quality=100),
        encoded("JPEG", GREY),
        encoded("JPEG", exif=b"Exif\0\0" + bytes(60000)),
        encoded("JPEG") + bytes(20 << 20),
        encoded("JPEG", progressive=True) + bytes(20 << 20),
        encoded("PNG"),
        encoded("PNG") + bytes(100 << 20),
        png_with(b"iTXt", 20 << 20),
        animation(),
        encoded("WEBP", lossless=True),
        encoded("BMP"),
        encoded("TIFF"),
    ],
    ids="best progressive grey exif film film-after-scans png tail text apng webp bmp tiff".split(),
)
def test_usual_files_are_not_refused(content: bytes, tmp_path: Path):
    assert file_fault(io.BytesIO(content)) is None
    (tmp_path / "photo").write_bytes(content)
    assert read_picture(tmp_path / "photo").pixels.shape[:2] == (64, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_whatever_a_file_is_cut_to_it_is_looked_at_and_left_at_its_start(kind: str):
    content = encoded(kind, progressive=True) if kind == "JPEG" else encoded(kind)
    for length in range(0, len(content), 7):
        file = io.BytesIO(content[:length])
        assert file_fault(file) is None and file.tell() == 0
