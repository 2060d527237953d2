"""The pictures that a data set's folders, LMDBs and lists name: how many, in pairs, how large."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esc_arch.plugin.data.real_folders import images_below
from esc_arch.plugin.preflight.table import is_number
from esc_arch.plugin.preflight.wording import one_line, show
from esc_arch.prepare.bounds import file_fault
from esc_arch.prepare.headers import Header, read_header

# Pictures of a data set that are looked at first, and seconds for all others.
_AT_LEAST = 8
SECONDS = 5.0
_FILES_ASKED_FOR = 2000
# Bytes of a picture that has to be read as a whole.
_LARGEST = 1 << 30


class Unusable(Exception):  # noqa: N818
    """What is wrong with a folder, LMDB or list, in one line."""


@dataclass
class Pictures:
    """One side of a data set.

    Attributes:
        root: Its folder or LMDB.
        names: Of the pictures, below the root; in an LMDB their keys.
        headers: What is known of them; of an LMDB's at once, since its list tells.
    """

    root: str
    names: list[str]
    is_lmdb: bool = False
    headers: dict[str, Header | None] = field(default_factory=dict)

    def header(self, name: str) -> Header | None:
        """Size and orientation of a picture; None where it cannot be read."""
        if name not in self.headers and not self.is_lmdb:
            path = os.path.join(self.root, name)
            # Whatever names it, neither a pipe nor a device, which need not end.
            regular = os.path.isfile(path) and not _takes_far_too_long(path)
            self.headers[name] = (read_header(path) or _decoded(path)) if regular else None
        return self.headers.get(name)

    def within(self, seconds: float) -> Iterator[str]:
        """Names of pictures, as many as can be looked at in a time, spread over all first."""
        end = time.monotonic() + seconds
        first = spread(self.names, _AT_LEAST)
        yield from first
        taken = set(first)
        for name in self.names:
            if name not in taken:
                if not self.is_lmdb and time.monotonic() > end:
                    return
                yield name


def _takes_far_too_long(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file_fault(file) is not None
    except OSError:
        return True


def _decoded(path: str) -> Header | None:
    """The header of a picture that only OpenCV knows, by reading all of it."""
    import cv2

    try:
        if os.path.getsize(path) > _LARGEST:
            return None
        content = np.fromfile(path, np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if image is None else Header(*image.shape[:2])


def spread(things: list[Any], count: int) -> list[Any]:
    """Some of a list, from the first to the last."""
    if len(things) <= count:
        return things
    return [things[number * (len(things) - 1) // (count - 1)] for number in range(count)]


def in_folder(root: str, deep: bool = False) -> Pictures:
    """The files of a folder, as BasicSR finds them; of all below it if `deep`."""
    root = os.path.expanduser(root)
    if deep:
        return Pictures(root, [os.path.relpath(path, root) for path in images_below(root)])
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    return Pictures(root, names)


def in_lmdb(root: str) -> Pictures:
    """The pictures that an LMDB's list tells of.

    Raises:
        Unusable: The list cannot be read.
    """
    pictures = Pictures(os.path.expanduser(root), [], is_lmdb=True)
    for line in _lines(os.path.join(pictures.root, "meta_info.txt"), one_line(root)):
        name = line.split(".")[0]
        size = re.search(r"\((\d{1,6}),\s*(\d{1,6})", line)
        pictures.names.append(name)
        if size:
            pictures.headers[name] = Header(int(size[1]), int(size[2]))
    return pictures


def in_list(path: str, root: str) -> Pictures:
    """The pictures below a folder that a list names, one a line, as BasicSR reads them.

    Raises:
        Unusable: The list cannot be read, or a line of it names nothing.
    """
    root = os.path.expanduser(root)
    lines = _lines(os.path.expanduser(path), one_line(path))
    names = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            last = ", the last," if number == len(lines) else ""
            raise Unusable(f"{one_line(path)}: line {number}{last} is blank; remove it")
        name = line.strip().split(" ")[0]
        if "\t" in name or name.endswith(","):
            raise Unusable(
                f"{one_line(path)}: line {number}: a space must follow the name, not a tab or comma"
            )
        names.append(name)
    return _all_there(path, Pictures(root, names))


def in_pairs(path: str, gt_root: str, lq_root: str) -> tuple[Pictures, Pictures]:
    """The pictures of a list of pairs, `GT, LQ` a line, as RealESRGANPairedDataset reads them.

    Raises:
        Unusable: The list cannot be read, or a line of it is no pair.
    """
    names: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(_lines(os.path.expanduser(path), one_line(path)), 1):
        pair = line.strip().split(", ")
        if len(pair) != 2:
            raise Unusable(
                f"{one_line(path)}: line {number} must be GT, LQ: two names with a comma and a "
                f"space between them, not {show(line)}"
            )
        for side, name in zip(names, pair, strict=True):
            side.append(name)
    roots = os.path.expanduser(gt_root), os.path.expanduser(lq_root)
    gt, lq = (_all_there(path, Pictures(*side)) for side in zip(roots, names, strict=True))
    return gt, lq


def _all_there(path: str, pictures: Pictures) -> Pictures:
    """Pictures of a list, of which none is missing.

    Raises:
        Unusable: One is.
    """
    for number, name in spread(list(enumerate(pictures.names, 1)), _FILES_ASKED_FOR):
        if not os.path.isfile(os.path.join(pictures.root, name)):
            raise Unusable(
                f"{one_line(path)}: line {number}: {one_line(name)} is not below "
                f"{one_line(pictures.root)}"
            )
    return pictures


def _lines(path: str, shown: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise Unusable(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{shown}: not text in UTF-8") from None
    if lines and lines[0].startswith("\ufeff"):
        raise Unusable(f"{shown}: line 1 starts with a byte order mark; save it without")
    if not lines:
        raise Unusable(f"{shown}: is empty; it must name pictures")
    return lines


def pair_problem(gt: Pictures, lq: Pictures, template: str) -> str | None:
    """Why two sides are not of the same pictures; None if they are."""
    if gt.is_lmdb:
        if set(gt.names) == set(lq.names):
            return None
        odd = sorted(set(gt.names) ^ set(lq.names))
        return (
            f"holds other pictures than dataroot_gt: {len(gt.names)} there and {len(lq.names)} "
            f"here, {one_line(odd[0])} only in one"
        )
    partners = [partner(name, template) for name in gt.names]
    present = set(lq.names)
    lacking = [pair for pair in zip(gt.names, partners, strict=True) if pair[1] not in present]
    if lacking:
        return (
            f"{one_line(lq.root)} has no {one_line(lacking[0][1])}, the partner of "
            f"{one_line(lacking[0][0])} in dataroot_gt ({len(lacking)} of {len(gt.names)} are "
            f"missing; filename_tmpl is '{template}')"
        )
    if len(gt.names) != len(lq.names):
        return (
            f"has {len(lq.names)} files, but dataroot_gt has {len(gt.names)}: they must be as many"
        )
    return None


def partner(name: str, template: str) -> str:
    """Name of the LQ picture for a GT picture, as BasicSR makes it."""
    stem, end = os.path.splitext(name)
    return f"{template.format(stem)}{end}"


def size_problem(gt: Header | None, lq: Header | None, scale: Any, exact: bool) -> str | None:
    """Why the sizes of a pair do not fit the scale; None if they do.

    Args:
        gt: Of the GT picture; None if it cannot be read.
        lq: The same of LQ.
        scale: The scale.
        exact: Whether GT must be exactly so large; in validation BasicSR cuts GT to that.
    """
    if gt is None or lq is None:
        return "or its partner in dataroot_gt is not a picture that can be read"
    if gt.turn != lq.turn:
        return (
            f"has EXIF orientation {lq.turn}, but its partner in dataroot_gt {gt.turn}: one of the "
            "two is turned as it is read; save both without orientation, upright"
        )
    if not is_number(scale):
        return None
    fits = [
        g == size * scale if exact else size * scale <= g < (size + 1) * scale
        for g, size in ((gt.height, lq.height), (gt.width, lq.width))
    ]
    if all(fits):
        return None
    return (
        f"is {lq.width} x {lq.height}, but its partner in dataroot_gt {gt.width} x {gt.height}: "
        f"that is not scale {scale}"
    )
