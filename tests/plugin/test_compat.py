"""BasicSR on today's libraries: each defect that compat mends, in BasicSR's own functions.

What depends on import order or on the start of a process runs in a process of its own.
"""

import importlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from fresh_python import run_python
from torch.utils.data import DataLoader

from esc_arch.errors import UserError
from esc_arch.plugin import registration
from esc_arch.plugin.compat import libraries


def all_patched() -> dict[str, Any]:
    import basicsr.train
    from basicsr.data import degradations
    from basicsr.models.base_model import BaseModel
    from basicsr.utils import dist_util, options
    from basicsr.utils.file_client import LmdbBackend

    return {
        "load_resume_state": basicsr.train.load_resume_state,
        "parse_options": options.parse_options,
        "model_to_device": BaseModel.model_to_device,
        "_init_dist_pytorch": dist_util._init_dist_pytorch,
        "LmdbBackend": LmdbBackend.__init__,
        "add_jpg_compression": degradations.add_jpg_compression,
        "build_dataset": basicsr.data.build_dataset,
    }


def test_applying_twice_changes_nothing() -> None:
    before = all_patched()
    for name in registration.PATCHES:
        registration.mend(importlib.import_module(name))
    assert all_patched() == before


def test_modules_that_imported_a_function_by_name_have_the_patched_one() -> None:
    import basicsr
    from basicsr.utils import options

    assert basicsr.train.parse_options is options.parse_options
    assert basicsr.test.parse_options is options.parse_options
    assert basicsr.train.build_dataset is basicsr.data.build_dataset
    assert basicsr.test.build_dataset is basicsr.data.build_dataset
    assert basicsr.load_resume_state is basicsr.train.load_resume_state
    assert options.parse_options.__wrapped__ is not options.parse_options


def test_a_basicsr_without_the_defect_keeps_its_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    import basicsr.train
    from basicsr.models.base_model import BaseModel

    def mended_resume(opt: dict) -> None:
        return None

    def mended_model_to_device(self: BaseModel, net: Any) -> Any:
        return net.to(self.device)

    monkeypatch.setattr(basicsr.train, "load_resume_state", mended_resume)
    monkeypatch.setattr(BaseModel, "model_to_device", mended_model_to_device)
    registration.mend(basicsr.train)
    registration.mend(sys.modules[BaseModel.__module__])
    assert basicsr.train.load_resume_state is mended_resume
    assert BaseModel.model_to_device is mended_model_to_device


def test_grayscale_of_the_missing_torchvision_module_weighs_the_channels() -> None:
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    image = torch.eye(3).reshape(1, 3, 1, 3)
    torch.testing.assert_close(
        rgb_to_grayscale(image, num_output_channels=1).flatten(),
        torch.tensor([0.2989, 0.587, 0.114]),
    )


def test_niqe_imports_and_agrees_without_scipys_deprecated_module(
    photographs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from basicsr.metrics import calculate_niqe

    image = photographs["astronaut"][:192, :192]
    np.save(tmp_path / "image.npy", image)
    code = """
import sys
import scipy.ndimage
# As SciPy 2.0 will be: neither loaded nor to be found.
del sys.modules["scipy.ndimage.filters"], scipy.ndimage.filters
scipy.ndimage.__path__ = []
import esc_arch, numpy
from scipy.ndimage.filters import convolve
assert convolve is scipy.ndimage.convolve
from basicsr.metrics import calculate_niqe
from basicsr.data.data_util import generate_gaussian_kernel
assert abs(generate_gaussian_kernel().sum() - 1) < 1e-6
print(calculate_niqe(numpy.load("image.npy"), 0))
"""
    result = run_python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(calculate_niqe(image, 0), rel=1e-6)


def test_fid_needs_no_disp_argument_of_sqrtm(monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.metrics import fid
    from scipy import linalg

    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4))
    statistics = features.mean(0), np.cov(features, rowvar=False)
    expected = fid.calculate_fid(*statistics, statistics[0] + 2, 4 * statistics[1])

    sqrtm = linalg.sqrtm
    monkeypatch.setattr(linalg, "sqrtm", lambda a: sqrtm(a))
    monkeypatch.setattr(fid, "linalg", linalg)
    libraries.fid_matrix_square_root(fid)
    assert fid.linalg is not linalg
    result = fid.calculate_fid(*statistics, statistics[0] + 2, 4 * statistics[1])
    # |mean difference|^2 + tr(S + 4S - 2 (4 S S)^1/2) = 16 + tr(S)
    assert result == pytest.approx(16 + np.trace(statistics[1]))
    assert result == pytest.approx(expected)


