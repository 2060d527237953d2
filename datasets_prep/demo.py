"""The demo's data, from the photographs that the scikit-image package carries with it."""

import argparse
import sys
from pathlib import Path

import script

from esc_arch.prepare.demo import prepare_demo


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/demo"), help="default: %(default)s"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    prepare_demo(arguments.out)


if __name__ == "__main__":
    sys.exit(script.main(build_parser(), run))
