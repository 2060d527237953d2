"""Which pictures there are to upscale, and where the result of each goes."""

import errno
import glob
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from esc_arch.errors import UserError, printable
from esc_arch.inference.encoding import SUFFIXES, Encoding
from esc_arch.inference.picture_files import PICTURE_SUFFIXES, open_picture
from esc_arch.inference.same_names import Names, resolved
from esc_arch.inference.work import Job
from esc_arch.whole_files import sweep

# Names that somebody means as a picture's, though results cannot be written so.
_OTHER_FORMATS = frozenset(
    ".avif .bmp .dib .dng .eps .exr .gif .hdr .heic .heif .ico .jfif .jif .jpe .jp2 .jxl .pbm .pdf "
    ".pgm .pnm .ppm .psd .qoi .raw .svg .tga".split()
)


@dataclass
class Plan:
    """What there is to do.

    Attributes:
        jobs: The pictures.
        problems: A line for each input that cannot be done.
        notes: Lines on what is left out.
        folder: Where results go.
        encoding: How they are written.
        to_folder: Whether results go to a folder, of which a record is kept there.
    """

    folder: Path
    encoding: Encoding
    to_folder: bool = True
    jobs: list[Job] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Naming:
    """How results are called.

    Attributes:
        out: The folder for them, or the file for one picture.
        format: A key of `SUFFIXES`; None for what `out` says, or PNG.
        suffix: What is put behind the name, such as `_x2`.
        keep_suffix: Whether the source's suffix stays in the name, as in `photo.jpg.png`.
    """

    out: Path
    format: str | None = None
    suffix: str = ""
    keep_suffix: bool = False

    def result(self, source: Path, ending: str) -> str:
        """The name of a picture's result."""
        stem = source.name if self.keep_suffix else source.stem
        return f"{stem}{self.suffix}{ending}"


def plan_jobs(
    inputs: Iterable[Path], naming: Naming, quality: int | None = None, strip: bool = False
) -> Plan:
    """Decide where the result of each picture goes.

    A file's goes to `OUT/STEM.png`, or to OUT itself if that ends as a picture does and there is
    only this one. A folder's go below OUT as they lie in the folder, and if it is not the only
    input, below `OUT/FOLDER`. Files of other suffixes in folders, and hidden ones, are no pictures;
    links to folders are not followed; results of an earlier run, below OUT, are not taken again.

    A pattern such as `photos/*.jpg` stands for the files and folders that fit it, where there is
    no file of that name; `**` stands for any folders. What fits lies below OUT as it lies in the
    folder that stands before the first wildcard.

    Args:
        inputs: Files, folders and patterns.
        naming: Where results go and how they are called.
        quality: As of `Encoding`.
        strip: As of `Encoding`.

    Raises:
        UserError: OUT cannot be what it is.
    """
    expanded, problems = expand(list(inputs))
    inputs = [path for path, _ in expanded]
    single, kind = _single(inputs, naming)
    encoding = Encoding(kind, quality, strip)
    plan = Plan(naming.out.parent if single else naming.out, encoding, problems=problems)
    plan.to_folder = single is None
    named = set()
    for path, base in expanded:
        if base is not None and _is_result(plan, base, path):
            continue
        below = plan.folder if base is None else plan.folder / path.relative_to(base).parent
        if os.path.isdir(path):
            alone = len(inputs) == 1 if base is None else path == base
            _plan_folder(plan, path, below if alone else below / resolved(path).name, naming)
        elif not os.path.lexists(path):
            plan.problems.append(f"{printable(path)}: {os.strerror(errno.ENOENT)}")
        else:
            plan.jobs.append(Job(path, single or below / naming.result(path, encoding.suffix)))
            named |= {path} if base is None else set()
    if naming.suffix:
        # With results beside their sources, those of an earlier run are no sources.
        results = {resolved(job.target) for job in plan.jobs}
        plan.jobs = [
            job for job in plan.jobs if job.source in named or resolved(job.source) not in results
        ]
    plan.jobs = _without_collisions(plan, naming)
    return plan


def expand(inputs: list[Path]) -> tuple[list[tuple[Path, Path | None]], list[str]]:
    """The inputs with patterns replaced by what fits them; a line for each that nothing fits.

    Beside each found by a pattern stands the folder before the pattern's first wildcard. What lies
    in a folder that fits, too, is part of it.
    """
    found: list[tuple[Path, Path | None]] = []
    problems = []
    for path in inputs:
        if os.path.lexists(path) or not glob.has_magic(str(path)):
            found.append((path, None))
        elif fitting := sorted(glob.glob(str(path), recursive=True)):
            base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            folders: set[Path] = set()
            for fits in map(Path, fitting):
                if folders.isdisjoint(fits.parents):
                    found.append((fits, base))
                    folders |= {fits} if os.path.isdir(fits) else set()
        else:
            problems.append(f"{printable(path)}: nothing fits this pattern")
    return found, problems


def _is_result(plan: Plan, base: Path, path: Path) -> bool:
    """Whether what fits a pattern is of an earlier run, which wrote below what is searched."""
    out, path = resolved(plan.folder), resolved(path)
    return resolved(base) in out.parents and (path == out or out in path.parents)


