"""Steps, samples and checkpoints that training leaves out or removes, in the tests' own process."""

import multiprocessing
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from runs_in_process import WriteOptions, folder, iterations, log_of, refused, train  # noqa: F401
from training_runs import OPTIONS, load


def test_keep_checkpoints_spares_the_newest_and_the_best(
    tmp_path: Path, write_train_options: WriteOptions
):
    options = write_train_options(
        {
            **OPTIONS,
            "train:total_iter": 6,
            # Steps this long make the weights worse each time, so the first are the best.
            "train:optim_g": {"type": "SGD", "lr": 0.5},
            "train:ema_decay": None,
            "val:val_freq": 1,
            "logger:save_checkpoint_freq": 1,
            "logger:keep_checkpoints": 2,
        }
    )
    best = int(re.findall(r"Best: [\d.]+ @ (\d+) iter", train(options))[-1])
    assert best < 5
    experiment = tmp_path / "experiments" / "tiny"
    kept = {path.stem for path in (experiment / "training_states").iterdir()}
    assert kept == {str(best), "5", "6"}
    weights = {path.stem for path in (experiment / "models").iterdir()}
    assert weights == {f"net_g_{name}" for name in [*kept, "latest"]}


def test_steps_that_are_not_finite_are_left_out_and_end_the_run_at_last(
    tmp_path: Path, write_train_options: WriteOptions
):
    options = write_train_options(
        {
            **OPTIONS,
            "train:optim_g": {"type": "SGD", "lr": 1e38},
            "train:max_bad_steps": 3,
            "logger:save_checkpoint_freq": 1,
        }
    )
    said = r"^train: max_bad_steps: 3: at iteration .*"
    said += r"learning rate \de\+3\d, images (astronaut|rocket)_\d+, "
    assert re.search(said, refused(options))
    assert "this step is left out (2 in a row)" in log_of("tiny")
    for path in (tmp_path / "experiments/tiny/models").iterdir():
        content = load(path)
        for weights in (content["params"], content["params_ema"]):
            assert all(value.isfinite().all() for value in weights.values())


@pytest.fixture
def broken_lmdb(tmp_path: Path, paired_data) -> Path:
    """A copy of the GT LMDB in which one value is cut short and one is missing."""
    copy = tmp_path / "broken.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"rocket_180", transaction.get(b"rocket_180")[:200])
        transaction.delete(b"astronaut_100")
    return copy


def test_a_bad_sample_ends_the_run_with_its_key_and_file(
    broken_lmdb: Path, tmp_path: Path, write_train_options: WriteOptions
):
    options = write_train_options({**OPTIONS, "datasets:train:dataroot_gt": str(broken_lmdb)})
    said = rf"key '(rocket_180' of {broken_lmdb}: not a whole image"
    said += rf"|astronaut_100' of {broken_lmdb}: missing)"
    (line,) = refused(options).splitlines()
    assert re.search(said, line)


@pytest.fixture(params=multiprocessing.get_all_start_methods())
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    """Loading processes are started in one of the ways that Python has."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_bad_samples_are_skipped_and_logged_where_the_options_say_so(
    broken_lmdb: Path, write_train_options: WriteOptions, start_method: None
):
    options = write_train_options(
        {
            **OPTIONS,
            "train:total_iter": 12,
            "datasets:train:num_worker_per_gpu": 1,
            "datasets:train:dataroot_gt": str(broken_lmdb),
            "datasets:train:on_bad_sample": "skip",
        }
    )
    log = train(options)
    assert len(iterations(log)) == 12
    for key in ("rocket_180", "astronaut_100"):
        assert re.search(rf"(?m)^[-\d:, ]+ WARNING: datasets: train: key '{key}' .*skipped", log)
