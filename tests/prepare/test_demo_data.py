import cv2
import numpy as np
import pytest
import skimage.data

from esc_arch.errors import UserError
from esc_arch.prepare.demo_data import TRAINING_PHOTOGRAPHS, photograph, prepare_demo
from esc_arch.prepare.imresize import imresize

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.data import build_dataset


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    prepare_demo(folder)
    return folder


def options(demo, phase: str, **paths) -> dict:
    return {
        "name": phase,
        "type": "PairedImageDataset",
        "phase": phase,
        "scale": 2,
        "gt_size": 96,
        "use_hflip": True,
        "use_rot": True,
        **paths,
    }


def test_basicsr_trains_on_the_lmdbs(demo):
    dataset = build_dataset(
        options(
            demo,
            "train",
            dataroot_gt=str(demo / "train_HR_sub.lmdb"),
            dataroot_lq=str(demo / "train_LR_bicubic_X2_sub.lmdb"),
            io_backend={"type": "lmdb"},
        )
    )
    assert len(dataset) > 100
    names = {dataset.paths[i]["gt_path"].rsplit("_s", 1)[0] for i in range(len(dataset))}
    assert names == set(TRAINING_PHOTOGRAPHS)
    assert dataset[0]["lq"].shape == (3, 48, 48)


def test_basicsr_validates_on_chelsea_and_coffee(demo):
    dataset = build_dataset(
        options(
            demo,
            "val",
            dataroot_gt=str(demo / "val" / "HR"),
            dataroot_lq=str(demo / "val" / "LR_bicubic" / "X2"),
            filename_tmpl="{}x2",
            io_backend={"type": "disk"},
        )
    )
    pairs = {dataset[i]["gt_path"].rsplit("/", 1)[1]: dataset[i] for i in range(len(dataset))}
    assert sorted(pairs) == ["chelsea.png", "coffee.png"]
    # chelsea is 300x451: the odd column is cut.
    assert pairs["chelsea.png"]["gt"].shape == (3, 300, 450)
    assert pairs["chelsea.png"]["lq"].shape == (3, 150, 225)
    lr = imresize(np.ascontiguousarray(skimage.data.chelsea()[:, :450]), 0.5)
    assert np.array_equal((pairs["chelsea.png"]["lq"] * 255).round().numpy(), lr.transpose(2, 0, 1))


def test_a_second_run_changes_nothing(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}
    prepare_demo(demo)
    after = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}
    assert after == before


def test_photographs_are_bgr_also_where_they_are_grey_or_a_stereo_pair():
    astronaut = cv2.cvtColor(photograph("astronaut"), cv2.COLOR_BGR2RGB)
    assert np.array_equal(astronaut, skimage.data.astronaut())
    left = cv2.cvtColor(photograph("stereo_motorcycle"), cv2.COLOR_BGR2RGB)
    assert np.array_equal(left, skimage.data.stereo_motorcycle()[0])
    assert np.array_equal(photograph("camera")[:, :, 2], skimage.data.camera())


def test_a_photograph_that_is_not_there_is_an_error_of_one_line():
    with pytest.raises(UserError, match="does not carry its photograph no_such"):
        photograph("no_such")
