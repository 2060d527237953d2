"""Reading BMP, which libvips does not, in every kind of header that Windows and OS/2 wrote."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esc_arch.errors import UserError, printable
from esc_arch.inference.metadata import Metadata

_CORE, _INFO = 12, 40
_PLAIN, _RLE_8, _RLE_4, _MASKS, _RLE_24, _ALPHA_MASKS = 0, 1, 2, 3, 4, 6
_KINDS = {_PLAIN: (1, 2, 4, 8, 16, 24, 32), _RLE_8: (8,), _RLE_4: (4,), _RLE_24: (24,)}
_KINDS |= {_MASKS: (16, 32), _ALPHA_MASKS: (16, 32)}
_USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
_EMBEDDED_PROFILE = b"DEBM"
_MOST_PIXELS = 1 << 28


def read_bmp(path: Path, content: bytes) -> tuple[np.ndarray, Metadata]:
    """Pixels (H, W, C) of 8 bits, or of 16 where masks have more, and what goes along.

    Args:
        path: The file, for the error.
        content: All of it.

    Raises:
        UserError: One line.
    """
    shown, damaged = printable(path), "damaged, or not a picture"
    content = content if content[:2] == b"BM" else b"BM" + bytes(12) + content
    start, size = struct.unpack_from("<II", content[:18].ljust(18, b"\0"), 10)
    head = content[14 : 14 + size].ljust(124, b"\0")
    if len(content) < 14 + max(size, _CORE):
        raise UserError(f"{shown}: {damaged}: it is cut off")
    if size == _CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", head, 4)
        head = head[:_CORE].ljust(124, b"\0")
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", head, 4)
    compression, _, *resolution, used = struct.unpack_from("<IIiiI", head, 16)
    if bits not in _KINDS.get(compression, ()):
        kind = f"{bits} bits a pixel, compression {compression}"
        raise UserError(f"{shown}: a BMP of a kind that is not read ({kind}); save it as PNG")
    if width < 1 or height == 0:
        raise UserError(f"{shown}: {damaged}: its header says {width} x {height} pixels")
    if width * abs(height) > _MOST_PIXELS:
        most = _MOST_PIXELS // 10**6
        raise UserError(f"{shown}: has more than {most} megapixels; save it as PNG")
    place, masks = 14 + size, head[40:56]
    if size == _INFO and compression in (_MASKS, _ALPHA_MASKS):
        length = 12 if compression == _MASKS else 16
        masks, place = content[place : place + length].ljust(16, b"\0"), place + length
    step, named = 3 if size == _CORE else 4, 0
    if bits <= 8:
        named = min(used or 1 << bits, 1 << bits)
        named = min(named, max(start - place, 0) // step) if start else named
    start = start or place + step * named
    try:
        if compression in (_RLE_8, _RLE_4, _RLE_24):
            values = _run_lengths(content[start:], width, abs(height), bits)
        else:
            values = _rows(content[start:], width, abs(height), bits)
        if compression in (_MASKS, _ALPHA_MASKS):
            values = _masked(values, struct.unpack("<4I", masks))
        elif bits > 8:
            values = _masked(values, _USUAL_MASKS[bits]) if bits != 24 else values[..., ::-1]
    except ValueError as error:
        raise UserError(f"{shown}: {damaged}: {error}") from None
    if bits <= 8:
        colours = np.frombuffer(content, np.uint8, step * named, place).reshape(named, step)
        if values.max() >= named:
            raise UserError(beyond_palette(path, named))
        grey = (colours[:, :1] == colours[:, :3]).all()
        values = (colours[:, :1] if grey else colours[:, 2::-1])[values]
    profile = None
    if head[56:60] == _EMBEDDED_PROFILE:
        offset, length = struct.unpack_from("<II", head, 112)
        profile = content[14 + offset :][:length]
    known = (resolution[0] / 1000, resolution[1] / 1000) if min(resolution) > 0 else None
    pixels = np.ascontiguousarray(values if height < 0 else values[::-1])
    return pixels, Metadata(profile, resolution=known).of(pixels.shape[2])


def beyond_palette(path: Path, named: int) -> str:
    """The line on a picture with other colours than those of its palette."""
    return f"{printable(path)}: damaged: it has pixels of colours beyond the {named} of its palette"


def _rows(body: bytes, width: int, height: int, bits: int) -> np.ndarray:
    """Numbers (H, W), or (H, W, 3) of 24 bits, in the order of the file."""
    used = (width * bits + 7) // 8
    step = (used + 3) // 4 * 4
    if len(body) < step * (height - 1) + used:
        raise ValueError("it is cut off")
    rows = np.frombuffer(body[: step * height].ljust(step * height, b"\0"), np.uint8)
    rows = rows.reshape(height, step)
    if bits == 24:
        return rows[:, :used].reshape(height, width, 3)
    if bits > 8:
        return rows.view(f"<u{bits // 8}")[:, :width]
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[:, :, None] >> shifts & (1 << bits) - 1).reshape(height, -1)[:, :width]


def _masked(values: np.ndarray, masks: Sequence[int]) -> np.ndarray:
    """Red, green, blue and perhaps alpha, which stand where bits of the masks are set."""
    fields = [(mask, (mask & -mask).bit_length() - 1) for mask in masks[: 4 if masks[3] else 3]]
    if any(at < 0 or mask & mask + (1 << at) for mask, at in fields):
        raise ValueError("its masks are none of colours")
    largest = max(mask >> at for mask, at in fields)
    kind = np.uint8 if largest < 256 else np.uint16
    full, values = np.iinfo(kind).max, values.astype(np.uint64)
    parts = []
    for mask, at in fields:
        most = mask >> at
        parts.append((((values & mask) >> at) * full + most // 2) // most)
    return np.stack(parts, 2).astype(kind)


def _run_lengths(body: bytes, width: int, height: int, bits: int) -> np.ndarray:
    """As `_rows`; pixels that are passed over are 0."""
    values = np.zeros((height, width, 3) if bits == 24 else (height, width), np.uint8)
    row = column = place = 0
    while row < height:
        count, what = body[place : place + 2].ljust(2, b"\0")
        if place + 2 > len(body):
            if (row, column) == (height - 1, width):
                break
            raise ValueError("it is cut off")
        place += 2
        if count == 0 and what < 3:
            if what == 1:
                break
            right, up = body[place : place + 2].ljust(2, b"\0") if what == 2 else (-column, 1)
            place += what
            row, column = row + up, column + right
            continue
        size = max(bits // 8, 1) if count else (what * bits + 7) // 8
        place -= count > 0
        if place + size > len(body):
            raise ValueError("it is cut off")
        part = np.frombuffer(body, np.uint8, size, place)
        place += size + (size % 2 if count == 0 else 0)
        count = count or what
        if bits == 4:
            part = np.stack([part >> 4, part & 15], 1).reshape(-1)
        part = part.reshape(-1, *values.shape[2:])
        # Some writers fill rows up to whole bytes or words.
        if column + count > width + 3:
            raise ValueError("a run is longer than its row")
        room = max(width - column, 0)
        values[row, column : column + count] = part[np.arange(min(count, room)) % len(part)]
        column += count
    return values
