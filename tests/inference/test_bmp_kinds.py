"""BMP of every header, depth, mask and run length: the array that it was made from, or one line."""

import struct
from pathlib import Path

import numpy as np
import pytest

from esc_arch.errors import UserError
from esc_arch.inference.picture_files import open_picture, read_picture

WIDTH, HEIGHT = 35, 21
DOWN, ACROSS = np.mgrid[0:HEIGHT, 0:WIDTH]
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
RGBA = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
CORE = 12
RLE_8, RLE_4, MASKS, RLE_24, ALPHA_MASKS = 1, 2, 3, 4, 6


def header(size: int, bits: int, compression: int = 0, used: int = 0, height: int = HEIGHT):
    if size == CORE:
        return struct.pack("<IHHHH", size, WIDTH, height, 1, bits)
    sizes = (size, WIDTH, height, 1, bits, compression, 0, 3000, 3000, used, 0)
    return struct.pack("<IiiHHIIiiII", *sizes).ljust(size, b"\0")[:size]


def bmp(head: bytes, body: bytes, behind: bytes = b"", gap: int = 0, start: int | None = None):
    """A file of a header, what stands behind it (masks, a palette) and rows from below."""
    start = 14 + len(head) + len(behind) + gap if start is None else start
    return struct.pack("<2sIHHI", b"BM", 0, 0, 0, start) + head + behind + bytes(gap) + body


