"""Environments of their own that have what this one has, but for some packages."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import esc_arch

ROOT = Path(__file__).parents[1]


def environment_without(folder: Path, *packages: str) -> Path:
    """Make an environment in a folder, with links to all that is installed but these packages.

    Args:
        folder: Where; it is made.
        packages: Names of distributions, as pip has them.

    Returns:
        Its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    left_out = {path for name in packages for path in _installed_by(name)}
    links = folder / "links"
    links.mkdir()
    for place in map(Path, sys.path):
        for path in place.iterdir() if place.name.endswith("-packages") else ():
            link = links / path.name
            if path.name not in left_out and path.suffix != ".pth" and not link.exists():
                link.symlink_to(path)
    # The package itself may be a checkout that is installed in place.
    ours = Path(esc_arch.__file__).parents[1]
    found = [links] if (links / "esc_arch").exists() else [links, ours]
    (site_packages / "links.pth").write_text("".join(f"{place}\n" for place in found))
    return folder / "bin" / "python"


def _installed_by(name: str) -> set[str]:
    """The top-level files and folders of all copies of a distribution that is installed."""
    found = importlib.metadata.distributions(name=name)
    return {Path(file).parts[0] for each in found for file in each.files or []} - {"..", "bin"}


def copy_of_sources(folder: Path) -> None:
    """Copy what the package is built from, in which nothing is built, and what may lie about."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("esc_arch", "options"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    # setuptools takes tests of this name into an sdist, without what they need.
    (folder / "tests").mkdir()
    (folder / "tests" / "test_something.py").write_text("")
    # What an editor or a system leaves.
    (folder / "esc_arch" / "zoo" / "weights" / "notes.txt").write_text("stray")
    (folder / "esc_arch" / ".DS_Store").write_text("stray")
