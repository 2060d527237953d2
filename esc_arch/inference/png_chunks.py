"""The chunks of PNG files: what a picture library does not carry from one file to another."""

import struct
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

import numpy as np

from esc_arch.errors import printable

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What the numbers of a picture mean on a screen; they stay with the numbers.
COLOUR_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB")
_WANTED = (*COLOUR_CHUNKS, b"IHDR", b"PLTE", b"iCCP", b"pHYs", b"eXIf", b"acTL")
_LARGEST = 1 << 24
_LARGEST_SIDE = 1_000_000
PALETTE = 3
# Kind of colours -> bits a value.
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def read_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """The chunks that say something of the whole picture, from the start of a PNG file.

    A chunk with a wrong checksum counts as absent: metadata never decides whether a picture is
    taken.

    Args:
        file: At its start, seekable.

    Returns:
        The bodies by name.
    """
    found: dict[bytes, bytes] = {}
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        # Zeros after the last chunk, of which a file with holes has gigabytes, are none.
        if name == b"IEND" or not name.isalpha():
            break
        # A capital letter says that no reader may pass over it.
        wanted = name in _WANTED or name[:1].isupper() and name != b"IDAT"
        if wanted and length <= _LARGEST:
            body, crc = file.read(length), file.read(4)
            if crc == struct.pack(">I", zlib.crc32(name + body)):
                found.setdefault(name, body)
        else:
            file.seek(length + 4, 1)
    file.seek(0)
    return found


def png_fault(chunks: dict[bytes, bytes]) -> str | None:
    """What is wrong in the header of a PNG, or with a chunk that no reader may pass over.

    Args:
        chunks: Of `read_chunks`.
    """
    header = chunks.get(b"IHDR", b"")
    if len(header) != 13:
        return "its header is missing, or the checksum is wrong"
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        return f"its header says {width} x {height} pixels"
    if depth not in _DEPTHS.get(colour, ()):
        return f"its header says colours of kind {colour} with {depth} bits, which there are not"
    if max(width, height) > _LARGEST_SIDE:
        return f"its {width} x {height} pixels are more than can be read ({_LARGEST_SIDE} a side)"
    for name in chunks:
        if name[:1].isupper() and name not in _WANTED:
            return f"it has a part '{printable(name.decode('latin-1'))}' that is not known"
    return "its palette is missing" if colour == PALETTE and b"PLTE" not in chunks else None


def icc_profile(body: bytes) -> bytes | None:
    """The profile in an iCCP chunk, also one that libpng would leave out as malformed."""
    _, _, rest = body.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(rest[1:], _LARGEST) or None
    except zlib.error:
        return None


def icc_chunk(profile: bytes) -> bytes:
    """The body of an iCCP chunk."""
    return b"ICC Profile\0\0" + zlib.compress(profile)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk as it stands in a file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


class ChunkWriter:
    """Passes a PNG stream on, with chunks of its own in place of those of the same name.

    Args:
        file: Where it goes.
        chunks: Bodies by name, to stand right after the header.
        dropped: Names of chunks to leave out beside those.
    """

    def __init__(self, file: BinaryIO, chunks: dict[bytes, bytes], dropped: tuple[bytes, ...]):
        self.file = file
        self.chunks = chunks
        self.dropped = {*dropped, *chunks}
        self._waiting: bytearray | None = bytearray()

    def write(self, data: bytes) -> int:
        """Take the next part of the stream; returns its length."""
        if self._waiting is None:
            self.file.write(data)
        else:
            self._waiting += data
            self._head()
        return len(data)

    def _head(self) -> None:
        """Once the stream has come to its pixels, write all before them."""
        data, kept, place = self._waiting, bytearray(SIGNATURE), len(SIGNATURE)
        while len(data) >= place + 8:
            length, name = struct.unpack_from(">I4s", data, place)
            if name == b"IDAT":
                self.file.write(bytes(kept) + data[place:])
                self._waiting = None
                return
            end = place + 12 + length
            if name not in self.dropped:
                kept += data[place:end]
            if name == b"IHDR":
                for own, body in self.chunks.items():
                    kept += chunk(own, body)
            place = end


def stored_png(shape: tuple[int, int, int], rows: Iterator[np.ndarray]) -> Iterator[bytes]:
    """A PNG file without compression, part by part: how rows reach a library that pulls.

    Args:
        shape: Height, width and channels, 1 to 4: grey, grey with alpha, RGB, RGBA.
        rows: The rows from top to bottom in parts (h, W, C), uint8 or uint16.

    Yields:
        The file.
    """
    height, width, channels = shape
    first = next(rows)
    size = first.dtype.itemsize
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * size, kind, 0, 0, 0)
    yield SIGNATURE + chunk(b"IHDR", header)
    stream = zlib.compressobj(0)
    for part in chain([first], rows):
        big_endian = np.ascontiguousarray(part.astype(f">u{size}", copy=False))
        lines = np.zeros((len(part), 1 + width * channels * size), np.uint8)
        lines[:, 1:] = big_endian.reshape(len(part), -1).view(np.uint8)
        if compressed := stream.compress(lines.tobytes()):
            yield chunk(b"IDAT", compressed)
    yield chunk(b"IDAT", stream.flush()) + chunk(b"IEND", b"")
