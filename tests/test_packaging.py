"""What gets installed: the wheel built from this checkout, and what its metadata promises."""

import ast
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("esc_arch", "esc_arch.cli", "esc_arch.prepare")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built as pip does without isolation, from a copy in which nothing is built."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "options"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    result = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return zipfile.ZipFile(source / result.stdout.splitlines()[-1])


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_every_module_and_the_weights(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    content = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert modules <= content
    assert "esc_arch/zoo/weights/ESC_light_x2_BSD.safetensors" in content
    if shutil.which("g++"):
        assert any(name.startswith("esc_arch/ops/_cpu_kernels.") for name in content)
    assert "esc_arch.cli/options/train_ESC_demo_x2.yml" in content
    assert {name.split("/")[0] for name in content} == set(PACKAGES)


def test_the_wheel_registers_the_command_and_the_plugin(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"basicsr": "esc_arch.cli.main:main"}
    assert dict(entry_points["basicsr.plugins"]) == {"esc": "esc_arch"}


def test_the_wheel_names_its_licence_pythons_and_extras(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert "MIT" in (fields["License"] or fields["License-Expression"])
    assert sorted(fields["Requires-Python"].split(",")) == ["<3.13", ">=3.10"]
    assert set(fields.get_all("Provides-Extra")) == {"bench", "flash", "test"}


def test_every_third_party_import_is_a_requirement(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    required = {re.split(r"[^\w-]", line)[0] for line in fields.get_all("Requires-Dist")}
    distributions = {
        "PIL": "pillow",
        "cv2": "opencv-python",
        "flash_attn": "flash-attn",
        "skimage": "scikit-image",
        "yaml": "pyyaml",
    }
    # BasicSR brings scipy, and tensorboard under the name tb-nightly, beside which tensorboard
    # itself must not be installed; wandb is there where its user has it.
    others = {"scipy", "tensorboard", "wandb", *PACKAGES, *sys.stdlib_module_names}
    for path in [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]:
        for module in imported_modules(path):
            if module not in others:
                assert distributions.get(module, module) in required, f"{path}: {module}"


def imported_modules(path: Path) -> set[str]:
    """The top-level modules that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


def test_make_needs_no_second_torch_to_build_basicsr() -> None:
    result = subprocess.run(
        ["make", "--dry-run", "test", "VENV=absent"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    installs = [line for line in result.stdout.splitlines() if "--editable" in line]
    assert len(installs) == 2
    for line in installs:
        assert "--no-build-isolation --use-pep517" in line
    assert not (ROOT / "absent").exists()


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
