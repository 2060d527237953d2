"""One picture from file to file, whole or not at all."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from esc_arch.errors import UserError, printable, reading
from esc_arch.inference.encoding import Encoding, save_rows
from esc_arch.inference.metadata import Metadata
from esc_arch.inference.picture_files import Picture, Source, open_picture
from esc_arch.whole_files import replacing

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler, Watch

DEFAULT_LARGEST = 1000
_NO_CONVOLUTION = "could not create a primitive"
# What torch's allocator says, its convolutions, which get memory by themselves, and new threads.
_OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    _NO_CONVOLUTION,
    "could not create a memory object",
    "can't start new thread",
)
# Where oneDNN, which computes torch's convolutions, has found no memory for new code, it makes none
# in this thread ever after, whatever memory there is then: it keeps the error by thread.
_this_thread = threading.local()


@dataclass(frozen=True)
class Job:
    """One picture to upscale.

    Attributes:
        source: Where it is.
        target: Where its result goes.
    """

    source: Path
    target: Path


@dataclass(frozen=True)
class Settings:
    """How pictures are read, computed and written.

    Attributes:
        encoding: How results are written.
        page: Which page of a file with several.
        largest: Megapixels of the largest picture that is taken.
        batch: How many pictures of one size go through the network together.
    """

    encoding: Encoding = field(default_factory=Encoding)
    page: int | None = None
    largest: int = DEFAULT_LARGEST
    batch: int = 1


@dataclass(frozen=True)
class Opened:
    """A picture that waits for the network.

    Attributes:
        job: What is to be done.
        source: The opened file.
        picture: What is in it; None if it goes tile by tile.
        notes: Lines to tell the user.
    """

    job: Job
    source: Source
    picture: Picture | None
    notes: list[str]


@dataclass(frozen=True)
class Result:
    """An upscaled picture that waits to be written.

    Attributes:
        job: What was done.
        rows: Its pixels in parts from top to bottom, perhaps still to be computed.
        shape: Height, width and channels.
        metadata: What goes along.
        notes: Lines to tell the user.
    """

    job: Job
    rows: Iterable[np.ndarray]
    shape: tuple[int, int, int]
    metadata: Metadata
    notes: list[str]


class TooLargeError(UserError):
    """The memory does not suffice."""


def run_job(
    job: Job,
    upscaler: "Upscaler",
    settings: Settings | None = None,
    watch: "Watch" = iter,
) -> Result:
    """Upscale one picture and write the result, whole or not at all.

    Args:
        job: What to do.
        upscaler: What to do it with.
        settings: How.
        watch: Wraps the list of tiles.

    Returns:
        What was written; its rows are used up.

    Raises:
        UserError: One line: the picture is bad, too large for the memory, or the result cannot be
            written.
    """
    settings = settings or Settings()
    opened = read(job, upscaler, settings)
    return smaller_if_needed(
        opened,
        upscaler,
        lambda tile: write(compute(opened, upscaler, watch, tile), settings.encoding),
    )


def read(job: Job, upscaler: "Upscaler", settings: Settings) -> Opened:
    """Open a picture, and read it unless it goes tile by tile.

    Raises:
        UserError: One line: it is bad, larger than anybody is likely to mean, or its result would
            not fit the format.
    """
    shown = printable(job.source)
    try:
        source = open_picture(job.source, settings.page)
    except MemoryError as error:
        raise TooLargeError(f"{shown}: no memory is left to open it") from error
    if source.width * source.height > settings.largest * 1_000_000:
        raise UserError(
            f"{shown}: {source.width} x {source.height} pixels are more than "
            f"{settings.largest} megapixels; --max-megapixels N lifts the limit"
        )
    height, width = (side * upscaler.scale for side in (source.height, source.width))
    encoding = settings.encoding
    with _told_of(job.source):
        lost = encoding.check(width, height, source.channels, source.dtype)
    notes = source.notes + [f"{shown}: {line}" for line in lost]
    if encoding.format != "png" and source.metadata.colour_chunks:
        names = ", ".join(name.decode() for name in source.metadata.colour_chunks)
        notes.append(f"{shown}: its {names} say which colours it means; only PNG keeps them")
    if encoding.format == "tiff" and source.metadata.exif and not encoding.strip:
        notes.append(f"{shown}: its EXIF is left out; PNG, JPEG and WebP keep it")
    if upscaler.tiles_needed(source.height, source.width):
        if (note := upscaler.why_smaller_tiles(source.height, source.width)) is not None:
            notes.append(f"{shown}: {note}")
        return Opened(job, source, None, notes)
    with _memory(job, source):
        return Opened(job, source, source.read(), notes)


def compute(
    opened: Opened, upscaler: "Upscaler", watch: "Watch" = iter, tile: int | None = None
) -> Result:
    """Upscale what `read` returned; of one that goes tile by tile the rows are still to come.

    Args:
        opened: The picture.
        upscaler: What to do it with.
        watch: Wraps the list of tiles.
        tile: Side of tiles, where the usual ones turned out to be too large.
    """
    job, source = opened.job, opened.source
    rows: Iterable[np.ndarray]
    if opened.picture is None or tile is not None:
        rows = _guarded(job, source, upscaler.upscale_rows(source, watch, tile))
    else:
        with _told_of(job.source), _memory(job, source):
            rows = [upscaler.upscale_picture(opened.picture, watch).pixels]
    return _result(opened, upscaler, rows)


def compute_together(group: Sequence[Opened], upscaler: "Upscaler") -> list[Result]:
    """Upscale pictures of one size at once.

    Raises:
        UserError: It concerns any of them, or all.
    """
    with _memory(group[0].job, group[0].source):
        pictures = upscaler.upscale_pictures([opened.picture for opened in group])
    return [
        _result(opened, upscaler, [picture.pixels])
        for opened, picture in zip(group, pictures, strict=True)
    ]


def smaller_if_needed(
    opened: Opened, upscaler: "Upscaler", attempt: Callable[[int | None], Result]
) -> Result:
    """Do something, with ever smaller tiles while the memory does not suffice.

    Args:
        opened: The picture that is worked on.
        upscaler: Whose tiles they are.
        attempt: Takes the side of tiles; None for the usual way.
    """
    tile = None
    while True:
        try:
            with _memory(opened.job, opened.source):
                if getattr(_this_thread, "makes_no_convolutions", False):
                    with ThreadPoolExecutor(1) as another_thread:
                        result = another_thread.submit(_alone, attempt, tile).result()
                else:
                    result = attempt(tile)
        except TooLargeError:
            tile = upscaler.smaller_tile(opened.source.height, opened.source.width, tile)
            if tile is None:
                raise
            continue
        if tile is not None:
            result.notes.append(
                f"{printable(opened.job.source)}: in tiles of {tile}, since the memory was used up"
            )
        return result


def _alone(attempt: Callable[[int | None], Result], tile: int | None) -> Result:
    """Do something without threads of OpenMP, which ends the process where it can make none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return attempt(tile)
    finally:
        torch.set_num_threads(threads)


