"""Training in two processes that gloo connects: the same as in one, and ended together.

They are started by one torchrun, by two (as on two machines), or with the variables of SLURM.
"""

import contextlib
import json
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

pytestmark = pytest.mark.slow

OPTIONS = {
    "model_type": "ESCModel",
    "num_gpu": 0,
    "network_g": {
        "type": "ESC",
        "dim": 8,
        "pdim": 4,
        "kernel_size": 5,
        "n_blocks": 1,
        "conv_blocks": 1,
        "window_size": 8,
        "num_heads": 2,
        "upscaling_factor": 2,
    },
    # 24 samples an epoch: 6 iterations of 4, so that 8 end in the second.
    "datasets:train:dataset_enlarge_ratio": 3,
    # Adam would blow differences of rounding up where gradients are nearly zero.
    "train:optim_g": {"type": "SGD", "lr": 0.05},
    # Smaller than the gradients are, so that it is active.
    "train:grad_clip": 0.1,
    "train:total_iter": 8,
    "val:val_freq": 4,
    "val:pbar": False,
    "logger:save_checkpoint_freq": 4,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COMMAND = [sys.executable, "-u", "-m", "esc_arch.cli", "train"]
# Leaves its process id behind; `apart` gives each process a folder of its own.
SHELL = """
echo $$ > pid$RANK
if [ "$1" = apart ]; then cd rank$RANK; fi
shift
exec "$@"
"""


class Run:
    """`basicsr train` in two processes below torchrun."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        apart: bool = False,
        torchrun: list[str] = TORCHRUN,
    ) -> None:
        self.folder = folder
        for rank in (0, 1) if apart else ():
            (folder / f"rank{rank}").mkdir()
        # A file, since torchrun fills in what looks like its variables in arguments.
        (folder / "start.sh").write_text(SHELL)
        shell = ["sh", "start.sh", "apart" if apart else "together"]
        command = [*COMMAND, *map(str, arguments), "--launcher", "pytorch"]
        self.process = subprocess.Popen(
            [*torchrun, "--no-python", *shell, *command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.log = ""

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.log):
            line = self.process.stdout.readline()
            assert line, self.log[-3000:]
            self.log += line

    def signal(self, rank: int, number: int) -> None:
        os.kill(int((self.folder / f"pid{rank}").read_text()), number)

    def finish(self, timeout: float = 120) -> int:
        try:
            self.log += self.process.communicate(timeout=timeout)[0]
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode


def train_alone(folder: Path, *arguments: object) -> str:
    """`basicsr train` in one process; returns its log."""
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def losses(log: str) -> dict[int, float]:
    """Losses by iteration, which only the first process prints."""
    found = re.findall(r"iter: +([\d,]+), .*l_pix: (\S+)", log)
    assert len(found) == len(set(found))
    return {int(iteration): float(loss) for iteration, loss in found}


def weights(folder: Path, iteration: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    path = folder / "experiments" / "tiny" / "models" / f"net_g_{iteration}.pth"
    return torch.load(path, weights_only=True)


def measured(folder: Path) -> dict[str, float]:
    """PSNR by iteration."""
    path = folder / "experiments" / "tiny" / "validation.json"
    return json.loads(path.read_text())["tiny_val"]["psnr"]


def check_alike(ours: Path, theirs: Path) -> None:
    """Weights, EMA and validation at the end are the same but for rounding."""
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)
    assert measured(ours) == pytest.approx(measured(theirs), abs=1e-3)


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
