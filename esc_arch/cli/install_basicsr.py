"""`basicsr install-basicsr`: BasicSR itself, also where pip alone cannot build it."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from esc_arch.cli.missing import requirements
from esc_arch.errors import UserError

HELP = "Install BasicSR 1.4.2, also on Python 3.13 and newer, where pip alone cannot build it."

VERSION = "1.4.2"
# Of the source archive that the Python package index has had since 2022.
SHA256 = "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87"
SHIM = Path(__file__).with_name("exec_as_before")
# What BasicSR asks for -> a module that another distribution may have brought already.
INSTEAD = {"opencv-python": "cv2", "tb-nightly": "tensorboard"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    """Install BasicSR with what it needs, unless there is a BasicSR.

    Returns:
        0.

    Raises:
        UserError: pip is missing, or could not download, build or install.
    """
    import tempfile

    place = installed_at()
    if place is not None:
        print(f"There is a BasicSR already, which is left as it is: {place}")
        return 0
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{sys.executable} has no pip; `{sys.executable} -m ensurepip` brings it, or in an "
            "environment made by uv: uv pip install pip setuptools"
        )
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        install(wheel)
    importlib.invalidate_caches()
    print(f"Installed BasicSR {VERSION}: {installed_at()}")
    return 0


def installed_at() -> str | None:
    """Where Python finds BasicSR, of whatever kind, without importing it."""
    found = importlib.util.find_spec("basicsr")
    if found is None:
        return None
    return str(Path(found.origin).parent if found.origin else found.name)


def build(folder: Path) -> Path:
    """Build a wheel of the unchanged source archive in a folder.

    pip compares the checksum before it opens the archive. Without build isolation, since BasicSR
    names torch as a build requirement, and needs none.
    """
    wanted = folder / "basicsr.txt"
    wanted.write_text(f"basicsr=={VERSION} --hash=sha256:{SHA256}\n")
    command = ["wheel", "--no-deps", "--no-binary", "basicsr", "--no-build-isolation"]
    command += ["--use-pep517", "--require-hashes", "--wheel-dir", str(folder), "-r", str(wanted)]
    if importlib.util.find_spec("setuptools") is None:
        _pip(["install", "setuptools>=70.1"], "pip could not install setuptools")
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, [str(SHIM), before]))
    _pip(command, f"pip could not build BasicSR {VERSION}", PYTHONPATH=path)
    (wheel,) = folder.glob("basicsr-*.whl")
    return wheel


def install(wheel: Path) -> None:
    """Install the wheel, after what it needs and is not there, in versions that work here.

    torch and torchvision stay those that there are.
    """
    import importlib.metadata
    import tempfile

    (found,) = importlib.metadata.distributions(name="basicsr", path=[str(wheel)])
    needed = [
        requirement
        for requirement in found.requires or []
        if requirement not in INSTEAD or importlib.util.find_spec(INSTEAD[requirement]) is None
    ]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        lines = [
            f"{name}=={importlib.metadata.version(name)}"
            for name in ("torch", "torchvision")
            if importlib.util.find_spec(name) is not None
        ]
        kept.write_text("\n".join([*lines, *requirements("train")]) + "\n")
        command = ["install", "-c", str(kept), *needed]
        _pip(command, "pip could not install what BasicSR needs")
    _pip(["install", "--no-deps", str(wheel)], f"pip could not install BasicSR {VERSION}")


def _pip(arguments: list[str], failure: str, **variables: str) -> None:
    """Run pip, whose own lines the user sees, away from the current folder's modules."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments],
            cwd=empty,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
        )
    if done.returncode != 0:
        raise UserError(f"{failure}; its reason stands above")
