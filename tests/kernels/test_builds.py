"""Every instruction set, built by every compiler and for every processor that can be had here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esc_arch.kernels.cpu.library import library

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "esc_arch/kernels/cpu/csrc"
SELF_CHECK = Path(__file__).with_name("self_check.cpp")

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="installed without sources")

is_x86_64 = os.uname().machine == "x86_64" if hasattr(os, "uname") else False


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*command: object, **env: str) -> str:
    """Run a command, and return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module", params=["gcc", "clang"])
def built(request, tmp_path_factory) -> Path:
    """A folder with the objects and the library that setup.py makes with a compiler."""
    cxx = {"gcc": "g++", "clang": "clang++"}[request.param]
    need(request.param, cxx)
    folder = tmp_path_factory.mktemp(request.param)
    places = ("--build-lib", folder, "--build-temp", folder / "objects")
    said = run(sys.executable, "setup.py", "build_ext", *places, CC=request.param, CXX=cxx)
    assert "left out" not in said
    return folder


def objects(built: Path, kind: str) -> list[Path]:
    return sorted((built / "objects").rglob(f"{kind}*.o"))


@pytest.mark.slow
def test_objects_for_wider_vectors_share_no_functions_with_others(built: Path) -> None:
    # The linker keeps one copy of a weak function, maybe one that the machine cannot run.
    need("nm")
    kernels = objects(built, "kernels_")
    assert len(kernels) == 4
    for path in kernels:
        symbols = [line.split() for line in run("nm", "--defined-only", path).splitlines()]
        assert not [name for *_, kind, name in symbols if kind in "Ww"]
        exported = [name for *_, kind, name in symbols if kind == "T"]
        assert len(exported) == 1 and "esc_kernels" in exported[0]


@pytest.mark.slow
@pytest.mark.skipif(not is_x86_64, reason="for x86-64")
@pytest.mark.parametrize(("processor", "widths"), [("qemu64", [4]), ("max", [4, 8])])
def test_what_a_processor_does_not_have_is_not_run(
    built: Path, processor: str, widths: list[int], tmp_path: Path
) -> None:
    need("qemu-x86_64", "g++")
    program = tmp_path / "self_check"
    linked = [*objects(built, "kernels_"), *objects(built, "threads")]
    options = ("-std=c++17", "-O1", '-DESC_SOURCES=""', "-I", CSRC, "-static", "-pthread")
    run("g++", *options, SELF_CHECK, *linked, "-o", program)
    said = run("qemu-x86_64", "-cpu", processor, program)
    assert said.endswith("all is well\n")
    assert sorted({int(line.split("width")[1].split()[0]) for line in said.splitlines()[:-1]}) == (
        widths
    )


@pytest.mark.slow
def test_the_kernels_of_each_compiler_compute_the_formulas(built: Path) -> None:
    (path,) = built.rglob("_cpu_kernels*.so")
    loaded = library()
    if loaded is not None and Path(loaded._name).read_bytes() == path.read_bytes():
        pytest.skip("byte for byte those that the other tests of this folder run here")
    tests = [test for test in sorted(SELF_CHECK.parent.glob("test_*.py")) if test != Path(__file__)]
    said = run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *tests),
        ESC_CPU_KERNELS=str(path),
        OMP_NUM_THREADS="1",
    )
    assert " passed" in said


def test_on_aarch64_the_kernels_compute_the_formulas(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++", "qemu-aarch64")
    program = tmp_path / "self_check"
    sources = [path for path in sorted(CSRC.glob("*.cpp")) if path.name != "api.cpp"]
    options = ("-std=c++17", "-O1", '-DESC_SOURCES=""', "-I", CSRC, "-static", "-pthread")
    run("aarch64-linux-gnu-g++", *options, SELF_CHECK, *sources, "-o", program)
    said = run("qemu-aarch64", program)
    assert said.endswith("all is well\n")
    assert "width  4" in said
