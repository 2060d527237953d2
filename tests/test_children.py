"""Processes that this package starts import nothing from the current folder."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from esc_arch import children


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules that leave a witness when they are imported."""
    for name in ("lmdb", "socket", "yaml", "random"):
        (tmp_path / f"{name}.py").write_text("open('it-ran', 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_in_a_child_finds_the_modules_of_its_parent_only(trap: Path):
    result = children.run_python(
        "import lmdb, socket, yaml, json, sys; print(json.dumps(sys.argv[1:]))", ["a b"]
    )
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout) == ["a b"]
    assert not (trap / "it-ran").exists()


def test_isolated_as_on_python_310_it_finds_them_too(trap: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "FLAGS", ["-I"])
    result = children.run_python("import lmdb; print(lmdb.__file__)")
    assert result.returncode == 0, result.stderr.decode()
    assert not (trap / "it-ran").exists()


@pytest.mark.slow
def test_the_command_started_by_demo_and_reproduce_finds_them_too(trap: Path):
    # To where the option file is read: all that a run imports has been imported.
    command = children.basicsr_command("train", "-opt", "absent.yml")
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert result.stderr == "basicsr: error: -opt absent.yml: no such option file\n"
    assert not (trap / "it-ran").exists()


def test_no_module_starts_python_in_another_way():
    package = Path(children.__file__).parent
    starts = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.List) and "sys.executable" in map(ast.unparse, node.elts)
    ]
    # pip is started in an empty folder.
    assert starts == ["children.py", "children.py", "cli/install_basicsr.py"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_multiprocessing_are_started_likewise(method: str, trap: Path):
    script = trap.parent / "start.py"
    script.write_text(f"""
import multiprocessing
from esc_arch.children import keep_current_folder_out

def square(x):
    import socket, random
    return x * x

if __name__ == "__main__":
    keep_current_folder_out()
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print(pool.map(square, [3]))
""")
    result = subprocess.run(
        [sys.executable, str(script)], cwd=trap, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "[9]\n", result.stderr
    assert not (trap / "it-ran").exists()


# What is imported where, and with what settings.
LOADS = """
import os, sys
from esc_arch.cli.main import main

def watch(event, args):
    if event == "import" and args[0] in ("torch._C", "matplotlib.colors"):
        print(args[0], os.getcwd(), flush=True)

sys.addaudithook(watch)
if __name__ == "__main__":
    import torch, matplotlib
    print(matplotlib.rcParams["text.usetex"], os.getcwd())
"""


def test_libraries_are_loaded_away_from_the_current_folder(trap: Path):
    # One of NVIDIA's looks for libcuda.so.1 there, and a matplotlibrc may have TeX run.
    (trap / "matplotlibrc").write_text("text.usetex: True\n")
    script = trap.parent / "load.py"
    script.write_text(LOADS)
    result = subprocess.run(
        [sys.executable, str(script)], cwd=trap, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    *loaded, last = result.stdout.splitlines()
    assert set(loaded) == {f"torch._C {trap.anchor}", f"matplotlib.colors {trap.anchor}"}
    assert last == f"False {trap}"


def test_processes_of_multiprocessing_load_them_there_too(trap: Path):
    script = trap.parent / "start.py"
    script.write_text(f"""{LOADS}
    import multiprocessing
    from esc_arch.children import keep_current_folder_out

    keep_current_folder_out()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(torch.is_tensor, [1])
""")
    result = subprocess.run(
        [sys.executable, str(script)], cwd=trap, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert f"torch._C {trap.anchor}" in result.stdout.split("False")[1].splitlines()
    assert f"torch._C {trap}" not in result.stdout.splitlines()
