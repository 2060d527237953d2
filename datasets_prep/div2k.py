"""DIV2K, or a set like it: HR and LR sub-images in LMDBs, for options/train_ESC_*.yml."""

import argparse
import sys
from pathlib import Path

import script

from esc_arch.errors import UserError
from esc_arch.prepare.subimages import Cutting
from esc_arch.prepare.training_sets import DIV2K_ADDRESS, download_div2k, prepare_training_set


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--hr", type=Path, nargs="+", metavar="DIR", help="folders with the HR images"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="get DIV2K's HR images (3.5 GB) from its official address into OUT/raw",
    )
    parser.add_argument("--mirror", metavar="URL", help="another address for --download")
    for scale in (2, 3, 4):
        parser.add_argument(
            f"--lr-x{scale}",
            type=Path,
            metavar="DIR",
            help=f"official x{scale} LR images (default: made as MATLAB's bicubic makes them)",
        )
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/DIV2K"), help="default: %(default)s"
    )
    parser.add_argument(
        "--scales", type=int, nargs="+", choices=(2, 3, 4), default=[2, 3, 4], metavar="S"
    )
    parser.add_argument(
        "--name", default="DIV2K", help="start of the LMDBs' names (default: %(default)s)"
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="images there must be, 0 for any (default: 800 for DIV2K, 3450 for DF2K, else any)",
    )
    script.add_cutting(parser)
    script.add_workers(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    if bool(arguments.hr) == arguments.download:
        raise UserError("--hr: either this or --download is needed")
    if arguments.mirror and not arguments.download:
        raise UserError(f"--mirror {arguments.mirror}: is only for --download")
    for scale in (2, 3, 4):
        folder = getattr(arguments, f"lr_x{scale}")
        if folder is not None and scale not in arguments.scales:
            raise UserError(f"--lr-x{scale} {folder}: --scales leaves {scale} out")
    cutting = Cutting(arguments.crop_size, arguments.step, arguments.min_side, arguments.skip_small)
    given = {scale: getattr(arguments, f"lr_x{scale}") for scale in arguments.scales}
    hr = arguments.hr
    if arguments.download:
        hr = [download_div2k(arguments.out / "raw", arguments.mirror or DIV2K_ADDRESS)]
    counts = prepare_training_set(
        arguments.name,
        hr,
        arguments.out,
        tuple(arguments.scales),
        cutting,
        lr={scale: folder for scale, folder in given.items() if folder is not None},
        count=arguments.count,
        workers=arguments.workers,
    )
    script.report(counts)


if __name__ == "__main__":
    sys.exit(script.main(build_parser(), run))
