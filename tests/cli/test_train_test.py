"""`basicsr train` and `basicsr test`, from an option file to what they write."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esc_arch.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]
WriteOptions = Callable[..., Path]


def test_train_saves_and_test_reads_what_it_saved(
    run_basicsr: Run,
    write_train_options: WriteOptions,
    write_test_options: WriteOptions,
    tmp_path: Path,
) -> None:
    options = write_train_options()
    result = run_basicsr(
        "train", "-opt", options.name, "--force_yml", "train:optim_g:lr=2e-4", "name=forced"
    )
    assert result.returncode == 0, result.stderr
    experiment = tmp_path / "experiments" / "forced"
    saved = torch.load(experiment / "models" / "net_g_latest.pth", weights_only=True)
    assert set(saved) == {"params", "params_ema", "card"}
    assert (saved["card"]["architecture"], saved["card"]["trainingIterations"]) == ("EDSR", "4")
    state = torch.load(experiment / "training_states" / "2.state", weights_only=True)
    assert state["optimizers"][0]["param_groups"][0]["lr"] == 2e-4
    copied = (experiment / options.name).read_text()
    assert "# basicsr train -opt train.yml" in copied
    trained = result.stderr.split("# psnr: ")[-1].split()[0]

    checkpoint = "experiments/forced/models/net_g_latest.pth"
    absent = {"name": "absent", "type": "SingleImageDataset", "dataroot_lq": "absent"}
    changes = {"path:pretrain_network_g": checkpoint, "datasets:test_2": absent}
    result = run_basicsr("test", "-opt", write_test_options(changes), "--datasets", "Tiny_val")
    assert result.returncode == 0, result.stderr
    assert result.stderr.split("# psnr: ")[-1].split()[0] == trained
    images = sorted((tmp_path / "results" / "tiny_test").rglob("*.png"))
    assert [image.name for image in images] == ["chelseax2_tiny_test.png", "coffeex2_tiny_test.png"]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs the command in this process, which must refuse; returns the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> list[str]:
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err.splitlines()

    return run


def test_all_errors_of_the_options_are_told_before_anything_is_created(
    refused: Callable[..., list[str]], write_train_options: WriteOptions, tmp_path: Path
) -> None:
    options = write_train_options({"network_g:type": "EDSSR", "datasets:train:dataroot_gt": "gone"})
    lines = refused("train", "-opt", options, "--force_yml", "trian:ema_decay=0.9")
    assert all(line.startswith("basicsr: error: ") for line in lines), lines
    for word in ("EDSSR", "gone", "trian"):
        assert any(word in line for line in lines), lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.yml"]


def test_every_force_yml_entry_that_cannot_be_applied_is_a_line(
    refused: Callable[..., list[str]], write_test_options: WriteOptions
) -> None:
    entries = ["no_equals_sign", "train:absent:lr=1", "name=a=b"]
    lines = refused("test", "-opt", write_test_options(), "--force_yml", *entries)
    for entry in entries:
        assert any(line.startswith(f"basicsr: error: --force_yml {entry}: ") for line in lines)


def test_an_option_file_that_is_not_there_is_one_line(refused: Callable[..., list[str]]) -> None:
    (line,) = refused("train", "-opt", "absent.yml")
    assert line.startswith("basicsr: error: ")
    assert "absent.yml" in line


def install_plugin(site: Path, name: str, source: str) -> dict[str, str]:
    """Lay out a package with a registered plugin as an installer would; returns the environment."""
    (site / f"{name}.py").write_text(source)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[basicsr.plugins]\nany = {name}\n")
    return {"PYTHONPATH": str(site)}


def test_networks_of_other_plugins_are_found(
    run_basicsr: Run, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    source = """
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class OtherNet(EDSR):
    pass
"""
    site = tmp_path / "site"
    site.mkdir()
    env = install_plugin(site, "other_plugin", source)
    options = write_train_options(
        {"network_g:type": "OtherNet", "train:total_iter": 1, "datasets:val": None, "val": None}
    )
    result = run_basicsr("train", "-opt", options, env=env)
    assert result.returncode == 0, result.stderr
    assert "Network [OtherNet] is created." in result.stderr


def test_a_broken_plugin_is_one_line_that_names_it(
    run_basicsr: Run, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    env = install_plugin(site, "broken_plugin", "import a_module_that_is_missing\n")
    result = run_basicsr("train", "-opt", write_train_options(), env=env)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("basicsr: error: plugin broken_plugin ")
    assert "a_module_that_is_missing" in line
    assert not (tmp_path / "experiments").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_torchrun_trains_in_two_processes_without_a_gpu(
    write_train_options: WriteOptions, tmp_path: Path
) -> None:
    # The workers are spawned, and so import BasicSR anew.
    options = write_train_options(
        {"train:total_iter": 2, "datasets:train:num_worker_per_gpu": 1, "num_gpu": 2}
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*torchrun, "--no-python", _command(), "train", "-opt", options, "--launcher", "pytorch"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "World size (gpu number): 2" in result.stderr
    assert result.stderr.count("num_gpu: 2, but 0 found: using the CPU") == 1
    assert (tmp_path / "experiments" / "tiny" / "models" / "net_g_latest.pth").exists()


def _command() -> str:
    """The installed `basicsr` script, beside the interpreter that runs the tests."""
    command = shutil.which("basicsr", path=os.path.dirname(sys.executable))
    assert command, "the package is not installed"
    return command


@pytest.mark.parametrize(
    ("launcher", "environment", "said"),
    [
        ("none", {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}, "add --launcher"),
        ("pytorch", {}, "nothing set RANK"),
        ("slurm", {}, "start it with srun"),
        ("slurm", {"SLURM_PROCID": "0", "PATH": ""}, "there is no scontrol here"),
    ],
)
def test_a_launcher_that_did_not_launch_is_refused(
    launcher, environment, said, monkeypatch, capsys
):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "-opt", "any.yml", "--launcher", launcher]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_of_each_machine_tells_of_errors(
    local_rank, lines, tmp_path, monkeypatch, capsys
):
    # The second machine may lack what the first one has.
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-opt", "absent.yml", "--launcher", "pytorch"]) == 2
    assert capsys.readouterr().err.count("\n") == lines
