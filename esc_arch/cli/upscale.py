"""`basicsr upscale`: upscale pictures with a trained network."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esc_arch.inference.planning import Plan
    from esc_arch.inference.upscaler import Upscaler

HELP = "Upscale pictures with a trained network."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to upscale, with what, and where to."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or BMP of 8 or 16 bits, or folders of them",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("upscaled"),
        metavar="OUT",
        help="folder for the results, or the file for one picture, such as NAME.png "
        "(default: upscaled)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="checkpoint; its network, scale and options are found from the file "
        "(default: the weights that came with the package)",
    )
    parser.add_argument(
        "--scale",
        type=int,
        metavar="S",
        help="how many times larger; picks the weights where no model is named",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="work on tiles of N x N input pixels, for less memory, or 0 for whole pictures; the "
        "result differs a little (default: tiles of 512 for pictures above 1024 x 1024)",
    )
    parser.add_argument(
        "--tile-pad",
        type=int,
        metavar="N",
        help="margin around tiles in input pixels (default: two windows of the network's)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="what to compute in; float32 is exact (default: float32)",
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results that exist; else they are kept unless the source is newer or the "
        "size does not fit",
    )
    _add_files(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format",
        choices=["png", "jpeg", "webp", "tiff"],
        help="how results are written (default: as -o ends, or png)",
    )
    files.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help="1 to 100, of JPEG (default: 95) and WebP (default: 100, lossless)",
    )
    files.add_argument(
        "--suffix", default="", metavar="TEXT", help="put behind names, such as _x2: photo_x2.png"
    )
    files.add_argument(
        "--keep-suffix",
        action="store_true",
        help="keep the source's suffix in the name, as in photo.jpg.png",
    )
    files.add_argument(
        "--compare",
        action="store_true",
        help="also write NAME_compare.png: bicubic and the result side by side",
    )
    files.add_argument(
        "--strip",
        action="store_true",
        help="leave out EXIF, XMP and resolution; colour profiles stay",
    )
    files.add_argument(
        "--page", type=int, metavar="N", help="which page of a TIFF with several (default: the 1st)"
    )
    files.add_argument(
        "--max-megapixels",
        type=int,
        default=1000,
        metavar="N",
        help="refuse larger inputs (default: 1000)",
    )
    files.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts of the pictures, such as 2/8, to divide them among machines",
    )


def run(args: argparse.Namespace) -> int:
    """Upscale. 0 if every picture is done or was there already, 1 if some could not be."""
    from tqdm import tqdm

    from esc_arch.errors import UserError, printable
    from esc_arch.inference.folders import run_jobs
    from esc_arch.inference.planning import Naming, check_writable, plan_jobs, shard

    _check(args)
    part = _shard(args.shard)
    naming = Naming(args.output, args.format, args.suffix, args.keep_suffix)
    plan = plan_jobs(args.inputs, naming, args.quality, args.strip)
    plan.jobs = shard(plan.jobs, *part)
    upscaler = _load(args)
    if plan.jobs:
        check_writable(plan)
    for note in plan.notes:
        print(f"basicsr: {note}", file=sys.stderr)
    with tqdm(total=len(plan.jobs), unit="picture", disable=not sys.stderr.isatty()) as bar:
        tally = _Tally(bar, len(plan.problems))
        for problem in plan.problems:
            tally.error(problem)
        jobs = _to_do(args, plan, upscaler, tally)
        tally.start()
        for job, result in run_jobs(
            jobs, upscaler, plan.encoding, args.page, args.max_megapixels, _watch_tiles(bar)
        ):
            if isinstance(result, UserError):
                tally.failed += 1
                tally.error(result)
            else:
                for note in result.notes:
                    tally.error(note, "")
                height, width, _ = result.shape
                tally.done_one(f"{printable(job.target)}: {width} x {height}", height * width)
                if args.compare:
                    _compare(job.source, job.target, tally)
            bar.update()
    print(f"{tally.done} upscaled, {tally.kept} kept, {tally.failed} failed")
    return 1 if tally.failed else 0


def _compare(source: Path, target: Path, tally: "_Tally") -> None:
    """Write bicubic and the result side by side, beside the result."""
    from esc_arch.errors import UserError, printable
    from esc_arch.inference.encoding import encode
    from esc_arch.inference.picture_files import Picture
    from esc_arch.study.comparison import side_by_side
    from esc_arch.whole_files import write_atomically

    file = target.with_name(f"{target.stem}_compare.png")
    try:
        write_atomically(file, encode(Picture(side_by_side(source, target))))
    except (UserError, OSError) as error:
        tally.failed += 1
        tally.error(f"{printable(file)}: {error}")
    else:
        tally.bar.write(f"{printable(file)}: bicubic, and the result", file=sys.stdout)


class _Tally:
    """Counts, and prints lines above the bar."""

    def __init__(self, bar: Any, failed: int) -> None:
        self.bar, self.failed, self.kept, self.done = bar, failed, 0, 0
        self._pixels, self._start = 0, 0.0

    def start(self) -> None:
        self._start = time.monotonic()

    def error(self, line: object, kind: str = "error: ") -> None:
        self.bar.write(f"basicsr: {kind}{line}", file=sys.stderr)

    def keep(self, line: str) -> None:
        self.kept += 1
        self.bar.write(line, file=sys.stdout)
        self.bar.update()

    def done_one(self, line: str, pixels: int) -> None:
        self.done += 1
        self._pixels += pixels
        rate = self._pixels / 1e6 / max(time.monotonic() - self._start, 1e-9)
        self.bar.set_description_str(f"{rate:.2f} megapixels/s")
        self.bar.write(line, file=sys.stdout)


def _to_do(
    args: argparse.Namespace, plan: "Plan", upscaler: "Upscaler", tally: _Tally
) -> list[Any]:
    """The jobs whose results are not there yet, or are those of something else."""
    from esc_arch.errors import UserError, printable
    from esc_arch.inference.planning import why_redone

    jobs = []
    for job in plan.jobs:
        if args.overwrite or not job.target.exists():
            jobs.append(job)
            continue
        try:
            why = why_redone(job, upscaler.scale, args.page)
        except UserError as error:
            tally.failed += 1
            tally.error(error)
            tally.bar.update()
            continue
        if why is None:
            tally.keep(f"{printable(job.target)}: kept; --overwrite replaces it")
        else:
            tally.bar.write(f"{printable(job.target)}: done anew: {why}", file=sys.stdout)
            jobs.append(job)
    return jobs


def _check(args: argparse.Namespace) -> None:
    from esc_arch.errors import UserError, printable

    for flag, value in (("--tile", args.tile), ("--tile-pad", args.tile_pad)):
        if value is not None and value < 0:
            raise UserError(f"{flag} {value}: must be a number of pixels, 0 or more")
    for flag, value in (("--scale", args.scale), ("--page", args.page)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    if args.max_megapixels < 1:
        raise UserError(f"--max-megapixels {args.max_megapixels}: must be 1 or more")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise UserError(f"--quality {args.quality}: must be from 1 to 100")
    if Path(args.suffix).name != args.suffix or "\0" in args.suffix:
        raise UserError(f"--suffix {printable(args.suffix)}: must be part of a file name")


def _shard(text: str | None) -> tuple[int, int]:
    from esc_arch.errors import UserError, printable

    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UserError(f"--shard {printable(text)}: must be I/N with I from 1 to N, such as 2/8")


def _load(args: argparse.Namespace) -> "Upscaler":
    from esc_arch.inference.load import load
    from esc_arch.kernels.cpu.library import note_on_bfloat16
    from esc_arch.zoo.local import find, other_than_published

    upscaler = load(
        args.model, args.device, args.dtype, args.tile, tile_pad=args.tile_pad, scale=args.scale
    )
    device = next(upscaler.network.parameters()).device
    if args.dtype == "bfloat16" and (note := note_on_bfloat16(device)):
        print(f"basicsr: {note}", file=sys.stderr)
    path = find(args.model) if args.model else None
    if path is not None and (note := other_than_published(path)):
        print(f"basicsr: {note}", file=sys.stderr)
    return upscaler


def _watch_tiles(bar) -> Callable[[Iterable], Iterable]:
    """Shows the number of the tile after the bar."""

    def watch(tiles: Iterable) -> Iterable:
        tiles = list(tiles)
        for number, tile in enumerate(tiles, 1):
            bar.set_postfix_str(f"tile {number} of {len(tiles)}")
            yield tile
        bar.set_postfix_str("")

    return watch
