"""Runs that are killed, stopped, starved of disk or fed bad data, in processes of their own."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from option_data import picture, write_folder
from published_templates import ABSENT, REAL, Published
from torch.utils.tensorboard import SummaryWriter

from esc_arch.plugin.disk_faults import ForgivingLogger

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils import get_root_logger
from training_runs import OPTIONS, Run, load, losses, same


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Holds the reference run once a test has made it."""
    return {"folder": tmp_path_factory.mktemp("uninterrupted")}


@pytest.fixture
def reference(uninterrupted: dict[str, Any], write_train_options) -> dict[str, Any]:
    """A run of 20 iterations that nothing disturbs: its folder and its log."""
    if "log" not in uninterrupted:
        run = Run(uninterrupted["folder"], "-opt", write_train_options(OPTIONS))
        assert run.finish() == 0, run.log[-3000:]
        uninterrupted["log"] = run.log
    return uninterrupted


def check_same_end(folder: Path, reference: dict[str, Any]) -> None:
    """The checkpoints of both runs at the end hold the same, to the last bit."""
    ours, theirs = (root / "experiments" / "tiny" for root in (folder, reference["folder"]))
    for name in ("models/net_g_20.pth", "models/net_g_latest.pth", "training_states/20.state"):
        ends = [load(root / name) for root in (ours, theirs)]
        for end in ends:
            # Some tests compare two models, or numbers of processes.
            end.pop("options", None)
        assert same(*ends), name


def test_killed_and_resumed_it_ends_with_the_same_weights_and_losses(
    tmp_path: Path, reference: dict[str, Any], write_train_options
):
    options = write_train_options(OPTIONS)
    killed = Run(tmp_path, "-opt", options)
    killed.read_until(r"iter: +7,")
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.finish()

    resumed = Run(tmp_path, "-opt", options, "--auto_resume")
    assert resumed.finish() == 0, resumed.log[-3000:]
    expected = losses(reference["log"])
    assert len(expected) == 20
    assert losses(resumed.log) == {k: v for k, v in expected.items() if k > 5}
    check_same_end(tmp_path, reference)
    validated = [
        (folder / "experiments/tiny/validation.json").read_text()
        for folder in (tmp_path, reference["folder"])
    ]
    assert validated[0] == validated[1]
    best = re.findall(r"Best: .*", reference["log"])
    assert re.findall(r"Best: .*", resumed.log)[-1] == best[-1]


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_current_iteration_and_says_how_to_go_on(
    name: str, tmp_path: Path, reference: dict[str, Any], write_train_options
):
    number = getattr(signal, name)
    # BasicSR's own model, which takes the same steps, survives likewise.
    options = write_train_options({**OPTIONS, "model_type": "SRModel"})
    run = Run(tmp_path, "-opt", options)
    run.read_until(r"iter: +13,")
    # To the loading processes too, as a terminal and most job managers do it.
    os.killpg(run.process.pid, number)
    assert run.finish() == 128 + number, run.log[-3000:]
    assert "Traceback" not in run.log
    last = run.log.strip().splitlines()[-1]
    saved = int(re.search(rf"stopped by {name}, saved iteration (\d+); go on with", last)[1])
    assert 13 <= saved < 20
    assert f"basicsr train --auto_resume -opt {options}" in last
    assert (tmp_path / f"experiments/tiny/training_states/{saved}.state").is_file()

    if name == "SIGTERM":
        resumed = Run(tmp_path, "-opt", options, "--auto_resume")
        assert resumed.finish() == 0, resumed.log[-3000:]
        expected = losses(reference["log"])
        assert losses(resumed.log) == {k: v for k, v in expected.items() if k > saved}
        check_same_end(tmp_path, reference)


@pytest.mark.slow
def test_a_signal_ends_a_run_that_prefetches_by_a_thread(tmp_path: Path, write_train_options):
    prefetched = {
        "datasets:train:prefetch_mode": "cpu",
        "datasets:train:num_worker_per_gpu": 1,
        "train:total_iter": 100_000,
        "val:val_freq": 100_000,
        "logger:save_checkpoint_freq": 100_000,
    }
    run = Run(tmp_path, "-opt", write_train_options({**OPTIONS, **prefetched}))
    run.read_until(r"iter: +3,")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 128 + signal.SIGTERM, run.log[-3000:]
    assert re.search(r"stopped by SIGTERM, saved iteration \d+; go on with", run.log)


@pytest.mark.slow
def test_real_esrnet_prefetching_without_workers_ends_well(tmp_path: Path):
    write_folder(tmp_path / "gt", {name: picture(128) for name in "ab"})
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    changes = {
        "datasets:train:num_worker_per_gpu": 0,
        "datasets:train:prefetch_mode": "cpu",
        "queue_size": 4,
        "train:total_iter": 2,
        "val": None,
        "datasets:val": ABSENT,
    }
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(Published("", {**REAL, **changes}).options()))
    # In a process of its own, since a thread that still loads aborted its end.
    run = Run(tmp_path, "-opt", options)
    assert run.finish() == 0, run.log[-3000:]
    assert "one process is started to load data, so that random numbers repeat" in run.log


