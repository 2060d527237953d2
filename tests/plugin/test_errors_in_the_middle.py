"""An error in the middle of a training: what was trained is saved, and nothing older is lost."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import pytest
import torch
from option_data import picture
from runs_in_process import (
    WriteOptions,
    folder,  # noqa: F401  (each test starts in it)
    iterations,
    log_of,
    refused,
    state,
    train,
)

KEYS = [f"{name}_{left}" for name in ("astronaut", "rocket") for left in (100, 180, 260, 340)]


def last_key_of_the_first_epoch() -> str:
    """The picture that BasicSR's shuffling takes last."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    return KEYS[order[-1]]


def replaced(copy: Path, source: Path, content: bytes | Callable[[bytes], bytes]) -> Path:
    """Make a copy of an LMDB in which the picture that is read last is another."""
    shutil.copytree(source, copy)
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        key = last_key_of_the_first_epoch().encode()
        new = content if isinstance(content, bytes) else content(transaction.get(key))
        transaction.put(key, new)
    return copy


def broken_training_picture(data: Any, place: Path) -> dict[str, Any]:
    gt = replaced(place / "gt.lmdb", data.train_gt, lambda value: value[:200])
    return {"datasets:train:dataroot_gt": str(gt)}


def picture_smaller_than_the_patch(data: Any, place: Path) -> dict[str, Any]:
    sides = {}
    for side, size in (("gt", 24), ("lq", 12)):
        content = cv2.imencode(".png", picture(size))[1].tobytes()
        root = replaced(place / f"{side}.lmdb", getattr(data, f"train_{side}"), content)
        sides[f"datasets:train:dataroot_{side}"] = str(root)
    return sides


def broken_picture_of_validation(data: Any, place: Path) -> dict[str, Any]:
    shutil.copytree(data.val_gt, place / "gt")
    file = place / "gt" / "coffee.png"
    # Its header is whole, so that the start finds nothing.
    file.write_bytes(file.read_bytes()[:600])
    return {"datasets:val:dataroot_gt": str(place / "gt")}


def argument_of_a_metric(data: Any, place: Path) -> dict[str, Any]:
    return {"val:metrics:psnr:input_order": "CWH"}


ERRORS: dict[Callable[..., dict[str, Any]], str] = {
    broken_training_picture: f"key '{last_key_of_the_first_epoch()}' of ",
    picture_smaller_than_the_patch: f"key '{last_key_of_the_first_epoch()}' of ",
    broken_picture_of_validation: "coffee.png",
    argument_of_a_metric: "Wrong input_order",
}


@pytest.mark.parametrize("fault", ERRORS, ids=lambda fault: fault.__name__)
def test_what_was_trained_is_saved_before_an_error_ends_the_run(
    fault: Callable[..., dict[str, Any]],
    write_train_options: WriteOptions,
    paired_data: Any,
    tmp_path: Path,
):
    options = {"val:val_freq": 3, "logger:save_checkpoint_freq": 100, "train:total_iter": 6}
    changes = fault(paired_data, tmp_path)
    said = refused(write_train_options({**options, **changes}), "--no-preflight")
    assert ERRORS[fault] in said and len(said.splitlines()) == 1
    assert "The run ends with an error; saved iteration 3." in log_of("tiny")
    assert state(3)["iter"] == 3
    # Once the cause is mended the run goes on from there.
    log = train(write_train_options(options), "--auto_resume")
    assert iterations(log) == [4, 5, 6]


def test_an_older_experiment_stays_where_the_run_cannot_begin(
    write_train_options: WriteOptions, tmp_path: Path
):
    train(write_train_options())
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    Path("wrong.pth").write_bytes(b"no checkpoint")
    for changes in (
        {"path:pretrain_network_g": "wrong.pth"},
        {"train:accumulate_steps": "x"},
        {"datasets:train:on_bad_sample": "y"},
        {"datasets:val:name": "tiny", "datasets:val_2": {"name": "tiny"}},
    ):
        for flags in ([], ["--no-preflight"]):
            assert refused(write_train_options(changes), *flags)
    Path("wrong.pth").unlink()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fails_at", [0, 3])
def test_an_error_of_anybodys_code_is_one_line_with_its_traceback_in_the_log(
    fails_at: int, write_train_options: WriteOptions
):
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import MODEL_REGISTRY

    class FailingModel(SRModel):
        def optimize_parameters(self, current_iter: int) -> None:
            self.fail(current_iter)
            super().optimize_parameters(current_iter)

        def setup_optimizers(self) -> None:
            super().setup_optimizers()
            self.fail(0)

        def fail(self, iteration: int) -> None:
            if iteration == fails_at:
                raise NotImplementedError("not with\nthis")

    MODEL_REGISTRY.register(FailingModel)
    try:
        line = refused(write_train_options({"model_type": "FailingModel"}))
    finally:
        del MODEL_REGISTRY._obj_map["FailingModel"]
    said = r"NotImplementedError: not with this \(.*test_errors_in_the_middle.py, line \d+\); "
    said += r"the traceback is in (experiments/tiny/train_tiny_\S+\.log)"
    found = re.fullmatch(said, line)
    assert "Traceback (most recent call last)" in Path(found[1]).read_text()
    assert ("saved iteration 2" in Path(found[1]).read_text()) == (fails_at == 3)


def test_weights_that_are_not_finite_are_no_matter_of_room(write_train_options: WriteOptions):
    # Adam divides by the root of what is 0 for a weight without a gradient.
    changes = {"train:optim_g": {"type": "Adam", "lr": 1e-3, "eps": 0}, "train:total_iter": 3}
    line = refused(write_train_options({**changes, "train:pixel_opt:loss_weight": 0}))
    assert "net_g has values that are not finite; try a lower lr or grad_clip; go on with" in line
