"""Training in two processes that gloo connects: the same as in one, and ended together.

They are started by one torchrun, by two (as on two machines), or with the variables of SLURM.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import (
    COMMAND,
    ENVIRONMENT,
    OPTIONS,
    TORCHRUN,
    Run,
    check_alike,
    losses,
    measured,
    train_alone,
    weights,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Holds the undisturbed runs once a test has made them."""
    return {"root": tmp_path_factory.mktemp("finished")}


@pytest.fixture
def alone(finished: dict[str, Any], write_train_options: Callable[..., Path]) -> Path:
    """Folder of a run in one process with batches of 4."""
    folder = finished["root"] / "alone"
    if not folder.exists():
        folder.mkdir()
        options = write_train_options({**OPTIONS, "datasets:train:batch_size_per_gpu": 4})
        finished["alone"] = train_alone(folder, "-opt", options)
    return folder


@pytest.fixture
def together(finished: dict[str, Any], write_train_options: Callable[..., Path]) -> Path:
    """Folder of a run in two processes with batches of 2, each in a folder below it."""
    folder = finished["root"] / "together"
    if not folder.exists():
        folder.mkdir()
        run = Run(folder, "-opt", write_train_options(OPTIONS), apart=True)
        assert run.finish() == 0, run.log[-3000:]
        finished["together"] = run.log
    return folder


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(
    alone: Path, together: Path, finished: dict[str, Any]
):
    check_alike(together / "rank0", alone)
    assert losses(finished["together"]) == pytest.approx(losses(finished["alone"]), rel=1e-3)
    assert sorted(losses(finished["alone"])) == list(range(1, 9))
    assert {"4", "8"} <= measured(alone).keys()
    # The agreement means something: more has been learned between the two than may differ.
    first, last = (weights(alone, iteration)["params"] for iteration in (4, 8))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first, last, rtol=1e-2, atol=1e-4)


