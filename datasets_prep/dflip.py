"""DFLIP: HR sub-images of DIV2K, Flickr2K, LSDIR and DiverSeg-IP in one LMDB."""

import argparse
import sys
from pathlib import Path

import script

from esc_arch.prepare.subimages import Cutting
from esc_arch.prepare.training_sets import prepare_dflip

SETS = ("DIV2K", "Flickr2K", "LSDIR", "DiverSeg-IP")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in SETS:
        parser.add_argument(
            f"--{name.lower()}",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"folder with the HR images of {name}, or with folders of them",
        )
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/DFLIP"), help="default: %(default)s"
    )
    parser.add_argument(
        "--any-count", action="store_true", help="take sets that are not whole, or are larger"
    )
    script.add_cutting(parser)
    script.add_workers(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    # LR is made as images are loaded, so no side need be a multiple of anything.
    cutting = Cutting(
        arguments.crop_size, arguments.step, arguments.min_side, arguments.skip_small, multiple=1
    )
    folders = {name: getattr(arguments, name.lower().replace("-", "_")) for name in SETS}
    counts = prepare_dflip(folders, arguments.out, cutting, arguments.any_count, arguments.workers)
    script.report(counts)


if __name__ == "__main__":
    sys.exit(script.main(build_parser(), run))