def _result(opened: Opened, upscaler: "Upscaler", rows: Iterable[np.ndarray]) -> Result:
    source, scale = opened.source, upscaler.scale
    shape = (source.height * scale, source.width * scale, source.channels)
    return Result(opened.job, rows, shape, source.metadata, [*opened.notes])


def write(result: Result, encoding: Encoding) -> Result:
    """Write a result beside its place and rename it there once it is complete.

    Returns:
        The same, with its rows used up.

    Raises:
        UserError: One line: it cannot be written, or what is computed only now fails.
    """
    target = result.job.target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            save_rows(file, result.rows, result.shape, result.metadata, encoding)
        return result
    except UserError as error:
        raise _about(result.job.source, error) from None
    except OSError as error:
        raise UserError(
            f"{printable(target)}: cannot be written: {error.strerror or error}"
        ) from None
    finally:
        # Left in the middle, they would keep the network from other threads.
        if isinstance(result.rows, Generator):
            result.rows.close()


def _guarded(
    job: Job, source: Source, rows: Iterator[np.ndarray]
) -> Generator[np.ndarray, None, None]:
    with _memory(job, source):
        yield from rows


@contextmanager
def _told_of(source: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise _about(source, error) from None


def _about(source: Path, error: UserError) -> UserError:
    name = printable(source)
    return error if str(error).startswith(name) else type(error)(f"{name}: {error}")


@contextmanager
def _memory(job: Job, source: Source) -> Iterator[None]:
    try:
        with reading(job.source):
            yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise _too_large(job, source) from error
    except RuntimeError as error:
        # What torch raises for the CPU's memory has no class of its own.
        if not any(reason in str(error) for reason in _OUT_OF_MEMORY):
            raise
        if _NO_CONVOLUTION in str(error):
            _this_thread.makes_no_convolutions = True
        raise _too_large(job, source) from error


def _too_large(job: Job, source: Source) -> TooLargeError:
    return TooLargeError(
        f"{printable(job.source)}: {source.width} x {source.height} pixels are too many for the "
        "memory at once; use --tile with fewer pixels, such as --tile 256"
    )
