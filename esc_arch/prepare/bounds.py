"""Which files of pictures ask for more work than pictures of their size can need.

Decoders pass over what they do not know in search of the next part, for minutes in a file with
holes, which may have terabytes; and they decode every scan of a JPEG, thousands if there are.
"""

import re
from typing import BinaryIO

# Encoders write about ten. Each costs what a picture of one does, however few bytes it has.
MOST_SCANS = 50
# Not even noise becomes as large.
_BYTES_A_PIXEL = 16
# Beside the pixels: profiles, other pictures, the film of a "motion photo"; in a BMP next to none.
_BESIDE, _BESIDE_BMP = 64 << 20, 1 << 20
_ANIMATION = 1 << 30
_STRAY_BYTES = 1 << 16
_SCAN, _END = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# Among coded pixels, FF stands before a zero, and where a decoder may start anew.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_BLOCK = 1 << 20


def file_fault(file: BinaryIO) -> str | None:
    """Why a PNG, JPEG, WebP or BMP is not to be decoded.

    Args:
        file: Seekable; at its start afterwards.

    Returns:
        A reason that follows the file's name; None also where the decoder will soon say more.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_STRAY_BYTES)
    try:
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg_fault(file, size)
        if head.startswith(b"\x89PNG"):
            return _png_fault(file, _number(head, 16, 4) * _number(head, 20, 4))
    finally:
        file.seek(0)
    if head.startswith(b"RIFF"):
        return _size_fault(size, 0, 0, _ANIMATION)
    if head.startswith(b"BM"):
        old = _number(head, 14, 4, "little") == 12
        places = ((18, 2), (20, 2)) if old else ((18, 4), (22, 4))
        width, height = (_number(head, *place, "little", signed=True) for place in places)
        return _size_fault(size, abs(width), abs(height), _BESIDE_BMP)
    return None


def _number(head: bytes, place: int, count: int, order: str = "big", signed: bool = False) -> int:
    return int.from_bytes(head[place : place + count], order, signed=signed)


def _size_fault(size: int, width: int, height: int, beside: int = _BESIDE) -> str | None:
    if size <= beside + _BYTES_A_PIXEL * width * height:
        return None
    of = f"of {width} x {height} pixels" if width * height else "of its kind"
    return f"{size:,} bytes, more than a picture {of} can have"


def _png_fault(file: BinaryIO, pixels: int) -> str | None:
    """The same of the parts up to the last: nobody reads what follows."""
    left = {b"IDAT": _BESIDE + _BYTES_A_PIXEL * pixels, b"fdAT": _ANIMATION, b"": _BESIDE}
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:].isalpha() and head[4:] != b"IEND":
        length, name = _number(head, 0, 4), head[4:]
        kind = name if name in left else b""
        left[kind] -= length
        if left[kind] < 0:
            return (
                f"its parts '{name.decode()}' have more bytes than a picture of its size can need"
            )
        file.seek(length + 4, 1)
    return None


def _jpeg_fault(file: BinaryIO, size: int) -> str | None:
    place, frame, parts, scans, strays = 2, 0, 0, 0, _STRAY_BYTES
    while place < (size if frame else min(size, _BESIDE)):
        file.seek(place)
        found = _next_marker(file, size if scans else place + strays)
        if found is None or found[0] == _END:
            break
        strays -= 0 if scans else found[1] - 2 - place
        marker, place = found
        file.seek(place)
        head = file.read(8)
        place += _number(head, 0, 2)
        if marker in _FRAMES and not frame:
            frame, parts = marker, _number(head, 7, 1)
            if fault := _size_fault(size, _number(head, 5, 2), _number(head, 3, 2)):
                return fault
        elif marker == _SCAN:
            scans += 1
            if scans > MOST_SCANS:
                return f"has more than {MOST_SCANS} scans; save it anew"
            if frame not in _PROGRESSIVE and _number(head, 2, 1) == parts:
                # The only one that is decoded.
                break
    return None if frame else _size_fault(size, 0, 0)


def _next_marker(file: BinaryIO, end: int) -> tuple[int, int] | None:
    """The next marker that starts before a place, and where it ends."""
    start, tail = file.tell(), b""
    while start < end and (block := file.read(min(_BLOCK, end - start + 1))):
        found = _MARKER.search(tail + block)
        if found:
            return found[1][0], start - len(tail) + found.end()
        start, tail = start + len(block), block[-1:]
    return None
