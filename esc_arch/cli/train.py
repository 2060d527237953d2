"""`basicsr train`: BasicSR's own training, with every plugin registered."""

import argparse

from esc_arch.cli import pipeline

HELP = "Train the network of an option file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add BasicSR's own training flags."""
    pipeline.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train. Experiments are written below the current folder."""
    return pipeline.run(args, is_train=True)
