"""`basicsr train` and `basicsr test` in the tests' own process, from command line to status."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esc_arch.cli.main import main

# isort: split
from basicsr.utils import get_root_logger
from basicsr.utils.logger import initialized_logger

WriteOptions = Callable[..., Path]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs start in a folder of their own, with a logger of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(sys, "argv", sys.argv)
    _forget_loggers()
    yield tmp_path
    _forget_loggers()


def _forget_loggers() -> None:
    """Each run adds a screen and a file to the one logger of the process."""
    for handler in list(get_root_logger().handlers):
        get_root_logger().removeHandler(handler)
        handler.close()
    initialized_logger.clear()


def command(*arguments: object) -> tuple[int, str]:
    """Run `basicsr`; returns its status, and what it says on stderr with its log."""
    _forget_loggers()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main([str(argument) for argument in arguments])
    return status, said.getvalue()


def train(options: Path, *flags: str, name: str = "tiny") -> str:
    """Train to the end; returns the log."""
    status, said = command("train", "-opt", options, *flags)
    assert status == 0, said[-3000:]
    return log_of(name)


def test_of(options: Path, *flags: str) -> str:
    """Test to the end; returns what is said."""
    status, said = command("test", "-opt", options, *flags)
    assert status == 0, said[-3000:]
    return said


test_of.__test__ = False


def refused(options: Path, *flags: str, subcommand: str = "train") -> str:
    """Run what must end with one line for each thing that is wrong; returns these lines."""
    status, said = command(subcommand, "-opt", options, *flags)
    assert status == 2, said[-3000:]
    assert "Traceback" not in said
    start = "basicsr: error: "
    lines = [line.removeprefix(start) for line in said.splitlines() if line.startswith(start)]
    # What ends the command is said last.
    assert said.splitlines()[-1] == start + lines[-1]
    return "\n".join(lines)


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
