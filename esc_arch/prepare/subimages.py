"""From images to training LMDBs: sub-images of HR and, for each scale, of the LR to match."""

import hashlib
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from esc_arch.errors import UserError
from esc_arch.prepare.images import encode_png, list_images, read_image, read_regular
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.lmdb_writer import Fingerprint, LmdbWriter
from esc_arch.prepare.parallel import run_jobs

# 12 divides every side of DIV2K, so that one HR serves x2, x3 and x4; other images are cut to it.
COMMON_MULTIPLE = 12


@dataclass(frozen=True)
class Cutting:
    """How images are cut.

    Attributes:
        crop_size: Side of a sub-image in HR pixels.
        step: Distance of neighbouring sub-images; the last of a row ends at the border.
        min_side: Images with a shorter side are too small. From here up to `crop_size` a side is
            taken whole. Default: `crop_size`.
        skip_small: Leave images that are too small out, instead of calling them an error.
        multiple: Images are first cut at the bottom and right to a multiple of this.
    """

    crop_size: int = 480
    step: int = 240
    min_side: int | None = None
    skip_small: bool = False
    multiple: int = COMMON_MULTIPLE

    def __post_init__(self) -> None:
        for option, value in (("--crop-size", self.crop_size), ("--step", self.step)):
            if value < 1 or value % self.multiple:
                raise UserError(
                    f"{option} {value}: a positive multiple of {self.multiple} is needed"
                )
        if self.min_side is not None and not 1 <= self.min_side <= self.crop_size:
            raise UserError(
                f"--min-side {self.min_side}: a number from 1 to --crop-size {self.crop_size} is "
                "needed"
            )

    @property
    def smallest_side(self) -> int:
        """The shortest side of an image, before it is cut to the multiple, that is enough."""
        return self.crop_size if self.min_side is None else self.min_side


@dataclass(frozen=True)
class Source:
    """One HR image of a data set.

    Attributes:
        name: Prefix of its keys: letters, digits, `_` and `-`.
        hr: Its file.
        lr: Official LR files by scale. Scales that are not in it are made with `imresize`.
    """

    name: str
    hr: Path
    lr: dict[int, Path] = field(default_factory=dict)

    def files(self, scale: int) -> list[Path]:
        """What the sub-images of this scale (1: HR) are cut from."""
        return [self.hr] + ([self.lr[scale]] if scale in self.lr else [])

    def stamp(self, scale: int) -> str:
        """Sizes and modification times of the files for this scale, in bytes and nanoseconds.

        Raises:
            UserError: A file cannot be read.
        """
        try:
            found = [file.stat() for file in self.files(scale)]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        return "+".join(f"{one.st_size}@{one.st_mtime_ns}" for one in found)


class _TooSmallError(UserError):
    """An image has too few pixels to be cut."""


@dataclass(frozen=True)
class _Job:
    source: Source
    cutting: Cutting
    scales: tuple[int, ...]


@dataclass(frozen=True)
class _Cut:
    """Checksums and PNG files of the sub-images by scale, and what to note of the source."""

    checksums: dict[int, str]
    images: dict[int, list[bytes]]
    note: str


