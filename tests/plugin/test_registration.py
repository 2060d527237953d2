"""Networks, models and data sets are in BasicSR's registries however one comes to BasicSR.

Each case is a process of its own, since what has been imported cannot be undone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esc_arch.plugin import registration

NAMES = """
def check():
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
    for name in ("ESC", "ESCFP", "ESCReal"):
        assert ARCH_REGISTRY.get(name).__module__.startswith("esc_arch."), name
    assert "ESCModel" in MODEL_REGISTRY and "ESRModel" in MODEL_REGISTRY
    assert "DownsampleImageDataset" in DATASET_REGISTRY
    from basicsr.models.base_model import BaseModel
    assert hasattr(BaseModel.get_optimizer, "__wrapped__")
    print("all there")
"""
FORK = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class ESC(nn.Module):
    pass
"""


def run_python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(code: str, cwd: Path, **env: str) -> str:
    result = run_python(code, cwd, **env)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_importing_the_package_imports_neither_torch_nor_basicsr(tmp_path: Path):
    code = """
import sys
import esc_arch
heavy = {"torch", "numpy", "basicsr", "cv2", "lmdb", "scipy", "yaml", "wrapt", "asyncio"}
print(sorted(heavy & set(sys.modules)))
"""
    assert output(code, tmp_path) == "[]\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import esc_arch; from basicsr.archs import build_network",
        pytest.param(
            "import esc_arch; from basicsr.utils.registry import ARCH_REGISTRY; import "
            "basicsr.models",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_basicsr_imported_afterwards_has_everything(imports: str, tmp_path: Path):
    code = f"{NAMES}\n{imports}\nimport basicsr\ncheck()"
    assert "all there" in output(code, tmp_path)


def test_basicsr_imported_before_has_everything(tmp_path: Path):
    # Without this package BasicSR does not find a module that torchvision has dropped.
    code = f"""{NAMES}
import importlib.util, sys, types
if importlib.util.find_spec("torchvision.transforms.functional_tensor") is None:
    import torchvision.transforms.functional as functional
    sys.modules["torchvision.transforms.functional_tensor"] = functional
from basicsr.archs import build_network
import basicsr
assert "esc_arch" not in sys.modules
import esc_arch
check()
"""
    assert "all there" in output(code, tmp_path)


@pytest.mark.slow
def test_a_checkout_of_basicsr_may_import_the_package_in_its_first_line(tmp_path: Path):
    import basicsr

    checkout = tmp_path / "basicsr"
    shutil.copytree(Path(basicsr.__file__).parent, checkout)
    init = checkout / "__init__.py"
    init.write_text(f"import esc_arch\n{init.read_text()}")
    code = f"""{NAMES}
from basicsr.archs import build_network
import basicsr
assert basicsr.__file__ == {str(init)!r}
check()
"""
    assert "all there" in output(code, tmp_path)


@pytest.mark.slow
def test_a_spawned_loading_process_has_everything_before_it_reads(tmp_path: Path, paired_data):
    (tmp_path / "load.py").write_text(f"""
import esc_arch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader
from torch.utils.data import get_worker_info
import torch

class Checked(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset
    def __len__(self):
        return 2
    def __getitem__(self, index):
        from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY
        assert get_worker_info() is not None
        return int("DownsampleImageDataset" in DATASET_REGISTRY), self.dataset[index]["lq"]

if __name__ == "__main__":
    dataset = build_dataset(dict(
        name="pairs", type="PairedImageDataset", dataroot_gt={str(paired_data.train_gt)!r},
        dataroot_lq={str(paired_data.train_lq)!r}, io_backend=dict(type="lmdb"), scale=2,
        phase="val"))
    loader = DataLoader(Checked(dataset), num_workers=1, multiprocessing_context="spawn")
    print([bool(there) for there, _ in loader])
""")
    result = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "[True, True]" in result.stdout, result.stderr[-3000:]


@pytest.mark.parametrize(
    "order",
    [
        "import esc_arch, basicsr; import fork",
        pytest.param("import esc_arch; import fork; import basicsr", marks=pytest.mark.slow),
    ],
)
def test_beside_a_fork_with_a_network_of_the_same_name_theirs_is_used_and_said(
    order: str, tmp_path: Path
):
    (tmp_path / "fork.py").write_text(FORK)
    code = f"""
{order}
import basicsr
from basicsr.utils.registry import ARCH_REGISTRY
print(ARCH_REGISTRY.get("ESC").__module__, ARCH_REGISTRY.get("ESCFP").__module__)
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "fork esc_arch.archs.escfp"
    said = [line for line in result.stderr.splitlines() if line.startswith("esc_arch: ")]
    assert said == [
        f"esc_arch: 'ESC' is registered by fork ({tmp_path / 'fork.py'}): that one is used, not "
        "esc_arch's"
    ]


@pytest.mark.slow
def test_two_classes_of_others_under_one_name_are_still_refused(tmp_path: Path):
    (tmp_path / "fork.py").write_text(FORK.replace("class ESC", "class EDSR"))
    result = run_python("import esc_arch, basicsr; import fork", tmp_path)
    assert "An object named 'EDSR' was already registered in 'arch' registry!" in result.stderr


def test_a_name_that_is_not_registered_is_answered_with_those_that_are(tmp_path: Path):
    code = """
import esc_arch
from basicsr.archs import build_network
try:
    build_network({"type": "ESC_light"})
except KeyError as error:
    print(error.args[0])
"""
    line = output(code, tmp_path).splitlines()[-1]
    before, names = line.split("! In it there are ")
    assert before == "No object named 'ESC_light' found in 'arch' registry"
    assert names.startswith("esc_light, esc_large, ") and " more" in names


def test_where_opencv_cannot_be_loaded_the_error_says_what_helps(tmp_path: Path):
    # As opencv-python fails on a machine without graphics libraries.
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    result = run_python("import esc_arch; import basicsr", tmp_path)
    assert result.stderr.strip().splitlines()[-1] == (
        "ImportError: OpenCV cannot be loaded (libGL.so.1: cannot open shared object file); where "
        "the system has no graphics libraries, 'pip install --force-reinstall --no-deps "
        "opencv-python-headless' gives one that can"
    )


def test_where_opencv_loads_it_is_the_same_module_as_without(tmp_path: Path):
    code = """
import esc_arch, cv2, importlib
assert cv2.imread.__name__ == "imread" and cv2.__spec__.name == "cv2"
assert importlib.import_module("cv2") is cv2
import numpy
print(cv2.resize(numpy.ones((4, 4), "uint8"), (2, 2)).sum())
"""
    assert output(code, tmp_path) == "4\n"


FIRST = {**registration.MODELS, **registration.DATA_SETS, **registration.DISCRIMINATORS}


@pytest.mark.parametrize("module", FIRST)
def test_what_holds_a_registered_class_can_be_imported_first(module: str, tmp_path: Path):
    """As by a loading process that is not forked, which unpickles a data set."""
    code = f"""
{NAMES}
import {module} as module
check()
for name in {FIRST[module]}:
    assert getattr(module, name).__module__ == {module!r}
"""
    assert "all there" in output(code, tmp_path)
