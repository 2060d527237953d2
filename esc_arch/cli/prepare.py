"""`basicsr prepare`: from downloaded images to what the option files train and test on."""

import argparse
import sys
from pathlib import Path

from esc_arch.errors import UserError
from esc_arch.prepare.known_sets import BENCHMARK_SETS, DFLIP_SETS, TRAINING_SETS

HELP = "Prepare data sets: cut training images and pack them, make LR, check benchmark sets."

SETS = {
    "div2k": "DIV2K, or a set like it: HR and LR sub-images in LMDBs, for options/train_ESC_*.yml",
    "dflip": "DFLIP: HR sub-images of DIV2K, Flickr2K, LSDIR and DiverSeg-IP in one LMDB",
    "benchmarks": "benchmark sets: HR as PNG and LR as MATLAB's bicubic makes it, or checked "
    "against yours",
    "demo": "the demo's data, from the photographs that the scikit-image package carries with it",
}
SCALES = (2, 3, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data sets, each with options of its own."""
    sets = parser.add_subparsers(title="data sets", dest="set", metavar="SET", required=True)
    parsers = {
        name: sets.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in SETS.items()
    }
    _add_div2k(parsers["div2k"])
    _add_dflip(parsers["dflip"])
    _add_benchmarks(parsers["benchmarks"])
    _add_out(parsers["demo"], "demo")


def run(args: argparse.Namespace) -> int:
    """Prepare one data set. What an earlier run has made is kept.

    Returns:
        0; 130 after Ctrl-C.

    Raises:
        UserError: Images are missing or damaged, or the folder cannot be written.
    """
    work = {"div2k": _div2k, "dflip": _dflip, "benchmarks": _benchmarks, "demo": _demo}
    try:
        work[args.set](args)
    except KeyboardInterrupt:
        print("basicsr: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _add_out(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("datasets") / folder,
        metavar="DIR",
        help="folder to make (default: %(default)s)",
    )


def _add_scales(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        choices=SCALES,
        default=list(SCALES),
        metavar="S",
        help="scales to make LR for (default: 2 3 4)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the cores)")


def _add_cutting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sub-images, in HR pixels")
    group.add_argument(
        "--crop-size", type=int, default=480, metavar="N", help="side (default: %(default)s)"
    )
    group.add_argument(
        "--step", type=int, default=240, metavar="N", help="distance (default: %(default)s)"
    )
    group.add_argument(
        "--min-side",
        type=int,
        metavar="N",
        help="images with a shorter side are too small; from here up to the crop size a side is "
        "taken whole (default: the crop size)",
    )
    group.add_argument(
        "--skip-small", action="store_true", help="leave out images that are too small"
    )


def _add_div2k(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hr", type=Path, nargs="+", metavar="DIR", help="folders with the HR images"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="get DIV2K's HR images (3.5 GB) from its official address into OUT/raw",
    )
    parser.add_argument("--mirror", metavar="URL", help="another address for --download")
    for scale in SCALES:
        parser.add_argument(
            f"--lr-x{scale}",
            type=Path,
            metavar="DIR",
            help=f"official x{scale} LR images (default: made as MATLAB's bicubic makes them)",
        )
    _add_out(parser, "DIV2K")
    _add_scales(parser)
    parser.add_argument(
        "--name", default="DIV2K", help="start of the LMDBs' names (default: %(default)s)"
    )
    known = ", ".join(f"{TRAINING_SETS[name]} for {name}" for name in ("DIV2K", "DF2K"))
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help=f"images there must be, 0 for any (default: {known}, else any)",
    )
    _add_cutting(parser)
    _add_workers(parser)


def _add_dflip(parser: argparse.ArgumentParser) -> None:
    for name in DFLIP_SETS:
        parser.add_argument(
            f"--{name.lower()}",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"folder with the HR images of {name}, or with folders of them",
        )
    _add_out(parser, "DFLIP")
    parser.add_argument(
        "--any-count", action="store_true", help="take sets that are not whole, or are larger"
    )
    _add_cutting(parser)
    _add_workers(parser)


def _add_benchmarks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder with a folder for each set"
    )
    _add_out(parser, "benchmarks")
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=BENCHMARK_SETS,
        metavar="SET",
        help=f"any of {', '.join(BENCHMARK_SETS)} (default: those in the folder)",
    )
    _add_scales(parser)
    _add_workers(parser)


def _div2k(args: argparse.Namespace) -> None:
    from esc_arch.prepare.subimages import Cutting
    from esc_arch.prepare.training_sets import DIV2K_ADDRESS, download_div2k, prepare_training_set

    if bool(args.hr) == args.download:
        raise UserError("--hr: either this or --download is needed")
    if args.mirror and not args.download:
        raise UserError(f"--mirror {args.mirror}: is only for --download")
    given = {scale: getattr(args, f"lr_x{scale}") for scale in SCALES}
    lr = {scale: folder for scale, folder in given.items() if folder is not None}
    for scale, folder in lr.items():
        if scale not in args.scales:
            raise UserError(f"--lr-x{scale} {folder}: --scales leaves {scale} out")
    cutting = Cutting(args.crop_size, args.step, args.min_side, args.skip_small)
    hr = args.hr
    if args.download:
        hr = [download_div2k(args.out / "raw", args.mirror or DIV2K_ADDRESS)]
    counts = prepare_training_set(
        args.name, hr, args.out, tuple(args.scales), cutting, lr, args.count, args.workers
    )
    _report(counts)


def _dflip(args: argparse.Namespace) -> None:
    from esc_arch.prepare.subimages import Cutting
    from esc_arch.prepare.training_sets import prepare_dflip

    # LR is made as images are loaded, so no side need be a multiple of anything.
    cutting = Cutting(args.crop_size, args.step, args.min_side, args.skip_small, multiple=1)
    folders = {name: getattr(args, name.lower().replace("-", "_")) for name in DFLIP_SETS}
    _report(prepare_dflip(folders, args.out, cutting, args.any_count, args.workers))


def _benchmarks(args: argparse.Namespace) -> None:
    from esc_arch.prepare.benchmark_sets import find_benchmark_sets, prepare_set

    folders, missing = find_benchmark_sets(args.src, args.sets or BENCHMARK_SETS)
    if not folders and not args.sets:
        names = ", ".join(BENCHMARK_SETS)
        raise UserError(f"--src {args.src}: no folder of a benchmark set in it, such as {names}")
    # What was asked for by name has to be there.
    problems = missing if args.sets else []
    for name, folder in folders.items():
        count = BENCHMARK_SETS[name][0]
        try:
            out = args.out / name
            print(prepare_set(name, folder, out, tuple(args.scales), count, args.workers))
        except UserError as error:
            problems += error.lines
    for line in missing if not args.sets else []:
        print(f"Left out: {line}")
    if problems:
        raise UserError(*problems)


def _demo(args: argparse.Namespace) -> None:
    from esc_arch.prepare.demo_data import prepare_demo

    prepare_demo(args.out)


def _report(counts: dict[str, int]) -> None:
    notes = {"grey": "grey made RGB", "small": "left out, too small"}
    parts = [f"{counts['sources']} images", f"{counts['sub-images']} sub-images"]
    parts += [f"{counts[note]} {text}" for note, text in notes.items() if note in counts]
    print(", ".join(parts))
