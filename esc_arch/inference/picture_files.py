"""Reading and writing pictures of the usual kinds, by libvips: as a whole or row by row."""

import functools
import io
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from esc_arch.errors import UserError, printable, reading
from esc_arch.file_kinds import HEAD, kind_of_file
from esc_arch.inference.bmp_files import beyond_palette
from esc_arch.inference.metadata import Metadata, orientation
from esc_arch.inference.png_chunks import (
    COLOUR_CHUNKS,
    PALETTE,
    ChunkWriter,
    icc_profile,
    read_chunks,
)
from esc_arch.inference.regular_files import open_regular
from esc_arch.inference.tiff_pages import SAVE_AS, full_pages, load_tiff
from esc_arch.inference.vips_errors import damaged, run
from esc_arch.prepare.bounds import file_fault

# What names of pictures end in.
PICTURE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ("png", "jpg", "jpeg", "jpe", "jfif", "jif", "webp", "tif", "tiff", "bmp", "dib")
)
_LOADERS = {f"a {name}": name.lower() for name in ("PNG", "JPEG", "WebP", "TIFF", "BMP")}
KINDS = "PNG, JPEG, WebP, TIFF or BMP"
_FINEST = 1e6
_FLOATS = ("float", "double")
# Other warnings on a JPEG, as of bytes that are too many between its parts, cost no pixels.
_PIXELS_LOST = re.compile(r"premature end|bad \w+ code|instead of RST|before marker 0xd[0-7]")
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_METADATA = (b"\xfe", *(bytes([marker]) for marker in range(0xE0, 0xF0)))
_importing = threading.Lock()


@dataclass
class Picture:
    """A picture in memory.

    Attributes:
        pixels: (H, W, C) uint8 or uint16; grey, grey with alpha, RGB or RGBA.
        metadata: What goes along with them.
    """

    pixels: np.ndarray
    metadata: Metadata = field(default_factory=Metadata)


@dataclass
class Source:
    """An opened picture, upright, in 8 or 16 bits, grey or RGB, with or without alpha.

    Attributes:
        path: The file.
        width: Pixels across.
        height: Pixels down.
        channels: 1 to 4.
        dtype: uint8 or uint16.
        metadata: What goes along with the pixels.
        notes: Lines to tell the user.
        open_rows: Starts anew and returns a function that gives the next so many rows.
    """

    path: Path
    width: int
    height: int
    channels: int
    dtype: np.dtype
    metadata: Metadata
    notes: list[str]
    open_rows: Callable[[], Callable[[int], np.ndarray]]

    def read(self) -> Picture:
        """All of it.

        Raises:
            UserError: It is damaged.
        """
        return Picture(self.open_rows()(self.height), self.metadata)


def source_in_memory(picture: Picture, path: Path = Path(), notes: Sequence[str] = ()) -> Source:
    """A picture in memory as if it were an opened file."""
    pixels = picture.pixels
    height, width, channels = pixels.shape

    def open_rows() -> Callable[[int], np.ndarray]:
        done = 0

        def rows(count: int) -> np.ndarray:
            nonlocal done
            done += count
            return pixels[done - count : done]

        return rows

    kind = pixels.dtype
    return Source(path, width, height, channels, kind, picture.metadata, [*notes], open_rows)


