"""Writing pictures: PNG, JPEG, WebP or TIFF, as a whole or from rows as they come."""

import io
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from esc_arch.errors import UserError
from esc_arch.inference.metadata import Metadata, upright_exif
from esc_arch.inference.picture_files import Picture, vips_or_none
from esc_arch.inference.png_chunks import ChunkWriter, icc_chunk, stored_png
from esc_arch.inference.vips_errors import first_line, tells_of_memory

# Format -> what its files end in; the first is what results get.
SUFFIXES = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
}
_LARGEST_SIDE = {"jpeg": 65535, "webp": 16383}


@dataclass(frozen=True)
class Encoding:
    """How results are written.

    Attributes:
        format: A key of `SUFFIXES`.
        quality: From 1 to 100, of JPEG and WebP; for WebP 100 is lossless.
        strip: Whether to leave out all that does not say which colours the values mean.
    """

    format: str = "png"
    quality: int | None = None
    strip: bool = False

    @property
    def suffix(self) -> str:
        """What the names of results end in."""
        return SUFFIXES[self.format][0]

    def check(self, width: int, height: int, channels: int, dtype: np.dtype) -> list[str]:
        """Find out before anything is computed whether the format can hold a result.

        Returns:
            Lines on what will be lost.

        Raises:
            UserError: It cannot.
        """
        largest = _LARGEST_SIDE.get(self.format)
        if largest is not None and max(width, height) > largest:
            raise UserError(
                f"{width} x {height} pixels do not fit {self.format.upper()} (at most {largest} a "
                "side); --format png or tiff takes them"
            )
        if self.format == "jpeg" and channels in (2, 4):
            raise UserError("JPEG has no transparency; --format png or webp has")
        if self.format in ("jpeg", "webp") and dtype != np.uint8:
            return [f"{self.format.upper()} has 8 bits a value: the 16 of this picture are rounded"]
        return []


def encode(picture: Picture, encoding: Encoding | None = None) -> bytes:
    """The file of a picture: values, alpha, colour profile and metadata as they are."""
    encoding = encoding or Encoding()
    file = io.BytesIO()
    height, width, channels = picture.pixels.shape
    save_rows(file, [picture.pixels], (height, width, channels), picture.metadata, encoding)
    return file.getvalue()


def save_rows(
    file: BinaryIO,
    rows: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    metadata: Metadata,
    encoding: Encoding,
) -> None:
    """Write a picture of which the rows come in parts, from top to bottom.

    Args:
        file: Where it goes; readable and seekable.
        rows: Parts (h, W, C), uint8 or uint16. One part is taken as the whole picture.
        shape: Height, width and channels of all.
        metadata: What goes along.
        encoding: How.

    Raises:
        OSError: It cannot be written.
        UserError: Without libvips, what it is needed for.
    """
    height, width, channels = shape
    metadata = metadata.stripped() if encoding.strip else metadata
    parts = iter(rows)
    first = next(parts)
    vips = vips_or_none()
    if vips is None:
        from esc_arch.inference.plain_pictures import encode_plain

        pixels = np.concatenate([first, *parts]) if len(first) < height else first
        file.write(encode_plain(Picture(pixels, metadata), encoding.format, encoding.quality))
        return
    if len(first) == height:
        values = "uchar" if first.dtype == np.uint8 else "ushort"
        content = np.ascontiguousarray(first).data
        image = vips.Image.new_from_memory(content, width, height, channels, values)
        _save(vips, image, file, metadata, encoding)
    else:
        _save_streamed(vips, file, chain([first], parts), shape, metadata, encoding)