def _single(inputs: list[Path], naming: Naming) -> tuple[Path | None, str]:
    """The one file that results go to, if they do, and the format."""
    out, suffix = naming.out, naming.out.suffix.lower()
    shown = printable(out)
    formats = [kind for kind, ends in SUFFIXES.items() if suffix in ends]
    known = ", ".join(ending for ends in SUFFIXES.values() for ending in ends)
    if os.path.isdir(out):
        return None, naming.format or "png"
    if not formats:
        if suffix in _OTHER_FORMATS:
            raise UserError(f"-o {shown}: results cannot be {suffix}; {known} can be written")
        if os.path.lexists(out):
            raise UserError(f"-o {shown}: is a file; a folder is needed")
        return None, naming.format or "png"
    if len(inputs) != 1 or os.path.isdir(inputs[0]):
        raise UserError(f"-o {shown}: is a file; for several pictures a folder is needed")
    if naming.format not in (None, formats[0]):
        raise UserError(f"-o {shown}: is no {naming.format.upper()}, which --format asks for")
    return out, formats[0]


def _plan_folder(plan: Plan, folder: Path, target_folder: Path, naming: Naming) -> None:
    before = len(plan.problems)
    found, others = _pictures_below(plan, folder)
    if not found and len(plan.problems) == before:
        plan.problems.append(f"{printable(folder)}: no pictures in this folder")
    if others:
        files = "1 file" if len(others) == 1 else f"{len(others)} files"
        named = ", ".join(printable(other) for other in others[:3])
        more = ", ..." if len(others) > 3 else ""
        plan.notes.append(f"{printable(folder)}: {files} of other kinds left out: {named}{more}")
    for file in found:
        relative = file.relative_to(folder)
        name = naming.result(file, plan.encoding.suffix)
        plan.jobs.append(Job(file, target_folder / relative.with_name(name)))


def _pictures_below(plan: Plan, folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures in a folder and below it, and the other files, by their paths within it."""
    found, others = [], []

    def fail(error: OSError) -> None:
        where = printable(error.filename or folder)
        plan.problems.append(f"{where}: cannot be listed: {error.strerror}")

    def is_out(path: Path) -> bool:
        # Names may differ in letter case only, so that their text does not tell.
        return os.path.isdir(plan.folder) and os.path.samefile(path, plan.folder)

    for parent, folders, files in os.walk(folder, onerror=fail):
        here = Path(parent)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not is_out(here / name)
        )
        for name in sorted(files):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() not in PICTURE_SUFFIXES:
                others.append((here / name).relative_to(folder))
            elif (problem := _not_regular(here / name)) is not None:
                plan.problems.append(problem)
            else:
                found.append(here / name)
    return found, others


def _not_regular(path: Path) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{printable(path)}: {error.strerror}"
    return None if stat.S_ISREG(mode) else f"{printable(path)}: is a pipe or a device; left out"


def _without_collisions(plan: Plan, naming: Naming) -> list[Job]:
    """The jobs whose targets are below OUT, and neither another's target nor anyone's source."""
    sources = Names(resolved(job.source) for job in plan.jobs)
    root = resolved(plan.folder)
    taken, made_of = Names(), {}
    kept, alike = [], []
    for job in plan.jobs:
        # A link within OUT could lead elsewhere. The last part of the path is replaced, not
        # followed.
        target = resolved(job.target.parent) / job.target.name
        source, shown = printable(job.source), printable(job.target)
        if root not in target.parents:
            problem = f"{source}: its result {shown} would lie outside {printable(plan.folder)}"
        elif sources.find(target) is not None:
            problem = f"{source}: its result would replace the picture {shown}"
        elif (first := taken.find(target)) is not None:
            other = made_of[first]
            if first == target and resolved(other) == resolved(job.source):
                continue  # One picture that was named twice.
            apart = not naming.keep_suffix and other.name.casefold() != job.source.name.casefold()
            advice = "rename one, or use --keep-suffix" if apart else "rename one"
            why = "" if first == target else ", since the folder takes both names for one"
            problem = (
                f"{source}: its result {shown} is also that of {printable(other)}{why}; {advice}"
            )
        else:
            if taken.alike(target):
                alike.append(shown)
            taken.add(target)
            made_of[target] = job.source
            kept.append(job)
            continue
        plan.problems.append(problem)
    if alike:
        results = f"{alike[0]} differs" if len(alike) == 1 else f"{alike[0]}, ... differ"
        plan.notes.append(
            f"{results} from the name of another result in letter case or Unicode form only; macOS "
            "and Windows take such names for one"
        )
    return kept


def shard(jobs: list[Job], number: int, count: int) -> list[Job]:
    """Every `count`-th job from the `number`-th (from 1) on: all shards together are all jobs."""
    return jobs[number - 1 :: count]


def why_redone(job: Job, scale: int, page: int | None = None) -> str | None:
    """Why a result that is there is not of this source, or None where it is.

    Raises:
        UserError: The source cannot be opened, or a folder has the result's name.
    """
    source = open_picture(job.source, page)
    if job.target.is_dir():
        raise UserError(
            f"{printable(job.source)}: its result cannot be written: {printable(job.target)} is a "
            "folder"
        )
    try:
        result = open_picture(job.target)
    except UserError:
        return "what is there is no whole picture"
    if (result.width, result.height) != (source.width * scale, source.height * scale):
        return f"what is there has {result.width} x {result.height} pixels"
    if os.stat(job.source).st_mtime > os.stat(job.target).st_mtime:
        return "the source is newer"
    return None


def check_writable(plan: Plan) -> None:
    """Make the folder for the results, and find out now whether anything can be written there.

    Raises:
        UserError: It cannot.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=plan.folder, prefix=".esc-").close()
        for folder in {job.target.parent for job in plan.jobs}:
            sweep(folder)
    except OSError as error:
        raise UserError(
            f"-o {printable(plan.folder)}: cannot be written to: {error.strerror or error}"
        ) from None
