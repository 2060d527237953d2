"""What the scripts share: their common options, and how they end."""

import argparse
import sys
from collections.abc import Callable

from esc_arch.errors import UserError


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the cores)")


def add_cutting(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images are cut into sub-images."""
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


def report(counts: dict[str, int]) -> None:
    """Print what was packed."""
    notes = {"grey": "grey made RGB", "small": "left out, too small"}
    parts = [f"{counts['sources']} images", f"{counts['sub-images']} sub-images"]
    parts += [f"{counts[note]} {text}" for note, text in notes.items() if note in counts]
    print(", ".join(parts))


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> int:
    """Run a script's work.

    Returns:
        Its exit status: 2 for errors the user can mend, each on a line of stderr.
    """
    arguments = parser.parse_args()
    try:
        run(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here", file=sys.stderr)
        return 2
    return 0
