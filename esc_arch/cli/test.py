"""`basicsr test`: BasicSR's own testing, with every plugin registered."""

import argparse

from esc_arch.cli import pipeline

HELP = "Test a trained network on the data sets of an option file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's own testing flags, and which data sets to test on."""
    pipeline.add_arguments(parser)
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="test on these data sets of the option file only, e.g. Set5 Set14",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="test the network without a checkpoint (path: pretrain_network_g) on purpose",
    )


def run(args: argparse.Namespace) -> int:
    """Test. Results are written below the current folder."""
    return pipeline.run(
        args,
        is_train=False,
        datasets=args.datasets,
        random_weights=args.random_weights,
    )
