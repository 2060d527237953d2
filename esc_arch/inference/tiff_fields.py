"""The directories of a TIFF file: what its pages say of themselves."""

import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SUB_FILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_BYTES = 273, 274, 277, 278, 279
PLANES, RESOLUTION_UNIT, PALETTE, SUB_DIRECTORIES, INKS = 284, 296, 320, 330, 332
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, EXTRA, FORMAT = 322, 323, 324, 325, 338, 339
DNG_VERSION = 50706

# Kind of a field's values -> how Python unpacks one; others hold no whole numbers.
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_LONG, _LONG_8 = 4, 16
FARTHEST = (1 << 32) - (1 << 28)
"""How large a file may be of which a `View` is needed: its directory must be within 32 bits."""

_MOST_PAGES = 100_000
_MOST_VALUES = 1 << 26


@dataclass(frozen=True)
class Form:
    """How a file writes numbers: its byte order, and whether offsets have 64 bits (BigTIFF)."""

    order: str
    big: bool

    @property
    def word(self) -> str:
        """An offset."""
        return self.order + ("Q" if self.big else "I")

    @property
    def size(self) -> int:
        """Bytes of an offset; that of the first directory stands at this place in the file."""
        return 8 if self.big else 4


@dataclass(frozen=True)
class Directory:
    """One page.

    Attributes:
        form: Of the file.
        fields: Tag -> the entry as it stands in the file, without the tag.
        values: Tag -> its whole numbers; fields of text or fractions are left out.
    """

    form: Form
    fields: Mapping[int, bytes]
    values: Mapping[int, tuple[int, ...]]

    def first(self, tag: int, default: int = 0) -> int:
        """The only value of a field."""
        return (self.values.get(tag) or (default,))[0]


def directories(path: Path) -> list[Directory]:
    """The pages of a TIFF, one after another; those below pages (SubIFDs) are left out.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        form = Form("<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+"))
        try:
            (place,) = struct.unpack_from(form.word, head, form.size)
            found: list[Directory] = []
            seen: set[int] = set()
            while place and place not in seen and len(found) < _MOST_PAGES:
                seen.add(place)
                directory, place = _read(file, form, place)
                found.append(directory)
        except (struct.error, OverflowError) as error:
            raise ValueError(str(error)) from None
    return found


def _read(file, form: Form, place: int) -> tuple[Directory, int]:
    file.seek(place)
    count_form = form.order + ("Q" if form.big else "H")
    (count,) = struct.unpack(count_form, file.read(struct.calcsize(count_form)))
    if count > 65535:
        raise ValueError("more fields than there can be")
    step = 20 if form.big else 12
    table = file.read(count * step + form.size)
    fields = {}
    for start in range(0, count * step, step):
        entry = table[start : start + step]
        (tag,) = struct.unpack_from(f"{form.order}H", entry)
        fields[tag] = entry[2:]
    (following,) = struct.unpack_from(form.word, table, count * step)
    values = {tag: _numbers(file, form, entry) for tag, entry in fields.items()}
    whole = {tag: numbers for tag, numbers in values.items() if numbers is not None}
    return Directory(form, fields, whole), following


def _numbers(file, form: Form, entry: bytes) -> tuple[int, ...] | None:
    kind, count = struct.unpack_from(form.order + ("HQ" if form.big else "HI"), entry)
    if kind not in _WHOLE or count > _MOST_VALUES:
        return None
    numbers = f"{form.order}{count}{_WHOLE[kind]}"
    size = struct.calcsize(numbers)
    content = entry[2 + form.size :][:size]
    if size > form.size:
        file.seek(struct.unpack(form.word, entry[2 + form.size :])[0])
        content = file.read(size)
    return struct.unpack(numbers, content) if len(content) == size else None


class View:
    """A TIFF file as if its only page said other things of itself; for `SourceCustom`.

    Its directory stands far behind the file, so that reading what the file lacks fails.

    Args:
        path: The file.
        directory: The page.
        changed: Tag -> whole numbers to say instead, or None to leave the field out.
    """

    def __init__(
        self, path: Path, directory: Directory, changed: Mapping[int, tuple[int, ...] | None]
    ) -> None:
        form = directory.form
        self._file = open(path, "rb")  # noqa: SIM115, closed with the view
        self._lock = threading.Lock()
        self._start = 1 << 62 if form.big else FARTHEST
        self._tail = _table(directory, changed, self._start)
        self._head = self._file.read(form.size) + struct.pack(form.word, self._start)
        self._place = 0

    def read(self, size: int) -> bytes:
        """The next bytes, perhaps fewer than asked for."""
        with self._lock:
            if self._place < len(self._head):
                content = self._head[self._place :][:size]
            elif self._place >= self._start:
                content = self._tail[self._place - self._start :][:size]
            else:
                try:
                    self._file.seek(self._place)
                    content = self._file.read(min(size, self._start - self._place))
                except OSError:  # No file has such a place, or the disk fails: nothing is read.
                    content = b""
            self._place += len(content)
            return content

    def seek(self, offset: int, whence: int) -> int:
        """Go somewhere else."""
        with self._lock:
            start = (0, self._place, self._start + len(self._tail))[whence]
            self._place = max(0, start + offset)
            return self._place


def _table(
    directory: Directory, changed: Mapping[int, tuple[int, ...] | None], start: int
) -> bytes:
    """A directory at a place in the file, with the values that do not fit into it behind it."""
    form = directory.form
    tags = sorted({*directory.fields, *changed} - {tag for tag in changed if changed[tag] is None})
    step = 20 if form.big else 12
    behind = start + (8 if form.big else 2) + len(tags) * step + form.size
    entries, values = bytearray(), bytearray()
    for tag in tags:
        numbers = changed.get(tag)
        if numbers is None:
            entries += struct.pack(f"{form.order}H", tag) + directory.fields[tag]
            continue
        kind, letter = (_LONG_8, "Q") if form.big else (_LONG, "I")
        if tag in (BITS, EXTRA, FORMAT, PHOTOMETRIC, PLANES, SAMPLES):
            kind, letter = 3, "H"
        content = struct.pack(f"{form.order}{len(numbers)}{letter}", *numbers)
        head = struct.pack(form.order + ("HHQ" if form.big else "HHI"), tag, kind, len(numbers))
        if len(content) > form.size:
            entries += head + struct.pack(form.word, behind + len(values))
            values += content + bytes(len(content) % 2)
        else:
            entries += head + content.ljust(form.size, b"\0")
    count = struct.pack(form.order + ("Q" if form.big else "H"), len(tags))
    return bytes(count + entries + struct.pack(form.word, 0) + values)
