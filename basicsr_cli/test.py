"""`basicsr test`: BasicSR's own testing, with every plugin registered."""

import argparse

from basicsr_cli import pipeline

HELP = "Test a trained network on the data sets of an option file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's own testing flags."""
    pipeline.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Test. Results are written below the current folder."""
    return pipeline.run(args, is_train=False)
