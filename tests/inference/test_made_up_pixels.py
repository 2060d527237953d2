"""Files whose readers make pixels up, or drop or turn some, without a word."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.inference.encoding import encode
from esc_arch.inference.picture_files import open_picture, read_picture
from esc_arch.inference.png_chunks import SIGNATURE, chunk

WIDTH, HEIGHT = 35, 21
DOWN, ACROSS = np.mgrid[0:HEIGHT, 0:WIDTH]
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
RGB = np.stack([40 + 4 * ACROSS, 50 + 7 * DOWN, 60 + ACROSS + DOWN], 2).astype(np.uint8)


def refused(path: Path, told: str) -> None:
    """Both ways to read it tell the same."""
    source = open_picture
    for read in (lambda: source(path).read(), lambda: source(path).open_rows()(5)):
        with pytest.raises(UserError, match=f"{path.name}: {told}"):
            read()


def packed(values: np.ndarray, depth: int) -> bytes:
    """Rows of PNG, each with its filter, none."""
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    return b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)


def png(values: np.ndarray, depth: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = packed(values.reshape(height, -1), depth)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_with_colours_beyond_its_palette_is_no_black_one(depth, transparent, tmp_path):
    path, named = tmp_path / "a.png", 2**depth - 1
    chunks = [(b"PLTE", COLOURS[:named].tobytes())] + [(b"tRNS", b"\x80")] * transparent
    values = (ACROSS + 3 * DOWN) % named
    path.write_bytes(png(values, depth, 3, *chunks))
    assert np.array_equal(read_picture(path).pixels[..., :3], COLOURS[values])
    values[-1, -1] = named
    path.write_bytes(png(values, depth, 3, *chunks))
    refused(path, f"damaged: it has pixels of colours beyond the {named} of its palette")


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).resize((200, 160)).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def test_jpeg_of_which_pixels_are_missing_is_no_grey_one(tmp_path):
    path, content = tmp_path / "a.jpg", jpeg()
    path.write_bytes(content[: len(content) * 2 // 3] + b"\xff\xd9")
    refused(path, "damaged, or not a picture: .*premature end")
    # Of several warnings only the first is told: of strays, of an unknown transform of colours.
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\5"
    for odd in (content[:20] + bytes(3) + content[20:], content[:2] + adobe + content[20:]):
        path.write_bytes(odd)
        assert read_picture(path).pixels.shape == (160, 200, 3)
        path.write_bytes(odd[: len(odd) * 2 // 3] + b"\xff\xd9")
        refused(path, "damaged, or not a picture: .*premature end")
    taller = bytearray(content)
    place = content.index(b"\xff\xc0") + 5
    taller[place : place + 2] = struct.pack(">H", 400)
    path.write_bytes(taller)
    refused(path, "damaged, or not a picture: .*premature end")


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_jpeg_of_which_a_part_between_restarts_is_missing_is_refused(part, tmp_path):
    path, content = tmp_path / "a.jpg", jpeg(restart_marker_rows=1)
    path.write_bytes(content)
    assert read_picture(path).pixels.shape == (160, 200, 3)
    place = int(len(content) * part)
    path.write_bytes(content[:place] + content[place + 200 :])
    refused(path, "damaged, or not a picture: ")


@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_that_are_too_many_cost_a_jpeg_nothing(progressive, tmp_path):
    path, content = tmp_path / "a.jpg", jpeg(progressive=progressive)
    path.write_bytes(content)
    expected = read_picture(path).pixels
    for more in (content + b"more", content[:20] + bytes(3) + content[20:]):
        path.write_bytes(more)
        assert np.array_equal(read_picture(path).pixels, expected)


TURNED = {2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1)}
TURNED |= {6: TURNED[5][:, ::-1], 7: TURNED[5][::-1, ::-1], 8: TURNED[5][::-1]}


@pytest.mark.parametrize("orientation", [0, *range(1, 10), 300])
@pytest.mark.parametrize("behind", [False, True])
def test_png_is_upright_wherever_its_exif_stands(behind, orientation, tmp_path):
    path = tmp_path / "a.png"
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1" + tag + bytes(4))
    plain = png(RGB, 8, 2)
    place = len(plain) - 12 if behind else 33
    path.write_bytes(plain[:place] + exif + plain[place:])
    pixels = read_picture(path).pixels
    assert np.array_equal(pixels, TURNED.get(orientation, RGB))
    # What is written must not be turned again.
    (tmp_path / "b.png").write_bytes(encode(read_picture(path)))
    assert np.array_equal(read_picture(tmp_path / "b.png").pixels, pixels)


def test_a_resolution_beyond_all_measure_is_silent(tmp_path, capfd):
    path = tmp_path / "a.png"
    path.write_bytes(png(RGB, 8, 2, (b"pHYs", b"\xff" * 8 + b"\1")))
    (tmp_path / "b.png").write_bytes(encode(read_picture(path)))
    assert np.array_equal(read_picture(tmp_path / "b.png").pixels, RGB)
    assert capfd.readouterr() == ("", "")
