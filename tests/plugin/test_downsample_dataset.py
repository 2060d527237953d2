import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.prepare.subimages import Cutting, find_sources, pack_sub_images

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.data import build_dataloader, build_dataset


@pytest.fixture(scope="module")
def hr(tmp_path_factory, photographs):
    folder = tmp_path_factory.mktemp("downsample") / "HR"
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        image = photographs[name][100:161, 200:275]
        assert cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def hr_lmdb(hr):
    path = hr.parent / "HR.lmdb"
    cutting = Cutting(crop_size=61, step=61, multiple=1)
    pack_sub_images(find_sources([hr], "--hr"), {1: path}, cutting, workers=1)
    return path


def build(root, phase="train", **changes):
    is_lmdb = str(root).endswith(".lmdb")
    options = {
        "name": "HR",
        "type": "DownsampleImageDataset",
        "phase": phase,
        "scale": 3,
        "dataroot_gt": str(root),
        "io_backend": {"type": "lmdb" if is_lmdb else "disk"},
        "gt_size": 48,
        "use_hflip": True,
        "use_rot": True,
    }
    return build_dataset({**options, **changes})


def eight_bit(tensor: torch.Tensor) -> np.ndarray:
    values = (tensor * 255).round()
    assert torch.allclose(values / 255, tensor)
    return values.numpy().astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_is_antialiased_bicubic_of_the_patch_on_8_bit(hr, scale):
    pair = build(hr, scale=scale)[1]
    gt, lq = eight_bit(pair["gt"]), eight_bit(pair["lq"])
    assert gt.shape == (48, 48, 3)
    side = 48 // scale
    # Pillow's is the filter that torchvision's follows; its fixed point may round the other way.
    expected = np.asarray(Image.fromarray(gt).resize((side, side), Image.Resampling.BICUBIC))
    assert lq.shape == expected.shape
    assert np.abs(lq.astype(int) - expected).max() <= 1


def test_patches_are_parts_of_the_image_in_rgb(hr, photographs):
    dataset = build(hr, use_hflip=False, use_rot=False)
    index = next(i for i, path in enumerate(dataset.paths) if "coffee" in path)
    image = photographs["coffee"][100:161, 200:275]
    random.seed(0)
    starts = set()
    for _ in range(6):
        pair = dataset[index]
        patch = eight_bit(pair["gt"])
        windows = np.lib.stride_tricks.sliding_window_view(image, (48, 48), axis=(0, 1))
        matches = (windows == patch.transpose(2, 0, 1)).all(axis=(2, 3, 4))
        assert matches.sum() == 1
        starts.add(tuple(np.argwhere(matches)[0]))
        assert pair["gt_path"] == pair["lq_path"] == dataset.paths[index]
    assert len(starts) > 1


@pytest.mark.parametrize(
    ("use_hflip", "use_rot", "views"), [(True, True, 8), (True, False, 2), (False, False, 1)]
)
def test_augmentation_gives_the_views_asked_for(tmp_path, photographs, use_hflip, use_rot, views):
    image = photographs["chelsea"][100:148, 100:148]
    cv2.imwrite(str(tmp_path / "square.png"), image[..., ::-1])
    dataset = build(tmp_path, use_hflip=use_hflip, use_rot=use_rot)
    random.seed(0)
    seen = {eight_bit(dataset[0]["gt"]).tobytes() for _ in range(80)}
    turned = [np.rot90(view, k) for view in (image, image[:, ::-1]) for k in range(4)]
    assert seen <= {np.ascontiguousarray(view).tobytes() for view in turned}
    assert len(seen) == views


def test_validation_takes_the_image_whole_up_to_the_scale(hr):
    pair = build(hr, phase="val")[0]
    assert pair["gt"].shape == (3, 60, 75)
    assert pair["lq"].shape == (3, 20, 25)


def test_an_lmdb_gives_the_same_pairs_as_a_folder(hr, hr_lmdb):
    from_folder = build(hr, phase="val", scale=1)
    from_lmdb = build(hr_lmdb, phase="val", scale=1)
    # 61x75 has two sub-images.
    assert from_lmdb.paths[:2] == ["astronaut_s001", "astronaut_s002"]
    assert len(from_lmdb) == 2 * len(from_folder)
    assert torch.equal(from_lmdb[0]["gt"], from_folder[0]["gt"][:, :, :61])


@pytest.mark.parametrize("kind", ["folder", "lmdb"])
def test_a_meta_info_file_chooses_the_images(tmp_path, hr, hr_lmdb, kind):
    listing = tmp_path / "meta_info.txt"
    if kind == "folder":
        listing.write_text("rocket.png (61,75,3)\nastronaut.png (61,75,3)\n\n")
        dataset = build(hr, meta_info_file=str(listing))
        assert dataset.paths == [str(hr / "rocket.png"), str(hr / "astronaut.png")]
    else:
        listing.write_text("rocket_s002.png (61,61,3) 1\n")
        dataset = build(hr_lmdb, meta_info_file=str(listing))
        assert dataset.paths == ["rocket_s002"]
    assert dataset[0]["lq"].shape == (3, 16, 16)


def test_basicsrs_loader_reads_an_lmdb_in_processes_of_its_own(hr_lmdb):
    dataset = build(hr_lmdb)
    options = {"phase": "train", "batch_size_per_gpu": 2, "num_worker_per_gpu": 2}
    loader = build_dataloader(dataset, options, num_gpu=1, seed=0)
    batches = list(loader)
    assert len(batches) == 3
    assert all(batch["lq"].shape == (2, 3, 16, 16) for batch in batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gt_size": 50}, "gt_size 50: a positive multiple of scale 3"),
        ({"meta_info_file": "/absent.txt"}, "meta_info_file /absent.txt: No such file"),
    ],
)
def test_wrong_options_are_named(hr, changes, message):
    with pytest.raises(UserError, match=message):
        build(hr, **changes)


def test_images_that_are_missing_or_too_small_are_named(tmp_path, hr, hr_lmdb):
    with pytest.raises(UserError, match="gt_size 63: .*astronaut.png has only 75x61 pixels"):
        build(hr, gt_size=63)[0]
    listing = tmp_path / "meta_info.txt"
    listing.write_text("absent.png (61,75,3)\n")
    with pytest.raises(UserError, match="absent is not in it"):
        build(hr_lmdb, meta_info_file=str(listing))[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in it"):
        build(tmp_path / "empty")