def key_of(path: Path) -> str:
    """The file's name as a key BasicSR can read: no dot, no space, ASCII."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)


def find_sources(
    folders: list[Path],
    option: str,
    lr_folders: dict[int, Path] | None = None,
    prefix: str = "",
    recursive: bool = False,
) -> list[Source]:
    """The images of one or more folders.

    Args:
        folders: HR folders.
        option: What the user calls them, for messages.
        lr_folders: Folders with official LR by scale, whose files are named like the HR files,
            with or without `x2`, `x3`, `x4` after the name.
        prefix: Set before the names of the images.
        recursive: Look in the folders below, too.

    Raises:
        UserError: A folder has no images, names clash, or LR files are missing.
    """
    sources: dict[str, Source] = {}
    problems = []
    lr_files = {
        scale: {path.stem: path for path in list_images(folder, f"--lr-x{scale}")}
        for scale, folder in (lr_folders or {}).items()
    }
    for folder in folders:
        for path in list_images(folder, option, recursive):
            lr = {}
            for scale, files in lr_files.items():
                found = files.get(f"{path.stem}x{scale}") or files.get(path.stem)
                if found is None:
                    folder_given = lr_folders[scale]
                    problems.append(
                        f"--lr-x{scale} {folder_given}: {path.stem}x{scale}{path.suffix} is missing"
                    )
                else:
                    lr[scale] = found
            name = prefix + key_of(path)
            if name in sources:
                problems.append(
                    f"{option}: {sources[name].hr} and {path} would both be called {name}; "
                    "rename one"
                )
            sources[name] = Source(name, path, lr)
    if problems:
        raise UserError(*problems)
    return [sources[name] for name in sorted(sources)]


def sub_image_starts(side: int, crop_size: int, step: int) -> list[int]:
    """Where the sub-images of one side start: every step, and one that ends at the border."""
    if side <= crop_size:
        return [0]
    starts = list(range(0, side - crop_size + 1, step))
    if starts[-1] + crop_size < side:
        starts.append(side - crop_size)
    return starts


def cut_into_sub_images(image: np.ndarray, crop_size: int, step: int) -> list[np.ndarray]:
    """Sub-images of a (H, W, C) array, row by row. A side below the crop size is taken whole."""
    height, width = image.shape[:2]
    return [
        image[top : top + crop_size, left : left + crop_size]
        for top in sub_image_starts(height, crop_size, step)
        for left in sub_image_starts(width, crop_size, step)
    ]


def pack_sub_images(
    sources: Iterable[Source],
    databases: dict[int, Path],
    cutting: Cutting,
    workers: int | None = None,
) -> dict[str, int]:
    """Cut images into sub-images and pack them, one LMDB for HR and one for each scale.

    Keys are `NAME_s001`, `NAME_s002` and so on, the same in HR and LR, and each LMDB has the
    meta_info.txt that BasicSR's datasets read. What an earlier run has already packed is not made
    again. Bad images do not stop the others.

    Args:
        sources: The images.
        databases: LMDB folder by scale; scale 1 is HR.
        cutting: How to cut.
        workers: Processes; default the cores.

    Returns:
        Counts for the first LMDB: `sources`, `sub-images`, and where there are any, `grey`
        (images that were grey and are now RGB) and `small` (left out, being too small).

    Raises:
        UserError: Images are missing, damaged or too small. All others are packed, and a second
            run only makes those that were mended; no LMDB is renamed into place before.
        UserError: An LMDB was made with other settings, or cannot be written.
    """
    problems: list[str] = []
    too_small: list[str] = []
    readable: list[Source] = []
    stamps: dict[int, dict[str, str]] = {scale: {} for scale in databases}
    for source in sources:
        try:
            of_source = {scale: source.stamp(scale) for scale in databases}
        except UserError as error:
            problems.append(str(error))
            continue
        readable.append(source)
        for scale, stamp in of_source.items():
            stamps[scale][source.name] = stamp

    with ExitStack() as stack:
        writers: dict[int, LmdbWriter] = {}
        for scale, path in databases.items():
            writer = LmdbWriter(path, _recipe(readable, scale, cutting))
            writers[scale] = stack.enter_context(writer)
        _recognise(readable, writers, stamps, workers)
        for scale, writer in writers.items():
            if writer.complete:
                _check_unchanged(writer, stamps[scale])
        jobs = []
        for source in readable:
            scales = tuple(
                scale
                for scale, writer in writers.items()
                if not writer.has(source.name, stamps[scale][source.name])
            )
            if scales:
                jobs.append(_Job(source, cutting, scales))
        title = next(iter(databases.values())).name
        for job, cut in run_jobs(_cut_source, jobs, len(jobs), title, workers):
            if isinstance(cut, _TooSmallError):
                too_small.append(str(cut))
                continue
            if isinstance(cut, UserError):
                problems.append(str(cut))
                continue
            name = job.source.name
            for scale, images in cut.images.items():
                fingerprint = Fingerprint(stamps[scale][name], cut.checksums[scale])
                writers[scale].put(name, fingerprint, images, cut.note)
        if too_small:
            problems.append(_told_together(sorted(too_small), cutting))
        if problems:
            raise UserError(*sorted(problems))
        for scale, writer in writers.items():
            writer.finish(stamps[scale])
        return next(iter(writers.values())).counts()


def _told_together(too_small: list[str], cutting: Cutting) -> str:
    """One line about all images that are too small, of which a folder may have thousands."""
    first, more = too_small[0], len(too_small) - 1
    others = f", and {more} more" if more else ""
    return (
        f"{first}{others}, too small for a sub-image of {cutting.crop_size}; take "
        f"{'them' if more else 'it'} out, leave out all such images with --skip-small, or admit "
        "smaller ones with --min-side"
    )


def _recipe(sources: list[Source], scale: int, cutting: Cutting) -> dict:
    given = sum(scale in source.lr for source in sources)
    return {
        "scale": scale,
        "crop_size": cutting.crop_size,
        "step": cutting.step,
        "min_side": cutting.smallest_side,
        "multiple": cutting.multiple,
        "official_lr": given > 0,
    }


def _recognise(
    sources: list[Source],
    writers: dict[int, LmdbWriter],
    stamps: dict[int, dict[str, str]],
    workers: int | None,
) -> None:
    """Find those sources whose files have other stamps but the contents that are packed."""
    jobs = []
    for source in sources:
        scales = tuple(
            scale
            for scale, writer in writers.items()
            if writer.checksum(source.name) is not None
            and not writer.has(source.name, stamps[scale][source.name])
        )
        if scales:
            jobs.append((source, scales))
    same: dict[int, dict[str, str]] = {scale: {} for scale in writers}
    title = "comparing with what is packed"
    for (source, _), checksums in run_jobs(_checksums, jobs, len(jobs), title, workers):
        # What cannot be read now is an error when it is to be cut.
        for scale, checksum in {} if isinstance(checksums, UserError) else checksums.items():
            if writers[scale].checksum(source.name) == checksum:
                same[scale][source.name] = stamps[scale][source.name]
    for scale, writer in writers.items():
        writer.restamp(same[scale])


def _checksums(job: tuple[Source, tuple[int, ...]]) -> dict[int, str]:
    """SHA-256 of the files for each scale."""
    source, scales = job
    files = {file for scale in scales for file in source.files(scale)}
    try:
        digests = {file: hashlib.sha256(read_regular(file)).hexdigest() for file in files}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    return {scale: "+".join(digests[file] for file in source.files(scale)) for scale in scales}


def _check_unchanged(writer: LmdbWriter, stamps: dict[str, str]) -> None:
    changed = [name for name, stamp in stamps.items() if not writer.has(name, stamp)]
    if changed or writer.counts()["sources"] != len(stamps):
        what = "some are missing now"
        if changed:
            known = writer.checksum(changed[0]) is not None
            what = f"{changed[0]} {'has changed since' if known else 'was not among them'}"
        raise UserError(
            f"{writer.path}: was made from other images ({what}); remove it or choose another --out"
        )


def _cut_source(job: _Job) -> _Cut:
    source, cutting = job.source, job.cutting
    # Before the images are read: should one change meanwhile, the next run makes it anew.
    checksums = _checksums((source, job.scales))
    hr, was_grey = read_image(source.hr)
    full_height, full_width = hr.shape[:2]
    height, width = (side - side % cutting.multiple for side in (full_height, full_width))
    # The image counts as it is: cut to the multiple, 256 pixels are 252.
    if min(full_height, full_width) < cutting.smallest_side or min(height, width) < 1:
        if cutting.skip_small:
            return _Cut(checksums, {scale: [] for scale in job.scales}, "small")
        raise _TooSmallError(f"{source.hr}: {full_width}x{full_height} pixels")
    hr = hr[:height, :width]
    images = {}
    for scale in job.scales:
        if scale == 1:
            image = hr
        elif scale in source.lr:
            image = _official_lr(source, scale, full_height, full_width)
            image = image[: height // scale, : width // scale]
        else:
            image = imresize(hr, 1 / scale)
        pieces = cut_into_sub_images(image, cutting.crop_size // scale, cutting.step // scale)
        images[scale] = [encode_png(piece) for piece in pieces]
    return _Cut(checksums, images, "grey" if was_grey else "")


def _official_lr(source: Source, scale: int, height: int, width: int) -> np.ndarray:
    image, _ = read_image(source.lr[scale])
    if image.shape[:2] != (height // scale, width // scale):
        raise UserError(
            f"{source.lr[scale]}: {image.shape[1]}x{image.shape[0]} pixels, but x{scale} of "
            f"{source.hr.name} has {width // scale}x{height // scale}"
        )
    return image
