"""Samples by their place in the run, and bad samples by their names."""

import os
import pickle
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader

from esc_arch.errors import UserError
from esc_arch.plugin.data.exact_order import BadSampleError, GuardedDataset, ResumableSampler
from esc_arch.plugin.random_states import random_states_of_all_processes, set_random_states


def options(gt: Path, lq: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "type": "PairedImageDataset",
        "dataroot_gt": str(gt),
        "dataroot_lq": str(lq),
        "io_backend": {"type": "lmdb" if gt.suffix == ".lmdb" else "disk"},
        "phase": "train",
        "scale": 2,
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": True,
        **changes,
    }


def guarded(opt: dict[str, Any], seed: int = 3) -> GuardedDataset:
    return GuardedDataset(build_dataset(opt), opt, seed)


def pixels(paired_data, workers: int, skipped: int = 0, seed: int = 3) -> list[torch.Tensor]:
    """All LR patches of epoch 5, after the first ones."""
    dataset = guarded(options(paired_data.train_gt, paired_data.train_lq), seed)
    sampler = ResumableSampler(dataset, 1, 0, 2)
    sampler.resume(5, skipped)
    sampler.set_epoch(5)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
    return [lq for batch in loader for lq in batch["lq"]]


def test_patches_depend_on_place_and_seed_only_not_on_workers_nor_history(paired_data):
    expected = pixels(paired_data, workers=0)
    assert len(expected) == 16
    for found, start in (
        (pixels(paired_data, workers=2), 0),
        (pixels(paired_data, workers=0, skipped=6), 6),
        (pixels(paired_data, workers=1, skipped=6), 6),
    ):
        assert len(found) == len(expected) - start
        assert all(map(torch.equal, found, expected[start:]))
    assert not all(map(torch.equal, pixels(paired_data, workers=0, seed=4), expected))


def test_reading_leaves_the_random_states_of_the_training_alone(paired_data):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    sampler = ResumableSampler(range(8), 1, 0)
    dataset = guarded(options(paired_data.train_gt, paired_data.train_lq))
    dataset[next(iter(sampler))]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == before


def test_random_states_come_back_from_a_file(tmp_path: Path):
    random.gauss(0, 1)
    np.random.randn()
    torch.save(random_states_of_all_processes(), tmp_path / "states")
    expected = (random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist())
    assert set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert (random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()) == expected
    assert not set_random_states([])


def test_the_sampler_has_basicsrs_order_shared_among_processes():
    for rank in range(2):
        theirs, ours = EnlargedSampler(range(9), 2, rank, 3), ResumableSampler(range(9), 2, rank, 3)
        theirs.set_epoch(4)
        ours.set_epoch(4)
        assert list(theirs) == list(ours)
        ours.resume(4, 10)
        assert list(theirs)[5:] == list(ours)
        ours.set_epoch(5)
        theirs.set_epoch(5)
        assert list(theirs) == list(ours)


@pytest.fixture
def broken_lmdb(tmp_path: Path, paired_data) -> Path:
    """A copy of the GT LMDB in which one value is cut short and one is missing."""
    copy = tmp_path / "broken.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"rocket_180", transaction.get(b"rocket_180")[:200])
        transaction.delete(b"astronaut_100")
    return copy


def position(dataset: GuardedDataset, name: str) -> int:
    return [Path(entry["gt_path"]).stem for entry in dataset.paths].index(name)


def test_a_bad_value_of_an_lmdb_is_named(broken_lmdb: Path, paired_data):
    dataset = guarded(options(broken_lmdb, paired_data.train_lq))
    for name, fault in (("rocket_180", "not a whole image"), ("astronaut_100", "missing")):
        with pytest.raises(BadSampleError, match=rf"key '{name}' of {broken_lmdb}: {fault}"):
            dataset[position(dataset, name)]


def test_a_worker_hands_on_the_message_alone(broken_lmdb: Path, paired_data):
    dataset = guarded(options(broken_lmdb, paired_data.train_lq))
    with pytest.raises(UserError) as error:
        list(DataLoader(dataset, num_workers=1))
    assert "\n" not in str(error.value) and str(error.value).startswith("datasets: train: key")


@pytest.fixture
def impatient() -> Iterator[None]:
    """Within it nothing is waited for."""

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError("it is read for ever")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 20, 1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="pipes and alarms of POSIX")
@pytest.mark.parametrize("kind", ["PairedImageDataset", "SingleImageDataset"])
@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
def test_a_pipe_or_device_in_place_of_an_image_is_not_read(
    special: str, kind: str, tmp_path: Path, paired_data: Any, impatient: None
):
    shutil.copytree(paired_data.val_lq, tmp_path / "lq")
    file = tmp_path / "lq" / "chelseax2.png"
    file.unlink()
    if special == "pipe":
        os.mkfifo(file)
    elif special == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    (tmp_path / "list.txt").write_text("chelsea.png\nchelseax2.png\n")
    opt = {
        "name": "odd",
        "phase": "val",
        "type": kind,
        "scale": 2,
        "dataroot_lq": str(tmp_path / "lq"),
        "io_backend": {"type": "disk"},
        "meta_info_file": str(tmp_path / "list.txt"),
        "filename_tmpl": "{}x2",
    }
    if kind == "PairedImageDataset":
        opt["dataroot_gt"] = str(paired_data.val_gt)
    data = GuardedDataset(build_dataset(opt), opt)
    index = 0 if kind == "PairedImageDataset" else 1
    with pytest.raises(BadSampleError, match="chelseax2.png: is a folder, a pipe or a device"):
        data[index]