def test_jpeg_degradation_takes_the_quality_that_basicsr_draws(
    photographs: dict[str, np.ndarray],
) -> None:
    from basicsr.data.degradations import add_jpg_compression, random_add_jpg_compression

    image = photographs["coffee"][:64, :64].astype(np.float32) / 255
    np.random.seed(0)
    assert random_add_jpg_compression(image, (30, 95)).shape == image.shape
    _, encoded = cv2.imencode(".jpg", image * 255.0, [cv2.IMWRITE_JPEG_QUALITY, 40])
    expected = np.float32(cv2.imdecode(encoded, 1)) / 255
    np.testing.assert_array_equal(add_jpg_compression(image, np.float64(40.7)), expected)


def paired_dataset(gt: Path, lq: Path) -> Any:
    from basicsr.data import build_dataset

    return build_dataset(
        {
            "name": "pairs",
            "type": "PairedImageDataset",
            "dataroot_gt": str(gt),
            "dataroot_lq": str(lq),
            "io_backend": {"type": "lmdb"},
            "scale": 2,
            "phase": "val",
        }
    )


def test_two_data_sets_read_the_same_lmdb(paired_data: Any) -> None:
    first = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    second = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    for index in (0, 5):
        torch.testing.assert_close(first[index]["gt"], second[index]["gt"], rtol=0, atol=0)


def test_a_worker_reads_an_lmdb_that_its_parent_has_open(paired_data: Any) -> None:
    opened = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    expected = opened[3]["lq"]
    fresh = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    loader = DataLoader(fresh, num_workers=1, multiprocessing_context="fork")
    torch.testing.assert_close(list(loader)[3]["lq"][0], expected, rtol=0, atol=0)


def test_an_lmdb_that_cannot_be_opened_still_fails(tmp_path: Path) -> None:
    import lmdb
    from basicsr.utils import FileClient

    with pytest.raises(lmdb.Error, match="absent"):
        FileClient("lmdb", db_paths=str(tmp_path / "absent.lmdb"), client_keys="gt")


def test_a_data_set_survives_pickling(paired_data: Any) -> None:
    import copy

    dataset = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert type(other) is type(dataset)
        torch.testing.assert_close(other[1]["gt"], dataset[1]["gt"], rtol=0, atol=0)


def test_unpickling_a_data_set_of_basicsr_imports_the_patches_first(
    paired_data: Any, tmp_path: Path
) -> None:
    dataset = paired_dataset(paired_data.train_gt, paired_data.train_lq)
    (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(dataset))
    code = "import pickle; print(len(pickle.load(open('dataset.pkl', 'rb'))))"
    result = run_python(code, cwd=tmp_path)
    assert result.stdout == f"{len(dataset)}\n", result.stderr


def test_importing_leaves_the_random_state_and_the_working_folder_alone(tmp_path: Path) -> None:
    code = """
import os, random, numpy, torch
def states():
    return str((random.getstate(), numpy.random.get_state(), torch.get_rng_state().tolist()))
random.seed(1); numpy.random.seed(2); torch.manual_seed(3)
before, folder, threads = states(), os.getcwd(), torch.get_num_threads()
import esc_arch
assert states() == before
assert os.getcwd() == folder and os.listdir(".") == []
assert torch.get_num_threads() == threads
assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
import logging
assert not logging.getLogger().handlers
print("unchanged")
"""
    result = run_python(code, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert result.stdout == "unchanged\n", result.stderr
    assert result.stderr == ""


def test_option_files_build_no_python_objects(tmp_path: Path) -> None:
    from basicsr.utils.options import ordered_yaml

    loader, _ = ordered_yaml()
    witness = tmp_path / "it-ran"
    with pytest.raises(yaml.YAMLError, match="python/object"):
        yaml.load(f"a: !!python/object/apply:os.mkdir ['{witness}']", Loader=loader)
    assert not witness.exists()
    options = yaml.load("b: 1\na: !!float 5e3\nc: [x, ~]", Loader=loader)
    assert list(options.items()) == [("b", 1), ("a", 5000.0), ("c", ["x", None])]


class _RunsCode:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


def _inception(path: str) -> None:
    from basicsr.archs import inception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "LOCAL_FID_WEIGHTS", path)
        inception.fid_inception_v3()


