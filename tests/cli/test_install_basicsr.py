"""`basicsr install-basicsr` with a source archive on disk whose setup.py is as BasicSR's is."""

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from environments import environment_without

# The version is set by `exec` and read through `locals()`, which fails on Python 3.13 alone.
SETUP = """
from setuptools import setup

def get_version():
    with open("VERSION.txt") as file:
        exec(file.read())
    return locals()["__version__"]

setup(
    name="basicsr",
    version=get_version(),
    packages=["basicsr"],
    install_requires=["numpy", "opencv-python", "tb-nightly", "torch"],
)
"""
FILES = {
    "setup.py": SETUP,
    "VERSION.txt": "__version__ = '1.4.2'\n",
    "basicsr/__init__.py": "__version__ = 'from the archive'\n",
    # As BasicSR has it: nothing of it is needed to build.
    "pyproject.toml": '[build-system]\nrequires = ["setuptools", "torch"]\n',
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The archive, alone in a folder where pip finds it."""
    root = tmp_path / "source" / "basicsr-1.4.2"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: basicsr\nVersion: 1.4.2\n")
    packed = tmp_path / "index" / "basicsr-1.4.2.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as file:
        file.add(root, root.name)
    return packed


def install(
    python: Path, folder: Path, sha256: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; with another checksum than that of the real archive, if one is given."""
    lines = ["import sys", "from esc_arch.cli import install_basicsr, main"]
    if sha256 is not None:
        lines.append(f"install_basicsr.SHA256 = {sha256!r}")
    lines.append("sys.exit(main.main(['install-basicsr']))")
    return subprocess.run(
        [str(python), "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PIP_NO_INDEX": "1", **variables},
        capture_output=True,
        text=True,
    )


def version(python: Path, folder: Path, **variables: str) -> str:
    command = [str(python), "-c", "import basicsr; print(basicsr.__version__)"]
    environment = {**os.environ, **variables}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return result.stdout.strip() or result.stderr.splitlines()[-1]


def test_the_archive_is_built_and_installed_once(archive, tmp_path):
    python = environment_without(tmp_path / "venv", "basicsr")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    found = {"PIP_FIND_LINKS": str(archive.parent)}
    result = install(python, tmp_path, sha256, **found)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"Installed BasicSR 1.4.2: {tmp_path}")
    assert version(python, tmp_path) == "from the archive"

    archive.unlink()
    result = install(python, tmp_path, sha256, **found)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("There is a BasicSR already, which is left as it is: ")


def test_an_archive_of_another_checksum_is_not_opened(archive, tmp_path):
    python = environment_without(tmp_path / "venv", "basicsr")
    result = install(python, tmp_path, PIP_FIND_LINKS=str(archive.parent))
    assert result.returncode == 2
    *reason, line = result.stderr.splitlines()
    assert line == ("basicsr: error: pip could not build BasicSR 1.4.2; its reason stands above")
    assert "DO NOT MATCH THE HASHES" in " ".join(reason)
    assert "No module named 'basicsr'" in version(python, tmp_path)


def test_without_the_archive_the_reason_and_one_line_are_said(tmp_path):
    python = environment_without(tmp_path / "venv", "basicsr")
    result = install(python, tmp_path, PIP_FIND_LINKS=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "basicsr: error: pip could not build BasicSR 1.4.2; its reason stands above"
    )
    assert "No matching distribution found for basicsr==1.4.2" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_checkout_of_basicsr_is_left_alone(tmp_path):
    python = environment_without(tmp_path / "venv", "basicsr")
    checkout = tmp_path / "checkout"
    (checkout / "basicsr").mkdir(parents=True)
    (checkout / "basicsr" / "__init__.py").write_text("__version__ = 'a fork'\n")
    found = {"PYTHONPATH": str(checkout)}
    result = install(python, tmp_path, PIP_FIND_LINKS=str(tmp_path), **found)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"There is a BasicSR already, which is left as it is: {checkout / 'basicsr'}\n"
    )
    assert version(python, tmp_path, **found) == "a fork"


def test_without_pip_one_line_says_how_to_bring_it(tmp_path):
    python = environment_without(tmp_path / "venv", "basicsr", "pip")
    result = install(python, tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"basicsr: error: {python} has no pip; ")
    assert "ensurepip" in line