def _save(vips: Any, image: Any, file: BinaryIO, metadata: Metadata, encoding: Encoding) -> None:
    """Encode an image into a file; errors in writing come out as they were raised."""
    if image.format == "ushort" and encoding.format in ("jpeg", "webp"):
        image = (image / 257).rint().cast("uchar")
    spaces = ("grey16", "rgb16") if image.format == "ushort" else ("b-w", "srgb")
    image = image.copy(interpretation=spaces[image.bands > 2])
    exif = upright_exif(metadata.exif, image.width, image.height)
    image.set_type(vips.GValue.gdouble_type, "xres", 1.0)
    blobs = {"xmp-data": metadata.xmp}
    keep = 2 + 8  # XMP and profile.
    if metadata.resolution is not None:
        image = image.copy(xres=metadata.resolution[0], yres=metadata.resolution[1])
        image.set_type(vips.GValue.gstr_type, "resolution-unit", "in")
    writer: Any = file
    if encoding.format == "png":
        chunks = dict(metadata.colour_chunks)
        if exif is not None:
            chunks[b"eXIf"] = exif
        if metadata.icc_profile is not None:
            chunks[b"iCCP"] = icc_chunk(metadata.icc_profile)
        # Where none is known libvips makes up a resolution.
        unknown = (b"pHYs",) if metadata.resolution is None else ()
        writer = ChunkWriter(file, chunks, unknown)
        # Paeth at level 6 makes files of the size of "all filters" in half the time.
        options = {"compression": 6, "filter": "paeth"}
    else:
        blobs["icc-profile-data"] = metadata.icc_profile
        blobs["exif-data"] = exif and b"Exif\0\0" + exif
        keep += 1
        quality = encoding.quality or 95
        options = {
            "jpeg": {"Q": quality, "subsample_mode": "off" if quality >= 90 else "on"},
            "webp": {"lossless": True} if encoding.quality in (None, 100) else {"Q": quality},
            "tiff": {"compression": "deflate", "predictor": "horizontal", "resunit": "inch"},
        }[encoding.format]
    for name, blob in blobs.items():
        if blob:
            image.set_type(vips.GValue.blob_type, name, blob)
    failures: list[BaseException] = []
    target = _target(vips, writer, file, failures)
    try:
        getattr(image, f"{encoding.format}save_target")(target, keep=keep, **options)
    except vips.Error as error:
        if failures:
            raise failures[0] from None
        reason = first_line(error)
        if tells_of_memory(reason):
            raise MemoryError(reason) from None
        raise UserError(f"cannot be encoded as {encoding.format.upper()}: {reason}") from None


def _target(vips: Any, writer: Any, file: BinaryIO, failures: list[BaseException]) -> Any:
    """What libvips writes to; it only learns that writing failed, not why."""
    target = vips.TargetCustom()

    def guarded(do: Any, failed: Any) -> Any:
        def call(*arguments: Any) -> Any:
            try:
                return do(*arguments)
            except BaseException as error:
                failures.append(error)
                return failed

        return call

    def write(data: bytes) -> int:
        writer.write(data)
        return len(data)

    target.on_write(guarded(write, -1))
    # TIFF goes back to its header.
    target.on_seek(guarded(file.seek, -1))
    target.on_read(guarded(file.read, b""))
    return target


def _save_streamed(
    vips: Any,
    file: BinaryIO,
    rows: Iterator[np.ndarray],
    shape: tuple[int, int, int],
    metadata: Metadata,
    encoding: Encoding,
) -> None:
    """Encode in a thread of its own, which reads from a pipe, what this one computes."""
    failures: list[BaseException] = []
    reading, writing = os.pipe()

    def encode() -> None:
        try:
            source = vips.Source.new_from_descriptor(reading)
            image = vips.Image.pngload_source(source, access="sequential", fail_on="error")
            _save(vips, image, file, metadata, encoding)
        except BaseException as error:
            failures.append(error)
        finally:
            while os.read(reading, 1 << 20):  # Else the other would wait for ever.
                pass
            os.close(reading)

    thread = threading.Thread(target=encode, name="encoder", daemon=True)
    thread.start()
    try:
        with open(writing, "wb") as pipe:
            for part in stored_png(shape, rows):
                pipe.write(part)
                if failures:
                    break
    finally:
        thread.join()
    if failures:
        raise failures[0]
