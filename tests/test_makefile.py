"""What the Makefile does and says, and the scripts of .ci/ that it runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import copy_of_sources

ROOT = Path(__file__).parents[1]


def dry_run(*arguments: str) -> str:
    """What make would run."""
    result = subprocess.run(
        ["make", "--dry-run", *arguments, "VENV=absent"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not (ROOT / "absent").exists()
    return result.stdout


def test_make_builds_the_package_once_and_needs_no_second_torch_to_build_basicsr() -> None:
    (install,) = [line for line in dry_run("test").splitlines() if "--editable" in line]
    assert "--no-build-isolation --use-pep517" in install


def test_make_wheel_finds_the_auditwheel_of_its_environment() -> None:
    lines = dry_run("wheel").splitlines()
    (search,) = [number for number, line in enumerate(lines) if "command -v auditwheel" in line]
    assert lines[search - 1] == f"PATH={ROOT}/absent/bin:$PATH; \\"


def test_make_compiles_the_kernels_with_the_sanitizers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    copy_of_sources(source)
    # A compiler that writes down how it is called, and leaves an empty file.
    called, compiler = tmp_path / "called", tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {called}\n'
        'while [ "$1" ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    lines = dry_run("test-sanitizers").replace("\\\n", " ").splitlines()
    (number,) = [number for number, line in enumerate(lines) if "build_ext" in line]
    build = (
        lines[number]
        .replace("CXX=g++", f"CXX={compiler}")
        .replace("absent/bin/python", sys.executable)
    )
    subprocess.run(["sh", "-c", build], cwd=source, check=True, capture_output=True)
    compiled = [line for line in called.read_text().splitlines() if " -c " in line]
    assert {re.search(r"(\w+)\.cpp", line)[1] for line in compiled} >= {"api", "kernels_amx"}
    assert all("-fsanitize=address,undefined" in line for line in compiled), compiled
    # Where nothing was compiled, all tests of kernels would be skipped.
    assert lines[number + 1].startswith("grep -q __asan_report_load ")


def test_make_installs_the_torch_that_it_is_told_before_anything_that_needs_one() -> None:
    lines = dry_run("demo", "TORCH=torch torchvision --index-url ADDRESS").splitlines()
    torch = lines.index("absent/bin/python -m pip install torch torchvision --index-url ADDRESS")
    assert torch < next(number for number, line in enumerate(lines) if "--editable" in line)


# What Python runs at its start -> what make says about a machine with such a Python.
PYTHONS = {
    "import sys; sys.version_info = (3, 9, 2)": "Python 3.10 or newer is needed",
    "import sys; sys.modules['ensurepip'] = None": "apt install python3-venv",
    "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'": "apt install python3-dev",
}


def make_check(folder: Path, here: tuple[str, ...], at_start: str = "") -> tuple[int, list[str]]:
    """The status of `make check` and what it says where these programs are all that there is."""
    (folder / "sitecustomize.py").write_text(at_start)
    for name in here:
        program = folder / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
        program.chmod(0o755)
    command = [shutil.which("make"), "--silent", "check", "SHELL=/bin/sh", f"PATH={folder}"]
    result = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith("make: ")]
    return result.returncode, lines


@pytest.mark.parametrize("at_start", PYTHONS)
def test_make_says_at_the_start_what_python_lacks(tmp_path: Path, at_start: str) -> None:
    status, (line,) = make_check(tmp_path, ("python3", "g++"), at_start)
    assert PYTHONS[at_start] in line
    # Without headers only `compile` does not work.
    assert status == (0 if "python3-dev" in line else 2)


def test_make_says_at_the_start_that_there_is_no_such_python(tmp_path: Path) -> None:
    status, (line,) = make_check(tmp_path, ("python4", "g++"))
    assert (status, line) == (
        2,
        "make: PYTHON=python3: there is no such Python; name one by make PYTHON=...",
    )


def test_make_says_at_the_start_what_is_lost_without_a_compiler(tmp_path: Path) -> None:
    status, (line,) = make_check(tmp_path, ("python3",))
    assert status == 0
    assert "no C++ compiler" in line
    assert "apt install g++" in line


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_make_has_nothing_to_say_where_all_is_there(tmp_path: Path, compiler: str) -> None:
    assert make_check(tmp_path, ("python3", compiler)) == (0, [])


def test_a_python_that_only_pyenv_has_is_found(tmp_path: Path) -> None:
    # pyenv's own command of that name fails unless that version was chosen.
    programs = {
        "python3.99": "exit 127",
        "pyenv": f'[ "$*" = "prefix 3.99" ] && echo {tmp_path}/versions/3.99.1',
        "versions/3.99.1/bin/python": f'exec {sys.executable} "$@"',
    }
    for name, line in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(ROOT / ".ci" / "find_python"), "python3.98", "python3.99"]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.stdout == f"{tmp_path}/versions/3.99.1/bin/python\n"
    result = subprocess.run(command[:2], env={"PATH": str(tmp_path)}, capture_output=True)
    assert (result.returncode, result.stdout) == (1, b"")


def test_the_ci_script_can_be_run() -> None:
    for name in ("run", "test_wheel", "find_python"):
        script = ROOT / ".ci" / name
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
