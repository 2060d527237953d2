"""Tests of `basicsr test` that do not end: older results are in place again."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_in_process import (
    WriteOptions,
    folder,  # noqa: F401  (each test starts in it)
    train,
)

from esc_arch.errors import UserError
from esc_arch.plugin import testing


class EndsWithin(torch.utils.data.Dataset):
    """Ends the run as its second image is read."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt, self.paths = opt, ["a.png", "b.png"]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            ENDS[self.opt["ending"]]()
        return {"lq": torch.zeros(3, 8, 8), "lq_path": self.paths[index]}


def _raise(error: BaseException) -> None:
    raise error


ENDS: dict[str, Callable[[], None]] = {
    "Ctrl-C": lambda: _raise(KeyboardInterrupt()),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: _raise(SystemExit(3)),
    "error": lambda: _raise(UserError("unreadable")),
}


@pytest.mark.parametrize("ending", ENDS)
def test_a_test_that_does_not_end_leaves_the_older_results_in_place(
    ending: str, write_train_options: WriteOptions, write_test_options: WriteOptions
):
    from basicsr.utils.registry import DATASET_REGISTRY

    train(write_train_options())
    Path("results/tiny_test/visualization").mkdir(parents=True)
    Path("results/tiny_test/visualization/older.png").write_bytes(b"older")
    DATASET_REGISTRY._obj_map["EndsWithin"] = EndsWithin
    options = write_test_options(
        {"datasets": {"test_1": {"name": "set", "type": "EndsWithin", "ending": ending}}}
    )
    arguments, sys.argv = sys.argv, ["basicsr", "-opt", str(options)]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit, UserError)) as ended:
            testing.test(str(Path.cwd()))
    finally:
        sys.argv = arguments
        del DATASET_REGISTRY._obj_map["EndsWithin"]
    if ending == "SIGTERM":
        assert ended.value.code == 143
    assert [path.name for path in Path("results").iterdir()] == ["tiny_test"]
    found = [path.name for path in Path("results/tiny_test").rglob("*")]
    assert found == ["visualization", "older.png"]
    assert signal.getsignal(signal.SIGTERM) is before
