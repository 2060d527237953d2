"""Where BasicSR or an extra is missing: what works all the same, and what is said where not."""

import os
import subprocess
from pathlib import Path

import pytest
from environments import environment_without
from PIL import Image

EXTRAS = ("lmdb", "matplotlib", "opencv-python", "requests", "scikit-image", "torchvision")


@pytest.fixture(scope="module")
def no_basicsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has all but BasicSR."""
    return environment_without(tmp_path_factory.mktemp("no_basicsr") / "venv", "basicsr")


@pytest.fixture(scope="module")
def no_extras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what upscaling asks for, and nothing that only others ask for."""
    names = ("basicsr", "fvcore", "opencv-python-headless", *EXTRAS)
    return environment_without(tmp_path_factory.mktemp("no_extras") / "venv", *names)


def run(python: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def basicsr(python: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(python, folder, "-m", "esc_arch.cli", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-opt", "any.yml"),
        ("test", "-opt", "any.yml"),
        ("demo",),
        ("compare", "a.png", "b.png"),
        ("reproduce",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_basicsr_says_in_one_line_how_to_bring_it(no_basicsr, tmp_path, arguments):
    result = basicsr(no_basicsr, tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr == (
        "basicsr: error: BasicSR is not installed here; this brings it: basicsr install-basicsr\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_data_is_prepared_without_basicsr(no_basicsr, tmp_path):
    result = basicsr(no_basicsr, tmp_path, "prepare", "demo", "--out", "data")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "train_HR_sub.lmdb").is_dir()


def test_pictures_are_upscaled_and_files_described_without_basicsr_or_any_extra(
    no_extras, tmp_path
):
    Image.new("RGB", (20, 12), (100, 150, 200)).save(tmp_path / "photo.png")
    result = basicsr(no_extras, tmp_path, "upscale", "photo.png", "-o", "out")
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "out" / "photo.png").size == (40, 24)

    code = (
        "import esc_arch, numpy, torch\n"
        "upscaler = esc_arch.load()\n"
        "assert upscaler.upscale(numpy.zeros((8, 8, 3), numpy.uint8)).shape == (16, 16, 3)\n"
        "from esc_arch.archs import NETWORKS\n"
        "attention = NETWORKS['FlashWindowAttn'](32, 8, 2).eval()\n"
        "exported = torch.export.export(attention, (torch.zeros(1, 32, 16, 16),))\n"
        "torch.save(attention.state_dict(), 'attention.pth')\n"
        "print(exported.module()(torch.zeros(1, 32, 16, 16)).shape)\n"
    )
    result = run(no_extras, tmp_path, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torch.Size([1, 32, 16, 16])\n"
    result = basicsr(no_extras, tmp_path, "checkpoints", "list")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments", [("prepare", "demo"), ("prepare", "benchmarks", "--src", ".")], ids=" ".join
)
def test_a_missing_extra_is_one_line_with_what_brings_it(no_extras, tmp_path, arguments):
    result = basicsr(no_extras, tmp_path, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("basicsr: error: cv2 is not installed here; this brings it")
    assert line.endswith(": pip install 'esc-arch[train]'")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_asks_for_its_plots_before_it_trains(tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("no_plots") / "venv"
    result = basicsr(environment_without(folder, "matplotlib"), tmp_path, "demo")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("basicsr: error: matplotlib is not installed here; this brings it")
    assert line.endswith(": pip install 'esc-arch[plots]'")
    assert list(tmp_path.iterdir()) == []
