"""Benchmark sets as folders: HR, and LR_bicubic/X2, X3, X4 as MATLAB's bicubic makes them."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from esc_arch.errors import UserError
from esc_arch.prepare.images import encode_png, find_images, read_image
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.known_sets import BENCHMARK_SETS
from esc_arch.prepare.parallel import run_jobs
from esc_arch.whole_files import write_atomically

# Folders that hold a set's HR images, best first; "" is the set's own folder.
_HR_FOLDERS = ("HR", "GT", "original", "GTmod12", "image_SRF_2", "image_SRF_4", "")
_HR_SUFFIX = re.compile(r"(_SRF_\d)?[_-]?(HR|GT)$", re.IGNORECASE)
_LR_NAME = re.compile(r"(_LR|x\d|_bicubic)$", re.IGNORECASE)


@dataclass(frozen=True)
class SetReport:
    """What was made of one set.

    Attributes:
        name: The set.
        images: Number of images.
        smallest: Width and height of the image with the fewest pixels.
        largest: Width and height of the image with the most pixels.
        grey: Images that were grey and are now RGB.
        verified: LR images that equal the user's official ones bit for bit.
        checksum: SHA-256 over names and pixels of HR and LR; the PNG coding does not matter.
    """

    name: str
    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    grey: int
    verified: int
    checksum: str

    def __str__(self) -> str:
        sizes = "{}x{} to {}x{}".format(*self.smallest, *self.largest)
        grey = f", {self.grey} grey made RGB" if self.grey else ""
        verified = f", {self.verified} LR equal the official ones" if self.verified else ""
        return (
            f"{self.name}: {self.images} images, {sizes}{grey}{verified}; SHA-256 of their pixels "
            f"{self.checksum}"
        )


@dataclass(frozen=True)
class _Job:
    hr: Path
    name: str
    out: Path
    scales: tuple[int, ...]
    official_lr: dict[int, Path]


@dataclass(frozen=True)
class _Made:
    size: tuple[int, int]
    grey: bool
    verified: int
    digest: bytes


def find_benchmark_sets(source: Path, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """Folders of the benchmark sets below a folder, in any case and by any of their names.

    Args:
        source: The folder.
        names: Keys of `BENCHMARK_SETS`.

    Returns:
        The folders found by name, and a line for each set that is not there.

    Raises:
        UserError: The folder cannot be read.
    """
    folders = _folders_in(source)
    found, missing = {}, []
    for name in names:
        known_as = (name, *BENCHMARK_SETS[name][1])
        here = [folders[alias.lower()] for alias in known_as if alias.lower() in folders]
        if here:
            found[name] = here[0]
        else:
            missing.append(f"--src {source}: no folder {' or '.join(known_as)} in it")
    return found, missing


def prepare_set(
    name: str,
    source: Path,
    out: Path,
    scales: tuple[int, ...] = (2, 3, 4),
    count: int | None = None,
    workers: int | None = None,
) -> SetReport:
    """Make `HR/NAME.png` and `LR_bicubic/X2/NAMEx2.png` and so on of one set.

    HR stays whole; for LR it is first cut to a multiple of the scale, as BasicSR cuts it again in
    validation. Where the source has official LR images ours are compared with them. Files already
    there with the right pixels are left as they are.

    Args:
        name: What to call the set in the report.
        source: The set's folder, in any of the usual layouts.
        out: The folder to make.
        scales: Scales to make LR for.
        count: Images the set must have; None for any number.
        workers: Processes; default the cores.

    Raises:
        UserError: Wrong count, damaged images, or LR that differ from the official ones.
        UserError: The folder has no images, or a file cannot be written.
    """
    files = _hr_files(source)
    names = [_HR_SUFFIX.sub("", path.stem) for path in files]
    problems = []
    if count is not None and len(files) != count:
        problems.append(f"{source}: {len(files)} HR images; {name} has {count}")
    for twice in sorted({one for one in names if names.count(one) > 1}):
        problems.append(f"{source}: more than one HR image is called {twice}")
    if problems:
        raise UserError(*problems)
    jobs = [
        _Job(path, image, out, tuple(scales), _official_lr(source, image, path.stem, scales))
        for path, image in zip(files, names, strict=True)
    ]
    made: dict[str, _Made] = {}
    for job, result in run_jobs(_prepare_image, jobs, len(jobs), name, workers):
        if isinstance(result, UserError):
            problems += result.lines
        else:
            made[job.name] = result
    if problems:
        raise UserError(*sorted(problems))
    by_size = sorted((image.size for image in made.values()), key=lambda size: size[0] * size[1])
    digest = hashlib.sha256()
    for image in sorted(made):
        digest.update(image.encode() + b"\0" + made[image].digest)
    return SetReport(
        name=name,
        images=len(made),
        smallest=by_size[0],
        largest=by_size[-1],
        grey=sum(image.grey for image in made.values()),
        verified=sum(image.verified for image in made.values()),
        checksum=digest.hexdigest(),
    )


def _folders_in(folder: Path) -> dict[str, Path]:
    """By their names in lower case."""
    try:
        return {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    except OSError as error:
        raise UserError(f"--src {folder}: {error.strerror}; a folder is needed") from None


def _hr_files(source: Path) -> list[Path]:
    folders = _folders_in(source)
    folders[""] = source
    for folder in _HR_FOLDERS:
        if folder.lower() not in folders:
            continue
        files = find_images(folders[folder.lower()], "--src")
        if not files:
            continue
        # Some archives keep HR and LR of an image side by side.
        marked = [path for path in files if _HR_SUFFIX.search(path.stem)]
        return marked or [path for path in files if not _LR_NAME.search(path.stem)] or files
    raise UserError(f"--src {source}: no images in it nor in its HR, GT, original or GTmod12")


def _official_lr(source: Path, name: str, stem: str, scales: tuple[int, ...]) -> dict[int, Path]:
    found = {}
    for scale in scales:
        folder = source / "LR_bicubic" / f"X{scale}"
        candidates = [folder / f"{one}x{scale}.png" for one in (name, stem)]
        present = [path for path in candidates if path.exists()]
        if present:
            found[scale] = present[0]
    return found


def _prepare_image(job: _Job) -> _Made:
    hr, grey = read_image(job.hr)
    height, width = hr.shape[:2]
    digest = hashlib.sha256()
    problems = []
    verified = 0
    outputs = {job.out / "HR" / f"{job.name}.png": hr}
    for scale in job.scales:
        if min(height, width) < scale:
            raise UserError(f"{job.hr}: {width}x{height} pixels, too small for x{scale}")
        lr = imresize(hr[: height - height % scale, : width - width % scale], 1 / scale)
        if scale in job.official_lr:
            difference = _difference(lr, job.official_lr[scale])
            if difference:
                problems.append(difference)
            else:
                verified += 1
        outputs[job.out / "LR_bicubic" / f"X{scale}" / f"{job.name}x{scale}.png"] = lr
    if problems:
        raise UserError(*problems)
    for path, image in outputs.items():
        digest.update(repr(image.shape).encode() + image.tobytes())
        if not _has_pixels(path, image):
            try:
                write_atomically(path, encode_png(image))
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from None
    return _Made((width, height), grey, verified, digest.digest())


def _difference(lr: np.ndarray, official: Path) -> str:
    theirs, _ = read_image(official)
    if theirs.shape != lr.shape:
        return f"{official}: {theirs.shape[1]}x{theirs.shape[0]} pixels, not {lr.shape[1]}x" + (
            f"{lr.shape[0]} as HR says; move the LR folder away to make LR from HR"
        )
    differing = int((theirs != lr).sum())
    if differing:
        return (
            f"{official}: {differing} of {lr.size} values are not MATLAB's bicubic of HR; "
            "move the LR folder away to make LR from HR"
        )
    return ""


def _has_pixels(path: Path, image: np.ndarray) -> bool:
    if not path.exists():
        return False
    there = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return there is not None and np.array_equal(there, image)
