"""What `basicsr upscale` does with the pictures that were planned, and tells of them."""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from esc_arch.errors import UserError, printable

if TYPE_CHECKING:
    from pathlib import Path

    from esc_arch.inference.manifest import Manifest
    from esc_arch.inference.planning import Plan
    from esc_arch.inference.same_names import Names
    from esc_arch.inference.upscaler import Upscaler
    from esc_arch.inference.work import Job, Settings

# Of very many results that were there already, the lines would hide those about errors.
NAMED_AT_MOST = 5


class Tally:
    """Counts, and prints lines above the bar.

    Args:
        bar: tqdm's.
        failed: Inputs of which it is known already that they cannot be done.

    Attributes:
        kept: The jobs whose results were there already.
    """

    def __init__(self, bar: tqdm, failed: int) -> None:
        self.bar, self.failed, self.done = bar, failed, 0
        self.kept: list[Job] = []
        self._pixels, self._start = 0, time.monotonic()

    def start(self) -> None:
        """Count the time from now on."""
        self._start = time.monotonic()

    def error(self, line: object, kind: str = "error: ") -> None:
        """Print a line on stderr."""
        self.bar.write(f"basicsr: {kind}{line}", file=sys.stderr)

    def fail(self, line: object) -> None:
        """One that cannot be done."""
        self.failed += 1
        self.error(line)

    def tell_kept(self) -> None:
        """Print which were there already: by name as long as there are few."""
        targets = [printable(job.target) for job in self.kept]
        if len(targets) > NAMED_AT_MOST:
            more = len(targets) - 1
            self.say(f"{targets[0]} and {more} more: kept; --overwrite replaces them")
            return
        for target in targets:
            self.say(f"{target}: kept; --overwrite replaces it")

    def say(self, line: str) -> None:
        """Print a line on stdout."""
        self.bar.write(line, file=sys.stdout)

    def done_one(self, line: str, pixels: int) -> None:
        """One that has been upscaled, to so many pixels."""
        self.done += 1
        self._pixels += pixels
        self.bar.set_description_str(self._rate())
        self.say(line)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (
            f"{self.done / seconds:.2f} pictures/s, {self._pixels / 1e6 / seconds:.2f} megapixels/s"
        )

    def __str__(self) -> str:
        counts = f"{self.done} upscaled, {len(self.kept)} kept, {self.failed} failed"
        return f"{self._rate()}\n{counts}" if self.done > 1 else counts


def upscale_all(
    plan: "Plan",
    upscalers: Sequence["Upscaler"],
    settings: "Settings",
    manifest: "Manifest | None",
    overwrite: bool = False,
    compare: bool = False,
) -> Tally:
    """Upscale what is not there yet, and print a line for each picture.

    Args:
        plan: What there is to do.
        upscalers: What to do it with, once a device.
        settings: How.
        manifest: What is known of results that are there, and will be of these.
        overwrite: Whether results that are there are replaced.
        compare: Whether bicubic and the result are written side by side, too.
    """
    from esc_arch.inference.folders import run_jobs
    from esc_arch.inference.same_names import Names, resolved

    tty = sys.stderr.isatty()
    tally = Tally(tqdm(unit="picture", disable=not tty), len(plan.problems))
    for problem in plan.problems:
        tally.error(problem)
    if not plan.jobs:
        tally.bar.close()
        return tally
    jobs = _to_do(plan.jobs, upscalers[0].scale, settings.page, manifest, overwrite, tally)
    tally.tell_kept()
    taken = Names(resolved(path) for job in plan.jobs for path in (job.source, job.target))
    if compare:
        for job in tally.kept:
            if not _comparison_of(job).exists() or taken.find(resolved(_comparison_of(job))):
                _compare(job, tally, taken)
    tally.bar.reset(len(jobs))
    tally.start()
    with tally.bar as bar:
        for job, result in run_jobs(jobs, upscalers, settings, _watch_tiles(bar)):
            if isinstance(result, UserError):
                tally.fail(result)
            else:
                for note in result.notes:
                    tally.error(note, "")
                height, width, _ = result.shape
                if manifest is not None:
                    manifest.done(job)
                tally.done_one(f"{printable(job.target)}: {width} x {height}", height * width)
                if compare:
                    _compare(job, tally, taken)
            bar.update()
    return tally


def _to_do(
    jobs: Iterable["Job"],
    scale: int,
    page: int | None,
    manifest: "Manifest | None",
    overwrite: bool,
    tally: Tally,
) -> list["Job"]:
    """The jobs whose results are not there yet, or are those of something else."""
    from esc_arch.inference.planning import why_redone

    chosen = []
    for job in jobs:
        if manifest is not None:
            manifest.begin(job)
        why: str | bool | None = None
        # A name that is too long for the folder is told when it is written.
        if not overwrite and os.path.exists(job.target):
            try:
                why = manifest.verdict(job) if manifest is not None else None
                if why is None:
                    why = why_redone(job, scale, page) or True
                    if isinstance(why, str):
                        why += _keep_aside(job.target)
            except UserError as error:
                tally.fail(error)
                continue
        if why is True:
            tally.kept.append(job)
            continue
        if why is not None:
            tally.say(f"{printable(job.target)}: done anew: {why}")
        chosen.append(job)
    return chosen


def _keep_aside(path: "Path") -> str:
    """Rename what may be no result but somebody's own; says how, after a reason.

    Raises:
        UserError: The folder cannot be written to.
    """
    if not path.stat().st_size:
        return ""
    names = (path.with_name(f"{path.name}~{number or ''}") for number in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be replaced: {error.strerror}") from None
    return f"; it is now {printable(aside)}"


def _compare(job: "Job", tally: Tally, taken: "Names") -> None:
    """Write bicubic and the result side by side, beside the result, unless the name is taken."""
    from esc_arch.inference.encoding import encode
    from esc_arch.inference.picture_files import Picture
    from esc_arch.inference.same_names import resolved
    from esc_arch.study.comparison import side_by_side
    from esc_arch.whole_files import write_atomically

    file = _comparison_of(job)
    if taken.find(resolved(file)):
        tally.fail(f"{printable(job.source)}: its comparison would replace {printable(file)}")
        return
    try:
        write_atomically(file, encode(Picture(side_by_side(job.source, job.target))))
    except (UserError, OSError) as error:
        tally.fail(f"{printable(file)}: {error}")
    else:
        tally.say(f"{printable(file)}: bicubic, and the result")


def _comparison_of(job: "Job") -> "Path":
    return job.target.with_name(f"{job.target.stem}_compare.png")


def _watch_tiles(bar: tqdm) -> Callable[[Iterable], Iterable]:
    """Shows the number of the tile after the bar."""

    def watch(tiles: Iterable[Any]) -> Iterable[Any]:
        tiles = list(tiles)
        for number, tile in enumerate(tiles, 1):
            bar.set_postfix_str(f"tile {number} of {len(tiles)}")
            yield tile
        bar.set_postfix_str("")

    return watch