def _downloaded_inception(path: str) -> None:
    from basicsr.archs import inception

    with pytest.MonkeyPatch.context() as patch:
        # Found where an earlier download has put it, so that nothing is downloaded.
        patch.setenv("TORCH_HOME", os.path.dirname(path))
        name = inception.FID_WEIGHTS_URL.rpartition("/")[2]
        place = Path(torch.hub.get_dir()) / "checkpoints" / name
        place.parent.mkdir(parents=True)
        place.write_bytes(Path(path).read_bytes())
        inception.fid_inception_v3()


def _vgg(path: str) -> None:
    from basicsr.archs import vgg_arch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg_arch, "VGG_PRETRAIN_PATH", path)
        vgg_arch.VGGFeatureExtractor(["conv1_1"], "vgg11")


def _built(module: str, name: str, *arguments: Any) -> Callable[[str], Any]:
    def build(path: str) -> Any:
        given = [path if each is PATH else each for each in arguments]
        return getattr(importlib.import_module(f"basicsr.archs.{module}"), name)(*given)

    return build


PATH = object()


LOADS = {
    "SpyNet": _built("spynet_arch", "SpyNet", PATH),
    "BasicVSR": _built("basicvsr_arch", "BasicVSR", 8, 1, PATH),
    "EDVR": _built("basicvsr_arch", "EDVRFeatureExtractor", 3, 8, PATH),
    "TOF": _built("tof_arch", "SPyNetTOF", PATH),
    "DFDNet": _built("dfdnet_arch", "DFDNet", 8, PATH),
    "VGG": _vgg,
    "FID": _inception,
    "FID, downloaded": _downloaded_inception,
}


@pytest.mark.parametrize("load", LOADS.items(), ids=lambda item: item[0])
def test_networks_of_basicsr_load_no_code_from_files(load: Any, tmp_path: Path) -> None:
    # Newer PyTorch refuses most of its own accord; below 2.6 this package does.
    file = tmp_path / "weights.pth"
    torch.save({"params": _RunsCode(tmp_path / "it-ran")}, file)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load[1](str(file))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("load", ["SpyNet", "DFDNet"])
def test_networks_of_basicsr_wait_for_no_pipe(load: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights.pth: is a pipe or a device"):
        LOADS[load](str(tmp_path / "weights.pth"))


def test_what_is_said_of_a_damaged_file_does_not_advise_to_load_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no pickle")
    with pytest.raises(
        pickle.UnpicklingError, match="weights.pth: is damaged, or no such file"
    ) as told:
        LOADS["SpyNet"](str(tmp_path / "weights.pth"))
    assert "weights_only" not in str(told.value)


def test_options_in_the_log_forge_no_lines() -> None:
    from basicsr.utils.options import dict2str

    logged = dict2str({"card": {"author": "a\nERROR: b\x1b[2J", "c\rd": ["e\nf"]}, "g": 1})
    assert logged.splitlines() == [
        "",
        "  card:[",
        "    author: a\\nERROR: b\\x1b[2J",
        "    c\\rd: ['e\\nf']",
        "  ]",
        "  g: 1",
    ]


def test_option_files_and_logs_are_utf8_whatever_the_locale(
    write_train_options: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_train_options({"name": "größe"})
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()), allow_unicode=True), "utf-8")
    code = """
import sys, locale
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8")
import esc_arch
from basicsr.utils import get_root_logger
from basicsr.utils.options import copy_opt_file, parse_options
opt, args = parse_options(".", is_train=True)
copy_opt_file(args.opt, "copy")
get_root_logger(log_file="run.log").info(opt["name"])
"""
    (tmp_path / "copy").mkdir()
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = run_python(code, "-opt", path, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "größe" in (tmp_path / "run.log").read_text("utf-8")
    assert "größe" in (tmp_path / "copy" / path.name).read_text("utf-8")
