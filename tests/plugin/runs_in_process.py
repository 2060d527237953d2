"""Training in the tests' own process, through what `basicsr train` calls after its checks."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esc_arch.plugin import training

# isort: split
from basicsr.utils import get_root_logger
from basicsr.utils.logger import initialized_logger

WriteOptions = Callable[..., Path]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs start in a folder of their own, with a logger of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    initialized_logger.clear()
    yield tmp_path
    for handler in list(get_root_logger().handlers):
        get_root_logger().removeHandler(handler)
        handler.close()
    initialized_logger.clear()


def train(options: Path, *flags: str) -> str:
    """Train; returns the log."""
    arguments = sys.argv
    sys.argv = ["basicsr", "-opt", str(options), *flags]
    # Each run adds a file to the one logger of the process.
    for handler in list(get_root_logger().handlers):
        get_root_logger().removeHandler(handler)
    initialized_logger.clear()
    try:
        assert training.train(str(Path.cwd())) == 0
    finally:
        sys.argv = arguments
    return log_of("tiny")


def log_of(name: str) -> str:
    logs = sorted(Path("experiments", name).glob("train_*.log"), key=lambda p: p.stat().st_mtime)
    return logs[-1].read_text()


def iterations(log: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"iter: +([\d,]+),", log)]


def state(iteration: int) -> dict[str, Any]:
    path = Path("experiments/tiny/training_states", f"{iteration}.state")
    return torch.load(path, weights_only=True)


class told:
    """What BasicSR's logger is told within it."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        get_root_logger().addHandler(self.handler)
        return self.lines

    def __exit__(self, *_: object) -> None:
        get_root_logger().removeHandler(self.handler)


def train_named(name: str, options: Path, *flags: str) -> None:
    sys_argv, sys.argv = sys.argv, ["basicsr", "-opt", str(options), *flags]
    try:
        assert training.train(str(Path.cwd())) == 0
    finally:
        sys.argv = sys_argv