def palette(count: int, size: int = 40) -> bytes:
    filler = bytes(size != CORE)
    return b"".join(bytes(colour[::-1]) + filler for colour in COLOURS[:count])


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of numbers of few bits, or of bytes, each filled up to four bytes."""
    if bits <= 8:
        digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        values = np.packbits(digits.reshape(len(values), -1), axis=1)
    rows = (np.ascontiguousarray(row).tobytes() for row in values)
    return b"".join(row + bytes(-len(row) % 4) for row in rows)


def check(path: Path, content: bytes, expected: np.ndarray) -> None:
    path.write_bytes(content)
    pixels = read_picture(path).pixels
    assert pixels.dtype == expected.dtype and np.array_equal(pixels, expected)
    rows = open_picture(path).open_rows()
    assert np.array_equal(np.concatenate([rows(9), rows(12)]), expected)


def refused(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: {told}") as error:
        read_picture(path)
    assert "\n" not in str(error.value)


# OS/2's first header and its second, Windows' own and those of its versions 2 to 5.
@pytest.mark.parametrize("size", [CORE, 64, 40, 52, 56, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8, 24])
@pytest.mark.parametrize("gap", [0, 70])
def test_every_header_and_depth(size, bits, gap, tmp_path):
    if bits == 24:
        content = bmp(header(size, bits), packed(RGBA[::-1, :, 2::-1], bits), gap=gap)
        return check(tmp_path / "a.bmp", content, RGBA[..., :3])
    values = (ACROSS + 2 * DOWN) % 2**bits
    content = bmp(header(size, bits), packed(values[::-1], bits), palette(2**bits, size), gap)
    check(tmp_path / "a.bmp", content, COLOURS[values])


@pytest.mark.parametrize("start", [0, None])
@pytest.mark.parametrize("bare", [False, True])
def test_upside_down_without_a_place_of_pixels_or_a_head_of_the_file(start, bare, tmp_path):
    content = bmp(header(40, 24, height=-HEIGHT), packed(RGBA[..., 2::-1], 24), start=start)
    check(tmp_path / "a.dib", content[14 * bare :], RGBA[..., :3])


@pytest.mark.parametrize("bits", [4, 8])
def test_colours_beyond_the_palette_are_no_black_ones(bits, tmp_path):
    values = (ACROSS + 3 * DOWN) % 12
    head, colours = header(40, bits, used=12), palette(12)
    check(tmp_path / "a.bmp", bmp(head, packed(values[::-1], bits), colours), COLOURS[values])
    values[0, 0] = 12
    content = bmp(head, packed(values[::-1], bits), colours)
    refused(tmp_path / "a.bmp", content, "damaged: it has pixels of colours beyond the 12 of its")


def test_a_palette_of_greys_gives_grey(tmp_path):
    ramp = np.arange(256).repeat(4).astype(np.uint8).tobytes()
    content = bmp(header(40, 8), packed(RGBA[::-1, :, 0], 8), ramp)
    check(tmp_path / "a.bmp", content, RGBA[..., :1])


RARE = "a BMP of a kind that is not read: "
# Bits of a pixel, those of red, green, blue and alpha, the highest first, and why it is not read.
LAYOUTS = {
    "X1R5G5B5": (16, "x1 r5 g5 b5", None),
    "R5G6B5": (16, "r5 g6 b5", None),
    "X8R8G8B8": (32, "x8 r8 g8 b8", None),
    "A8R8G8B8": (32, "a8 r8 g8 b8", None),
    "A8B8G8R8": (32, "a8 b8 g8 r8", None),
    "R8G8B8A8": (32, "r8 g8 b8 a8", None),
    "A1R5G5B5": (16, "a1 r5 g5 b5", "16 bits a pixel with transparency"),
    "A4R4G4B4": (16, "a4 r4 g4 b4", "16 bits a pixel with transparency"),
    "B5G6R5": (16, "b5 g6 r5", "bitfields layout"),
    "R3G3B2": (16, "x8 r3 g3 b2", "bitfields layout"),
    "A7R8G8B8": (32, "x1 a7 r8 g8 b8", "bitfields layout"),
    "A2R10G10B10": (32, "a2 r10 g10 b10", "bitfields layout"),
}


@pytest.mark.parametrize("size", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_every_order_and_width(size, layout, tmp_path):
    bits, names, rare = LAYOUTS[layout]
    words, masks, parts, place = np.zeros((HEIGHT, WIDTH), np.uint64), {}, {}, bits
    for name in names.split():
        channel, width = name[0], int(name[1:])
        place -= width
        masks[channel] = ((1 << width) - 1) << place
        # What stands where no mask is set does not count.
        part = RGBA[..., "rgbax".index(channel) % 4].astype(np.uint64) >> max(8 - width, 0)
        words |= part << np.uint64(place)
        parts[channel] = part / ((1 << width) - 1)
    size = 56 if size == 52 and "a" in masks else size
    channels = "rgba" if "a" in masks else "rgb"
    # As Pillow makes 5 and 6 bits 8: cut off, where rounding would be as near.
    expected = (np.stack([parts[each] for each in channels], 2) * 255).astype(np.uint8)
    told = struct.pack("<4I", *(masks.get(each, 0) for each in "rgba"))
    compression = MASKS
    if size == 40:
        compression, told = (ALPHA_MASKS, told) if "a" in masks else (MASKS, told[:12])
    head = header(size, bits, compression)
    head = head if size == 40 else (head[:40] + told)[:size].ljust(size, b"\0")
    body = packed(words[::-1].astype(f"<u{bits // 8}"), bits)
    content = bmp(head, body, told if size == 40 else b"")
    if bits == 32 and compression == ALPHA_MASKS:
        rare = "compression .6."
    if rare is not None:
        return refused(tmp_path / "a.bmp", content, RARE + rare)
    check(tmp_path / "a.bmp", content, expected)


@pytest.mark.parametrize("size", [40, 108])
def test_without_masks_the_usual_ones_count_and_nothing_is_transparent(size, tmp_path):
    body = packed(RGBA[::-1, :, [2, 1, 0, 3]], 32)
    check(tmp_path / "a.bmp", bmp(header(size, 32), body), RGBA[..., :3])


def runs(values: np.ndarray, literal: bool) -> bytes:
    """Rows one after another, each number in a run of its own or several as they are."""
    body = b""
    for row in values[::-1]:
        if literal:
            body += bytes([0, len(row), *row]) + bytes(len(row) % 2)
        else:
            body += b"".join(bytes([1, number]) for number in row)
        body += b"\0\0"
    return body + b"\0\1"


@pytest.mark.parametrize("literal", [False, True])
def test_run_lengths_of_bytes(literal, tmp_path):
    values = RGBA[..., 0].astype(int)
    content = bmp(header(40, 8, RLE_8), runs(values, literal), palette(256))
    check(tmp_path / "a.bmp", content, COLOURS[values])
    for twentieth in range(1, 20):
        refused(tmp_path / "b.bmp", content[: len(content) * twentieth // 20], "")


@pytest.mark.parametrize(
    "head, told",
    [
        (header(16, 24), RARE + "header type"),
        (header(40, 2), RARE + "pixel depth"),
        (header(40, 64), RARE + "pixel depth"),
        (header(40, 0, 5), RARE + "pixel depth"),
        (header(40, 4, RLE_4), RARE + "RLE4"),
        (header(40, 24, RLE_24), RARE + "compression"),
        (header(40, 32, MASKS), RARE + "masks of no colours"),
        (header(40, 24, height=0), "damaged, or not a picture: "),
        (header(40, 24, height=9_000_000), "has more than [0-9]+ megapixels; save it as PNG"),
        (header(40, 24), "damaged, or not a picture: "),
        (header(40, 24)[:3], "damaged, or not a picture"),
    ],
)
def test_what_is_not_read_is_told(head, told, tmp_path):
    content = bmp(head, b"", bytes(12))
    refused(tmp_path / "a.bmp", content, told)


def test_a_profile_within_and_the_resolution_go_along(tmp_path):
    profile = bytes(16) + b"RGB " + bytes(50)
    body = packed(RGBA[::-1, :, 2::-1], 24)
    head = bytearray(header(124, 24))
    head[56:60], head[112:120] = b"DEBM", struct.pack("<II", 124 + len(body), len(profile))
    (tmp_path / "a.bmp").write_bytes(bmp(bytes(head), body) + profile)
    metadata = read_picture(tmp_path / "a.bmp").metadata
    assert metadata.icc_profile == profile and metadata.resolution == (3, 3)
