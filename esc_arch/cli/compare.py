"""`basicsr compare`: the crops figure of papers, from pictures that several methods made."""

import argparse
import os
from pathlib import Path

from esc_arch.errors import UserError, printable

HELP = "Show the same square of several results side by side, with PSNR and SSIM."

SUFFIXES = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to compare, where to look and where the figure goes."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="PICTURE", help="results of one size, one a method"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="theirs (default: the files')")
    parser.add_argument(
        "--reference", type=Path, metavar="PICTURE", help="ground truth, for PSNR and SSIM on Y"
    )
    parser.add_argument(
        "--lr",
        type=Path,
        metavar="PICTURE",
        help="what they were made from, to show bicubic too; metrics then leave out a border of as "
        "many pixels as the scale",
    )
    parser.add_argument(
        "--crop",
        nargs=3,
        type=int,
        metavar=("X", "Y", "SIDE"),
        help="the square, in pixels of the results (default: where they differ most, a sixth of "
        "the shorter side)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.png"),
        metavar="FILE",
        help=f"the figure, {', '.join(SUFFIXES)} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw, and print the metrics.

    Returns:
        0.

    Raises:
        UserError: A picture cannot be read, or sizes, names or the square do not fit.
    """
    from esc_arch.cli.pipeline import import_plugins

    names = args.names or _told_apart(args.results)
    if len(names) != len(args.results):
        raise UserError(f"--names: {len(names)} for {len(args.results)} pictures")
    if args.output.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {args.output}: must end in {', '.join(SUFFIXES)}")
    given = [path for path in (*args.results, args.reference, args.lr) if path is not None]
    # By what it is: where letter case does not count, its name may be spelled in another way.
    there = [path for path in given if os.path.exists(path) and os.path.exists(args.output)]
    if any(os.path.samefile(path, args.output) for path in there):
        raise UserError(f"--output {args.output}: is one of the pictures that are compared")
    import_plugins()
    from esc_arch.study.comparison import draw_crops, make_panels, most_different
    from esc_arch.whole_files import write_atomically

    panels, border = make_panels(
        list(zip(names, args.results, strict=True)), args.reference, args.lr
    )
    if args.crop:
        crop = tuple(args.crop)
    else:
        side = max(4, min(panels[0].pixels.shape[:2]) // 6)
        crop = (*most_different(panels, side), side)
    content = draw_crops(panels, crop, args.output.suffix.lower().lstrip("."))
    replaced = ", in place of an older file" if args.output.exists() else ""
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, content)
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}") from None
    for panel in panels:
        print(printable(panel.caption.replace("\n", ": ")))
    if args.reference:
        print(f"PSNR and SSIM on Y, without a border of {border} pixels")
    print(f"{printable(args.output)}: {crop[2]}x{crop[2]} at {crop[0]}, {crop[1]}{replaced}")
    return 0


def _told_apart(paths: list[Path]) -> list[str]:
    """The files' names, or their folders' where the names are the same."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [path.absolute().parent.name for path in paths]
