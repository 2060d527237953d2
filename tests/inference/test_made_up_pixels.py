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


def bmp(bits: int, rows: list[bytes], compression: int = 0, extra: bytes = b"", used: int = 0):
    """A BMP of the rows from bottom to top, with bit masks or a palette behind its header."""
    masks = len(extra) if compression == 3 else 0
    body = b"".join(row + bytes(-len(row) % 4) for row in rows)
    sizes = (40 + masks, WIDTH, HEIGHT, 1, bits, compression, len(body), 0, 0, used, 0)
    start = 54 + len(extra)
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", *sizes) + extra + body


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


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_with_colours_beyond_its_palette_is_no_black_one(bits, tmp_path):
    path, values = tmp_path / "a.bmp", (ACROSS + 3 * DOWN) % 12
    palette = np.pad(COLOURS[:12, ::-1], [(0, 0), (0, 1)]).tobytes()
    for beyond in (False, True):
        values[0, 0] = 12 if beyond else 0
        stored = values if bits == 8 else np.pad(values, [(0, 0), (0, 1)])
        stored = stored if bits == 8 else stored[:, ::2] * 16 + stored[:, 1::2]
        rows = [row.astype(np.uint8).tobytes() for row in stored[::-1]]
        path.write_bytes(bmp(bits, rows, extra=palette, used=12))
        if not beyond:
            assert np.array_equal(read_picture(path).pixels, COLOURS[values])
    refused(path, "damaged: it has pixels of colours beyond the 12 of its palette")


def test_transparency_of_16_bit_bmp_is_not_lost_without_a_word(tmp_path):
    path, masks = tmp_path / "a.bmp", [0x7C00, 0x3E0, 0x1F]
    five = RGB.astype(np.uint16) >> 3
    values = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    rows = [row.tobytes() for row in values[::-1]]
    path.write_bytes(bmp(16, rows, 3, struct.pack("<4I", *masks, 0)))
    assert np.abs(read_picture(path).pixels.astype(int) - RGB).max() <= 8
    path.write_bytes(bmp(16, rows, 3, struct.pack("<4I", *masks, 0x8000)))
    refused(path, "16 bits a pixel with transparency; save it as PNG")


def test_bmp_of_an_odd_number_of_packed_pixels_is_not_read_as_another(tmp_path):
    path, values = tmp_path / "a.bmp", (ACROSS + DOWN) % 16
    rows = [bytes([0, WIDTH]) + packed(row[None], 4)[1:] + b"\0\0" for row in values[::-1]]
    palette = np.pad(COLOURS[:16, ::-1], [(0, 0), (0, 1)]).tobytes()
    path.write_bytes(bmp(4, [b"".join(rows) + b"\0\1"], 2, palette))
    refused(path, "compressed by RLE4; save it as PNG")


def test_bmp_of_too_many_pixels_is_told_so(tmp_path):
    path = tmp_path / "a.bmp"
    content = bytearray(bmp(24, []))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    path.write_bytes(content)
    refused(path, "has more than [0-9]+ megapixels; save it as PNG")


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).resize((200, 160)).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def test_jpeg_of_which_pixels_are_missing_is_no_grey_one(tmp_path):
    path, content = tmp_path / "a.jpg", jpeg()
    path.write_bytes(content[: len(content) * 2 // 3] + b"\xff\xd9")
    refused(path, "damaged, or not a picture: .*premature end")
    taller = bytearray(content)
    place = content.index(b"\xff\xc0") + 5
    taller[place : place + 2] = struct.pack(">H", 400)
    path.write_bytes(taller)
    refused(path, "damaged, or not a picture: .*premature end")


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