def test_the_next_sample_takes_the_place_of_a_skipped_one(broken_lmdb: Path, paired_data, caplog):
    opt = options(broken_lmdb, paired_data.train_lq, on_bad_sample="skip")
    dataset = guarded(opt)
    index = position(dataset, "rocket_180")
    assert dataset[index]["gt_path"] == dataset.paths[(index + 1) % 8]["gt_path"]


def test_skipping_ends_where_nothing_can_be_read(tmp_path: Path, paired_data):
    for side, folder in (("HR", paired_data.val_gt), ("LR", paired_data.val_lq)):
        shutil.copytree(folder, tmp_path / side)
        for path in (tmp_path / side).iterdir():
            path.write_bytes(b"")
    opt = options(
        tmp_path / "HR", tmp_path / "LR", filename_tmpl="{}x2", on_bad_sample="skip", gt_size=16
    )
    with pytest.raises(BadSampleError, match="not one of 2 samples"):
        guarded(opt)[0]


def test_pairs_of_other_sizes_are_named(tmp_path: Path, paired_data):
    shutil.copytree(paired_data.val_lq, tmp_path / "LR")
    cv2.imwrite(str(tmp_path / "LR" / "coffeex2.png"), np.zeros((9, 9, 3), np.uint8))
    opt = options(paired_data.val_gt, tmp_path / "LR", filename_tmpl="{}x2", gt_size=16)
    dataset = guarded(opt)
    with pytest.raises(BadSampleError, match=r"coffee.png and .*coffeex2.png: .*[Mm]ismatch"):
        dataset[position(dataset, "coffee")]


def test_a_validation_pair_of_another_scale_is_named(tmp_path: Path, paired_data):
    shutil.copytree(paired_data.val_lq, tmp_path / "LR")
    cv2.imwrite(str(tmp_path / "LR" / "coffeex2.png"), np.zeros((21, 24, 3), np.uint8))
    opt = options(paired_data.val_gt, tmp_path / "LR", filename_tmpl="{}x2", phase="val")
    dataset = guarded(opt)
    with pytest.raises(
        BadSampleError, match=r"coffeex2.png is 24 x 21, but .*coffee.png 48 x 40: .* scale 2$"
    ):
        dataset[position(dataset, "coffee")]
    assert dataset[position(dataset, "chelsea")]["gt"].shape == (3, 40, 48)


@pytest.mark.parametrize("name", ["..", "a/../..", ".", "a\\..\\b"])
def test_a_name_that_would_leave_the_results_folder_is_refused(name: str, paired_data):
    opt = options(paired_data.train_gt, paired_data.train_lq, phase="val")
    dataset = guarded(opt)
    sample = dataset[0]
    dataset.dataset = [{**sample, "lq_path": name}]
    with pytest.raises(BadSampleError, match="cannot name a result image"):
        dataset[0]


def test_it_is_otherwise_the_data_set_it_wraps(paired_data):
    opt = options(paired_data.train_gt, paired_data.train_lq)
    dataset = guarded(opt)
    assert len(dataset) == 8
    assert dataset.opt["name"] == "tiny"
    assert len(pickle.loads(pickle.dumps(dataset)).paths) == 8
    with pytest.raises(AttributeError):
        _ = dataset.absent


def test_another_value_of_on_bad_sample_is_refused(paired_data):
    opt = options(paired_data.train_gt, paired_data.train_lq, on_bad_sample="ignore")
    with pytest.raises(UserError, match="on_bad_sample: 'ignore': must be one of stop, skip"):
        guarded(opt)


@pytest.mark.parametrize("pictures", [3, 6, 7, 24])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("first", "seen"), [(0, 0), (1, 4), (2, 1000)])
def test_all_processes_get_as_many_batches_as_are_planned_in_basicsrs_order(
    pictures: int, processes: int, batch: int, first: int, seen: int
):
    for total in (5, 37):
        counts, places = [], []
        for rank in range(processes):
            sampler = ResumableSampler(range(pictures), processes, rank)
            if len(sampler) < batch:
                return
            sampler.resume(first, seen)
            last = sampler.plan(total, batch, first)
            given = 0
            for epoch in range(first, last + 1):
                sampler.set_epoch(epoch)
                indices = list(sampler)
                given += len(indices) // batch
                places += [index.place for index in indices]
                theirs = EnlargedSampler(range(pictures), processes, rank)
                theirs.set_epoch(epoch)
                if epoch > first or seen == 0:
                    assert [int(index) for index in indices] == list(theirs)[: len(indices)]
            counts.append(given)
        assert counts == [total] * processes
        assert len(places) == len(set(places))
        assert min(places) >= (first, min(seen, 1000))


def test_the_published_training_on_div2k_reaches_its_last_iteration():
    # BasicSR counts 510 batches an epoch of which the loader gives 509, and ends after 982 epochs.
    sampler = ResumableSampler(range(32_592), 1, 0)
    assert 982 * (32_592 // 64) == 499_838
    assert sampler.plan(500_000, 64) == 982
    sampler.set_epoch(982)
    assert sum(1 for _ in sampler) == 64 * (500_000 - 499_838)
