"""Benchmark sets: HR as PNG and LR as MATLAB's bicubic makes it, or checked against yours."""

import argparse
import sys
from pathlib import Path

import script

from esc_arch.errors import UserError
from esc_arch.prepare.benchmark_sets import BENCHMARK_SETS, find_benchmark_sets, prepare_set
from esc_arch.prepare.images import BadInputs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder with a folder for each set"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/benchmarks"), help="default: %(default)s"
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=BENCHMARK_SETS,
        default=list(BENCHMARK_SETS),
        metavar="SET",
        help=", ".join(BENCHMARK_SETS),
    )
    parser.add_argument(
        "--scales", type=int, nargs="+", choices=(2, 3, 4), default=[2, 3, 4], metavar="S"
    )
    script.add_workers(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    problems = []
    for name, folder in find_benchmark_sets(arguments.src, arguments.sets).items():
        try:
            made = prepare_set(
                name,
                folder,
                arguments.out / name,
                tuple(arguments.scales),
                BENCHMARK_SETS[name][0],
                arguments.workers,
            )
            print(made)
        except UserError as error:
            problems += str(error).splitlines()
    if problems:
        raise BadInputs(problems)


if __name__ == "__main__":
    sys.exit(script.main(build_parser(), run))
