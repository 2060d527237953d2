"""One picture from file to file, whole or not at all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from esc_arch.errors import UserError, printable
from esc_arch.inference.encoding import Encoding, save_rows
from esc_arch.inference.metadata import Metadata
from esc_arch.inference.picture_files import Picture, Source, open_picture
from esc_arch.whole_files import replacing

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler, Watch

DEFAULT_LARGEST = 1000


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


def run_job(
    job: Job,
    upscaler: "Upscaler",
    encoding: Encoding | None = None,
    page: int | None = None,
    largest: int = DEFAULT_LARGEST,
    watch: "Watch" = iter,
) -> Result:
    """Upscale one picture and write the result, whole or not at all.

    Args:
        job: What to do.
        upscaler: What to do it with.
        encoding: How to write it.
        page: Which page of a file with several.
        largest: Megapixels of the largest picture that is taken.
        watch: Wraps the list of tiles.

    Returns:
        What was written; its rows are used up.

    Raises:
        UserError: One line: the picture is bad, too large for the memory, or the result cannot be
            written.
    """
    encoding = encoding or Encoding()
    source, picture = read(job, upscaler, page, largest)
    result = compute(job, source, picture, upscaler, encoding, watch)
    write(result, encoding)
    return result


def read(
    job: Job, upscaler: "Upscaler", page: int | None = None, largest: int = DEFAULT_LARGEST
) -> tuple[Source, Picture | None]:
    """Open a picture, and read it unless it goes tile by tile.

    Raises:
        UserError: One line: it is bad, or larger than anybody is likely to mean.
    """
    source = open_picture(job.source, page)
    if source.width * source.height > largest * 1_000_000:
        raise UserError(
            f"{printable(job.source)}: {source.width} x {source.height} pixels are more than "
            f"{largest} megapixels; --max-megapixels N lifts the limit"
        )
    if upscaler.tiles_needed(source.height, source.width):
        return source, None
    with _memory(job, source):
        return source, source.read()


def compute(
    job: Job,
    source: Source,
    picture: Picture | None,
    upscaler: "Upscaler",
    encoding: Encoding,
    watch: "Watch" = iter,
) -> Result:
    """Upscale what `read` returned; of one that goes tile by tile the rows are still to come."""
    scale = upscaler.scale
    shape = (source.height * scale, source.width * scale, source.channels)
    with _told_of(job.source):
        notes = source.notes + [
            f"{printable(job.source)}: {line}"
            for line in encoding.check(shape[1], shape[0], shape[2], source.dtype)
        ]
    if encoding.format != "png" and source.metadata.colour_chunks:
        names = ", ".join(name.decode() for name in source.metadata.colour_chunks)
        notes.append(f"{printable(job.source)}: its {names} say which colours it means; only PNG "
                     "keeps them")  # fmt: skip
    if picture is None:
        rows: Iterable[np.ndarray] = _guarded(job, source, upscaler.upscale_rows(source, watch))
    else:
        with _told_of(job.source), _memory(job, source):
            rows = [upscaler.upscale_picture(picture, watch).pixels]
    return Result(job, rows, shape, source.metadata, notes)


def write(result: Result, encoding: Encoding) -> None:
    """Write a result beside its place and rename it there once it is complete.

    Raises:
        UserError: One line: it cannot be written, or what is computed only now fails.
    """
    target = result.job.target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            save_rows(file, result.rows, result.shape, result.metadata, encoding)
    except UserError as error:
        raise _about(result.job.source, error) from None
    except OSError as error:
        raise UserError(
            f"{printable(target)}: cannot be written: {error.strerror or error}"
        ) from None


def _guarded(job: Job, source: Source, rows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
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
    return error if str(error).startswith(name) else UserError(f"{name}: {error}")


@contextmanager
def _memory(job: Job, source: Source) -> Iterator[None]:
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise _too_large(job, source) from error
    except RuntimeError as error:
        # What torch raises for the CPU's memory has no class of its own.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise _too_large(job, source) from error


def _too_large(job: Job, source: Source) -> UserError:
    return UserError(
        f"{printable(job.source)}: {source.width} x {source.height} pixels are too many for the "
        "memory at once; use --tile with fewer pixels, such as --tile 256"
    )
