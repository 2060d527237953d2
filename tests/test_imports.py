"""What is imported, and what is not, in fresh processes: imports of the wings point one way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ON_TORCH_ALONE = ("archs", "ops", "kernels", "zoo", "inference")
# Of BasicSR and what it brings, of what draws and downloads, and what takes seconds to import.
FOREIGN = (
    "basicsr torchvision lmdb fvcore matplotlib cv2 skimage scipy requests torch._dynamo "
    "esc_arch.plugin.models esc_arch.plugin.compat esc_arch.study esc_arch.cli"
).split()


def imported(code: str, names: list[str], cwd: Path) -> list[str]:
    """Which of these modules the code imports that Python itself has not."""
    code = f"""
import sys
before = set(sys.modules)
{code}
print(*[name for name in {names} if name in sys.modules and name not in before])"""
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1].split()


def modules_of(folder: str) -> list[str]:
    paths = (ROOT / "esc_arch" / folder).rglob("*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_networks_and_upscaling_stand_on_torch_alone(tmp_path: Path):
    names = [name for folder in ON_TORCH_ALONE for name in modules_of(folder)]
    assert "esc_arch.archs.esc" in names and "esc_arch.kernels.cpu.flops" in names
    # Triton is not everywhere, and its own imports are not ours.
    names = [name for name in names if ".gpu" not in name]
    code = "".join(f"import {name}\n" for name in names)
    code += """
import numpy
import esc_arch
picture = numpy.random.default_rng(0).integers(0, 256, (20, 24, 3), numpy.uint8)
larger = esc_arch.load("ESC_light_x2_BSD", device="cpu").upscale(picture)
assert larger.shape == (40, 48, 3), larger.shape
"""
    assert imported(code, [*FOREIGN, "torch"], tmp_path) == ["torch"]


def test_the_command_starts_without_torch(tmp_path: Path):
    names = [name for name in modules_of("cli") if "exec_as_before" not in name]
    assert "esc_arch.cli.upscale" in names
    code = "".join(f"import {name}\n" for name in names if not name.endswith("__main__"))
    assert imported(code, ["torch", "torchvision", "basicsr"], tmp_path) == []


@pytest.mark.parametrize(
    "command",
    [
        "upscale {there} --model ESC_lite",
        "upscale {there} --scale 3",
        "export onnx --model ESC_lite -o net.onnx",
        "export exported --scale 3 -o net.pt2",
        "analyze bias --checkpoint ESC_lite",
        "convert flashbias --rank 4 ESC_lite",
        "convert safetensors ESC_lite -o net.safetensors",
        "convert basicsr ESC_lite -o net.pth",
        "checkpoints info ESC_lite",
        "checkpoints card ESC_lite",
        "checkpoints verify ESC_lite",
        "checkpoints download ESC_lite",
        "app --models ESC_lite",
        "reproduce --models ESC_lite",
    ],
)
def test_a_name_that_the_catalogue_does_not_have_is_told_without_torch(
    command: str, tmp_path: Path
):
    words = command.format(there=tmp_path).split()
    code = f"from esc_arch.cli.main import main\nassert main({words}) in (1, 2)"
    assert imported(code, ["torch", "basicsr"], tmp_path) == []


def test_help_waits_for_nothing_that_it_does_not_need(tmp_path: Path):
    code = "from esc_arch.cli.main import build_parser\n"
    code += "assert 'upscale' in build_parser().format_help()"
    slow = "asyncio ctypes dataclasses importlib.metadata inspect numpy subprocess wrapt".split()
    # From Python 3.14 on argparse colours its help, with some of these.
    needed = "import argparse\nargparse.ArgumentParser().format_help()"
    assert imported(code, slow, tmp_path) == imported(needed, slow, tmp_path)