@pytest.mark.slow
def test_auto_resume_passes_over_damaged_checkpoints_and_says_why(
    tmp_path: Path, write_train_options
):
    short = {**OPTIONS, "train:total_iter": 6, "logger:save_checkpoint_freq": 2}
    options = write_train_options(short)
    assert Run(tmp_path, "-opt", options).finish() == 0
    experiment = tmp_path / "experiments" / "tiny"
    model = experiment / "models" / "net_g_6.pth"
    model.write_bytes(model.read_bytes()[:-1000])
    state = experiment / "training_states" / "4.state"
    content = bytearray(state.read_bytes())
    # More than the padding between two tensors, which is nobody's.
    for place in range(len(content) // 2, len(content) // 2 + 100):
        content[place] ^= 1
    state.write_bytes(content)

    changes = ["train:optim_g:lr=2e-4", "train:scheduler:milestones=[4]"]
    run = Run(tmp_path, "-opt", options, "--auto_resume", "--force_yml", *changes)
    assert run.finish() == 0, run.log[-3000:]
    assert (
        "WARNING: Resuming keeps what the training state says: lr 0.001 (the options say 0.0002), "
        "milestones [3] (the options say [4]). path: resume_schedule: options takes the schedule"
    ) in run.log
    assert re.search(r"not resumed from iteration 6: .*net_g_6.pth: not a checkpoint", run.log)
    assert re.search(r"not resumed from iteration 4: .*4.state: damaged", run.log)
    assert sorted(losses(run.log)) == [3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "lr", "warmup"),
    [([5], 1e-3, {}), ([1, 2], 1e-3, {}), ([2], 2e-3, {"train:warmup_iter": 2})],
    ids=["milestones to come", "milestones that are past", "another rate"],
)
def test_a_schedule_changed_on_resuming_goes_on_as_if_from_the_start(
    before: list[int], lr: float, warmup: dict, tmp_path: Path, write_train_options
):
    """The rates are; the weights too where no step before had another."""
    whole = {**OPTIONS, **warmup, "train:total_iter": 6, "logger:save_checkpoint_freq": 3}
    whole |= {"train:scheduler:milestones": [4], "train:optim_g:lr": 1e-3}
    (tmp_path / "whole").mkdir()
    assert Run(tmp_path / "whole", "-opt", write_train_options(whole)).finish() == 0

    first = {**whole, "train:total_iter": 3, "train:scheduler:milestones": before}
    first["train:optim_g:lr"] = lr
    (tmp_path / "parts").mkdir()
    options = write_train_options(first)
    assert Run(tmp_path / "parts", "-opt", options).finish() == 0
    changes = ["path:resume_schedule=options", "train:scheduler:milestones=[4]"]
    changes.append("train:optim_g:lr=1.0e-3")
    run = Run(
        tmp_path / "parts",
        *("-opt", options, "--auto_resume", "--force_yml", "train:total_iter=6", *changes),
    )
    assert run.finish() == 0, run.log[-3000:]
    assert "Resuming keeps" not in run.log
    saved = [tmp_path / part / "experiments/tiny" for part in ("whole", "parts")]
    if before == [5]:
        for name in ("models/net_g_6.pth", "training_states/6.state"):
            assert same(*(load(folder / name) for folder in saved)), name
    states = [load(folder / "training_states/6.state") for folder in saved]
    assert states[0]["schedulers"] == states[1]["schedulers"]
    groups = [state["optimizers"][0]["param_groups"] for state in states]
    assert groups[0] == groups[1]
    # BasicSR's warm-up of 2 leaves half of it, for good.
    rate = "0.0005" if warmup else "0.001"
    assert f"The learning rate goes on as the options' schedule has it: {rate} (saved: " in run.log


def test_a_full_disk_is_reported_and_training_goes_on(tmp_path: Path, write_train_options):
    options = write_train_options({**OPTIONS, "train:total_iter": 7})
    run = Run(
        tmp_path,
        "-opt",
        options,
        # No file may grow beyond this many bytes: weights fit, training states do not.
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert run.finish() == 0, run.log[-3000:]
    assert "Iteration 5 not saved: File too large" in run.log
    assert sorted(losses(run.log)) == list(range(1, 8))
    written = {path.name for path in (tmp_path / "experiments/tiny").rglob("*") if path.is_file()}
    assert not any(name.endswith((".state", ".tmp")) for name in written)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB, where this system lets one be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with open(folder / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(512))


def test_on_a_disk_without_a_free_byte_training_goes_on_and_the_end_tells(
    small_disk: Path, write_train_options
):
    changes = {"val:save_img": True, "logger:use_tb_logger": True, "train:total_iter": 30}
    run = Run(small_disk, "-opt", write_train_options({**OPTIONS, **changes}))
    run.read_until(r"iter: +6,")
    fill(small_disk)
    assert run.finish() == 2
    assert sorted(losses(run.log)) == list(range(1, 31))
    for line in (
        "Iteration 25 not saved: No space left on device. Older checkpoints are untouched; ",
        "chelseax2_25.png not written: ",
        "End of the training not saved: No space left on device.",
    ):
        assert line in run.log, run.log[-3000:]
    assert "Logging error" not in run.log
    last = run.log.strip().splitlines()[-1]
    assert last.startswith("basicsr: error: the training is done, but its end could not be saved: ")
    experiment = small_disk / "experiments" / "tiny"
    load(experiment / "models/net_g_5.pth"), load(experiment / "training_states/5.state")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk_falls_silent_with_one_line(
    small_disk: Path, caplog: pytest.LogCaptureFixture
):
    # BasicSR's logger hands nothing on to the root's.
    get_root_logger().addHandler(caplog.handler)
    writer = SummaryWriter(small_disk)
    logger = ForgivingLogger(writer)
    fill(small_disk)
    for current_iter in range(3):
        # More than the rest of the disk's last page.
        logger.add_text("long", "text" * 5000, current_iter)
        logger.flush()
    logger.close()
    get_root_logger().removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard: No space left on device. Nothing more is written for it until the run is "
        "resumed; training goes on."
    ]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, write_train_options):
    options = write_train_options(OPTIONS)
    run = Run(
        tmp_path,
        "-opt",
        options,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert run.finish() == 2
    assert "Traceback" not in run.log
    assert run.log.strip().splitlines()[-1].endswith(": File too large")