def test_only_the_first_process_writes(together: Path, alone: Path):
    assert list((together / "rank1").iterdir()) == []

    def written(folder: Path) -> list[str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        # The log's name has the time in it.
        return sorted(re.sub(r"tiny_\d+_\d+", "tiny", str(p.relative_to(folder))) for p in files)

    assert written(together / "rank0") == written(alone)


def test_two_processes_go_on_to_total_iter_where_epochs_leave_samples_over(
    tmp_path: Path, write_train_options: Callable[..., Path]
):
    # Of 4 pictures for each process a batch of 3 leaves one over.
    changes = {"datasets:train:dataset_enlarge_ratio": 1, "datasets:train:batch_size_per_gpu": 3}
    options = {**OPTIONS, **changes, "train:total_iter": 7}
    run = Run(tmp_path, "-opt", write_train_options(options))
    assert run.finish() == 0, run.log[-3000:]
    assert sorted(losses(run.log)) == list(range(1, 8))


def test_a_killed_process_ends_both_with_a_message(
    tmp_path: Path, write_train_options: Callable[..., Path]
):
    run = Run(tmp_path, "-opt", write_train_options({**OPTIONS, "train:total_iter": 2000}))
    run.read_until(r"iter: +1,")
    run.signal(1, signal.SIGKILL)
    assert run.finish(timeout=60) != 0
    assert re.search(
        r"^basicsr: error: another of the 2 processes is gone, rank 0 ends too: .*--auto_resume$",
        run.log,
        re.MULTILINE,
    ), run.log[-5000:]


def test_one_process_goes_on_where_two_stopped(
    tmp_path: Path, together: Path, alone: Path, write_train_options: Callable[..., Path]
):
    shutil.copytree(together / "rank0" / "experiments", tmp_path / "experiments")
    experiment = tmp_path / "experiments" / "tiny"
    (experiment / "training_states" / "8.state").unlink()
    # As if killed after iteration 4 was saved and before it was validated.
    (experiment / "validation.json").unlink()
    options = write_train_options({**OPTIONS, "datasets:train:batch_size_per_gpu": 4})
    log = train_alone(tmp_path, "-opt", options, "--auto_resume")
    assert sorted(losses(log)) == [5, 6, 7, 8]
    assert "The training state is of another number of processes" in log
    check_alike(tmp_path, alone)


def test_a_signal_to_all_saves_once_and_says_how_to_go_on(
    tmp_path: Path, write_train_options: Callable[..., Path]
):
    options = write_train_options({**OPTIONS, "train:total_iter": 2000})
    run = Run(tmp_path, "-opt", options)
    run.read_until(r"iter: +5,")
    # To torchrun, which hands it on.
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() != 0
    found = re.findall(r"stopped by SIGTERM, saved iteration (\d+); go on with", run.log)
    assert len(found) == 1, run.log[-3000:]
    assert (tmp_path / f"experiments/tiny/training_states/{found[0]}.state").is_file()


def free_port() -> int:
    """Below those that systems hand out for connections, which may take any of theirs meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def machines(folder: Path, *arguments: object) -> tuple[Run, Run]:
    """Two of torchrun, as on two machines that share a folder; the first returned has rank 0."""
    meeting = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=tiny",
        "--local_addr=127.0.0.1",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
    ]
    torchrun = [*TORCHRUN[:3], *meeting]
    runs = [
        Run(folder, *arguments, torchrun=[*torchrun, f"--rdzv_conf=is_host={int(is_host)}"])
        for is_host in (True, False)
    ]
    # Of two on one machine torchrun gives rank 0 to the lower process id.
    first, second = sorted(runs, key=lambda run: run.process.pid)
    return first, second


def test_a_machine_that_is_gone_ends_the_other_and_two_go_on_from_there(
    tmp_path: Path, together: Path, write_train_options: Callable[..., Path]
):
    options = write_train_options({**OPTIONS, "train:total_iter": 2000})
    first, second = machines(tmp_path, "-opt", options)
    first.read_until(r"iter: +5,")
    second.signal(1, signal.SIGKILL)
    os.killpg(second.process.pid, signal.SIGKILL)
    second.finish()
    assert first.finish(timeout=60) != 0
    assert "basicsr: error: another of the 2 processes is gone, rank 0 ends too" in first.log

    # It may have come far meanwhile; the run to compare with has 8 iterations.
    for state in (tmp_path / "experiments" / "tiny" / "training_states").iterdir():
        if int(state.stem) > 4:
            state.unlink()
    both = machines(tmp_path, "-opt", write_train_options(OPTIONS), "--auto_resume")
    assert [run.finish() for run in both] == [0, 0], both[0].log[-3000:]
    assert sorted(losses(both[0].log)) == [5, 6, 7, 8]
    ours, theirs = weights(tmp_path), weights(together / "rank0")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


RESUMES_FROM = r"""
import os, sys
import torch.distributed
import esc_arch
from esc_arch.plugin.agreement import same_everywhere

torch.distributed.init_process_group("gloo")
iteration = int(sys.argv[1 + int(os.environ["RANK"])])
load = same_everywhere(lambda opt: {"iter": iteration} if iteration else None)
try:
    load({})
except Exception as error:
    # One write, which another process cannot break into.
    os.write(1, f"{type(error).__name__} {error}\n".encode())
"""


def test_machines_that_see_different_states_do_not_resume(tmp_path: Path):
    (tmp_path / "load.py").write_text(RESUMES_FROM)
    run = subprocess.run(
        [*TORCHRUN, "load.py", "4", "0"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    for line in (
        "UserError rank 0 would go on from iteration 4, others from 0: ",
        "UserError rank 1 would go on from iteration 0, others from 4: ",
    ):
        assert line in run.stdout, run.stderr


def test_slurm_starts_two_and_its_signal_saves(
    tmp_path: Path, write_train_options: Callable[..., Path]
):
    # SLURM's own name for the first machine is all that BasicSR asks it.
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostname node[1-2]" ] && echo localhost\n')
    scontrol.chmod(0o755)
    dist_params = {"backend": "nccl", "port": free_port()}
    options = write_train_options({**OPTIONS, "train:total_iter": 2000, "dist_params": dist_params})
    environment = {
        **ENVIRONMENT,
        "PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
    }
    processes = [
        subprocess.Popen(
            [*COMMAND, "-opt", options, "--launcher", "slurm", "--auto_resume"],
            cwd=tmp_path,
            env={**environment, "SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        log = ""
        while not re.search(r"iter: +5,", log):
            line = processes[0].stdout.readline()
            assert line, log[-3000:]
            log += line
        for process in processes:
            process.send_signal(signal.SIGUSR1)
        log += processes[0].communicate(timeout=120)[0]
        assert "stopped by" not in processes[1].communicate(timeout=120)[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    # 128 plus the signal's number, by which a job script can tell.
    assert [process.returncode for process in processes] == [128 + signal.SIGUSR1] * 2
    (found,) = re.findall(r"stopped by SIGUSR1, saved iteration (\d+); go on with", log)
    assert (tmp_path / f"experiments/tiny/training_states/{found}.state").is_file()


SILENT = """
import os, signal, sys
import torch.distributed
import esc_arch
from esc_arch.plugin.process_watch import ProcessWatch

torch.distributed.init_process_group("gloo")
watch = ProcessWatch(limit_seconds=4)
torch.distributed.barrier()
if os.environ["RANK"] == "2":
    watch.leave()
    sys.exit()
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
torch.distributed.recv(torch.zeros(1), src=1)
"""


def test_a_process_that_falls_silent_ends_the_others_but_one_that_leaves_does_not(tmp_path: Path):
    # Started by hand, as SLURM would: nothing looks after them.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **ENVIRONMENT,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "3",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SILENT],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        assert processes[2].wait(timeout=60) == 0
        message = processes[0].communicate(timeout=60)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 1
    assert message.strip().splitlines()[-1] == (
        "basicsr: error: another of the 3 processes is gone, rank 0 ends too: nothing heard of "
        "rank 1 for a while; see the other's last lines or whether it was killed, then go on with "
        "--auto_resume"
    )