def read_picture(path: str | os.PathLike, page: int | None = None) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP, upright as its EXIF orientation says.

    Args:
        path: The file; what it holds counts, not its name.
        page: Which page of several, from 1; the first by default.

    Raises:
        UserError: One line: missing, not a whole picture, or of a kind that cannot be upscaled.
    """
    return open_picture(path, page).read()


def open_picture(path: str | os.PathLike, page: int | None = None) -> Source:
    """As `read_picture`, but only the header is read now."""
    path = Path(path)
    with reading(path):
        with open_regular(path) as file:
            found = kind_of_file(file.read(HEAD))
            if (kind := _LOADERS.get(found or "")) is None:
                what = f"is {found}, " if found else ""
                raise UserError(
                    f"{printable(path)}: {what}not a picture that can be read ({KINDS})"
                )
            if (fault := file_fault(file)) is not None:
                raise UserError(f"{printable(path)}: {fault}")
            if kind != "bmp" and (vips := vips_or_none()) is not None:
                return _open_vips(vips, path, file, kind, page)
        from esc_arch.inference.plain_pictures import open_plain

        return open_plain(path, kind, page)


def vips_or_none() -> Any:
    """The library, or None where there is none for this machine."""
    # Another thread would find the module half imported while this one's import fails.
    with _importing:
        return _import_vips()


@functools.cache
def _import_vips() -> Any:
    os.environ.setdefault("VIPS_WARNING", "1")  # Warnings about metadata, which never decides.
    try:
        import pyvips
    except Exception:  # ImportError, or OSError where only its own half is installed.
        return None
    return pyvips


def _open_vips(vips: Any, path: Path, file: BinaryIO, kind: str, page: int | None) -> Source:
    notes: list[str] = []
    keep: list[Any] = []
    chunks = read_chunks(file) if kind == "png" else {}
    options: dict[str, Any] = {"fail_on": "error"}
    # libvips sees it only where it stands before the pixels.
    told = orientation(chunks[b"eXIf"]) if b"eXIf" in chunks else None

    def load(keep: list[Any], **more: Any) -> Any:
        image = _load(vips, path, kind, {**options, **more}, keep)
        if told is not None:
            image = image.copy()
            image.set_type(vips.GValue.gint_type, "orientation", told)
        return image

    def open_image() -> tuple[Any, Callable[[Any], Any], Metadata]:
        notes.clear()
        options.pop("page", None)
        image = load(keep)
        number = _choose_page(path, image, kind, page, notes, b"acTL" in chunks)
        if number is not None:
            options["page"] = number
            image = load(keep)
        return image, *_conversion(path, image, _metadata(image, chunks), notes)

    def attempt(work: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        try:
            return run(vips, work, again)
        except vips.Error as error:
            raise damaged(path, error) from None

    image, convert, metadata = attempt(open_image)
    turned = image.get_typeof("orientation") and image.get("orientation") > 4
    upright = attempt(lambda: convert(image.autorot()))
    dtype = np.dtype({"uchar": np.uint8, "ushort": np.uint16}[upright.format])
    width, height, channels = upright.width, upright.height, upright.bands

    def open_rows() -> Callable[[int], np.ndarray]:
        # Turning needs all of a picture; libvips then keeps large ones on disk.
        access = "random" if turned else "sequential"
        kept: list[Any] = []
        done = 0

        def begin() -> None:
            kept.clear()
            fresh = convert(load(kept, access=access).autorot())
            kept.extend([fresh, vips.Region.new(fresh)])

        def fetch(count: int) -> Any:
            fresh, region = kept[-2:]
            if done == 0 and count == height:
                return fresh.write_to_memory()
            return region.fetch(0, done, width, count)

        def fetch_anew(count: int) -> Any:
            begin()
            for start in range(0, done, count):
                kept[-1].fetch(0, start, width, min(count, done - start))
            return fetch(count)

        def rows(count: int) -> np.ndarray:
            nonlocal done
            content = attempt(lambda: fetch(count), lambda: fetch_anew(count))
            done += count
            return np.frombuffer(content, dtype).reshape(count, width, channels)

        try:
            _check_pixels(vips, path, kind, chunks)
        except vips.Error as error:
            raise damaged(path, error) from None
        attempt(begin)
        return rows

    return Source(path, width, height, channels, dtype, metadata, notes, open_rows)


def _load(vips: Any, path: Path, kind: str, options: dict[str, Any], keep: list[Any]) -> Any:
    # By a descriptor, since a name may be bytes that are no text.
    with open_regular(path) as file:
        source = vips.Source.new_from_descriptor(file.fileno())
    if kind == "tiff" and (image := load_tiff(vips, path, options, keep)) is not None:
        return image
    return getattr(vips.Image, f"{kind}load_source")(source, **{"access": "sequential", **options})


def _check_pixels(vips: Any, path: Path, kind: str, chunks: dict[bytes, bytes]) -> None:
    """Raise for pixels that libvips makes up: those of no data, and of no colour in a palette."""
    if kind == "jpeg":
        pixels, options = _without_head(path.read_bytes()), {"fail_on": "warning"}
        options["access"] = "sequential"
        try:
            run(vips, lambda: vips.Image.jpegload_buffer(pixels, **options).avg())
        except vips.Error as error:
            if _PIXELS_LOST.search(error.detail):
                raise
        return
    depth, colours = chunks.get(b"IHDR", bytes(10))[8:10]
    named = len(chunks.get(b"PLTE", b"")) // 3
    if colours != PALETTE or named >= 1 << depth:
        return
    # As a copy in which all that it does not name is transparent.
    marks = {b"PLTE": bytes(3 << depth), b"tRNS": b"\xff" * named + bytes((1 << depth) - named)}
    marked = io.BytesIO()
    ChunkWriter(marked, marks, ()).write(path.read_bytes())

    def least() -> float:
        image = vips.Image.pngload_buffer(marked.getvalue(), access="sequential")
        return image[image.bands - 1].min()

    if run(vips, least) == 0:
        raise UserError(beyond_palette(path, named))


def _without_head(jpeg: bytes) -> bytes:
    """A JPEG from its first table on, since of several warnings only the first is told."""
    place = 2
    while (found := _MARKER.search(jpeg, place)) and found[1] in _METADATA:
        place = found.end() + int.from_bytes(jpeg[found.end() :][:2], "big")
    return jpeg if found is None else jpeg[:2] + jpeg[found.start() :]


def _choose_page(
    path: Path, image: Any, kind: str, page: int | None, notes: list[str], animated: bool
) -> int | None:
    """The page to take where it is not the first, and a note where others are left out."""
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    full = list(range(pages))
    if kind == "tiff" and pages > 1:
        full = full_pages(path, pages)
    if page is not None and not 1 <= page <= len(full):
        raise UserError(f"{printable(path)}: --page {page}: it has {len(full)}")
    if len(full) > 1 and page is None:
        what = "page 1" if kind == "tiff" else "the first frame"
        more = "; --page N takes another" if kind == "tiff" else ""
        notes.append(f"{printable(path)}: {what} of {len(full)} is upscaled{more}")
    elif animated:
        notes.append(f"{printable(path)}: an animation, of which the first frame is upscaled")
    chosen = full[0 if page is None else page - 1]
    return chosen or None


def _metadata(image: Any, chunks: dict[bytes, bytes]) -> Metadata:
    def blob(name: str) -> bytes | None:
        return bytes(image.get(name)) if image.get_typeof(name) else None

    resolution = None
    # PNG may say no more than how wide pixels are for their height.
    if chunks.get(b"pHYs", b"").endswith(b"\1") or image.get_typeof("resolution-unit"):
        # libvips cannot write all that it reads.
        resolution = (min(image.xres, _FINEST), min(image.yres, _FINEST))
    profile = icc_profile(chunks[b"iCCP"]) if b"iCCP" in chunks else blob("icc-profile-data")
    return Metadata(
        profile,
        {name: chunks[name] for name in COLOUR_CHUNKS if name in chunks},
        chunks.get(b"eXIf") or blob("exif-data"),
        blob("xmp-data"),
        resolution,
    )


def _conversion(
    path: Path, image: Any, metadata: Metadata, notes: list[str]
) -> tuple[Callable[[Any], Any], Metadata]:
    """What makes a picture one of 8 or 16 bits in grey or RGB, and what then goes along."""
    shown = printable(path)
    kind, values = image.interpretation, image.format
    plain = replace(metadata, icc_profile=None, colour_chunks={})
    if kind in ("cmyk", "lab", "labs"):
        of_8_bits = image.get_typeof("bits-per-sample") and image.get("bits-per-sample") == 8
        depth = 8 if values == "uchar" or of_8_bits else 16
        # libvips passes over what is no whole profile of this kind.
        own = metadata.icc_profile or b""
        fits = own[16:20] == b"CMYK" and len(own) >= int.from_bytes(own[:4], "big") > 128
        how = "its profile" if fits else "a usual profile, since it has none"
        if kind != "cmyk":
            how = "its definition"
        notes.append(f"{shown}: {kind.upper().rstrip('S')}, converted to sRGB by {how}")
        return lambda image: _to_srgb(image, kind, depth), plain
    if image.bands > (2 if kind in ("b-w", "grey16") else 4):
        raise UserError(
            f"{shown}: has {image.bands} channels; grey or RGB is needed, with or without alpha"
        )
    if values in _FLOATS:
        _check_range(shown, image)
        notes.append(f"{shown}: floats from 0 to 1, upscaled as 16 bits")
        space = "grey16" if image.bands < 3 else "rgb16"
        return lambda image: (image * 65535).rint().cast("ushort").copy(interpretation=space), plain
    if values not in ("uchar", "ushort"):
        raise UserError(f"{shown}: its values are numbers of the kind '{values}'; {SAVE_AS}")
    return lambda image: image, metadata.of(image.bands)


def _to_srgb(image: Any, kind: str, depth: int) -> Any:
    if kind != "cmyk":
        return image.colourspace("srgb" if depth == 8 else "rgb16")
    alpha = image[4:] if image.bands > 4 else None
    colours = image.extract_band(0, n=4).icc_transform(
        "srgb", embedded=True, input_profile="cmyk", intent="relative", depth=depth
    )
    return colours if alpha is None else colours.bandjoin(alpha)


def _check_range(shown: str, image: Any) -> None:
    statistics = image.stats().numpy()
    smallest, largest, total = statistics[0, 0], statistics[0, 1], statistics[0, 2]
    if not np.isfinite(total) or smallest < 0 or largest > 1:
        raise UserError(
            f"{shown}: its values are floats from {smallest:g} to {largest:g}; those of a picture "
            f"lie between 0 and 1: scale them, or {SAVE_AS}"
        )
