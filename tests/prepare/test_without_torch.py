"""Preparing data never imports torch, which would take most of its memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import esc_arch.prepare

SCRIPTS = Path(__file__).parents[2] / "datasets_prep"
HEAVY = ("torch", "torchvision", "basicsr")


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch, or what needs it, is an error."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_every_module_can_be_imported_without_torch(without_torch):
    modules = sorted(path.stem for path in Path(esc_arch.prepare.__file__).parent.glob("*.py"))
    assert "subimages" in modules
    code = "".join(f"import esc_arch.prepare.{name}\n" for name in modules if name != "__init__")
    code += f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], env=without_torch, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("script", ["benchmarks", "demo", "dflip", "div2k"])
def test_the_scripts_help_without_torch(without_torch, script):
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--help"]
    result = subprocess.run(command, env=without_torch, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--out" in result.stdout


def test_a_data_set_is_prepared_without_torch_in_any_process(tmp_path, without_torch):
    command = [sys.executable, str(SCRIPTS / "demo.py"), "--out", str(tmp_path / "demo")]
    result = subprocess.run(command, env=without_torch, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    again = [sys.executable, str(SCRIPTS / "div2k.py"), "--hr", str(tmp_path / "demo/train_HR")]
    again += ["--out", str(tmp_path / "out"), "--name", "Demo", "--workers", "2", "--scales", "2"]
    again += ["--crop-size", "240", "--step", "240"]
    result = subprocess.run(again, env=without_torch, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "Demo_train_HR_sub.lmdb").is_dir()
