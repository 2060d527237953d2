import os
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.subimages import (
    Cutting,
    Source,
    cut_into_sub_images,
    find_sources,
    pack_sub_images,
    sub_image_starts,
)

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.data import build_dataset

CUTTING = Cutting(crop_size=48, step=24)


@pytest.fixture
def hr(tmp_path, photographs) -> Path:
    """Three photographs: 100x150, 48x48, and a grey one of 60x50."""
    folder = tmp_path / "HR"
    folder.mkdir()
    write(folder / "0001.png", photographs["astronaut"][:100, :150])
    write(folder / "0002.png", photographs["coffee"][100:148, 100:148])
    write(folder / "0003.png", photographs["chelsea"][100:160, 100:150, 1])
    return folder


def write(path: Path, rgb: np.ndarray) -> None:
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


def read(path: Path) -> dict[str, np.ndarray]:
    """The images of an LMDB by key, BGR."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            return {
                key.decode(): cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
                for key, value in transaction.cursor()
            }


def databases(folder: Path, *scales: int) -> dict[int, Path]:
    return {scale: folder / f"X{scale}.lmdb" for scale in scales}


@pytest.mark.parametrize(
    ("side", "starts"),
    [(48, [0]), (47, [0]), (49, [0, 1]), (72, [0, 24]), (80, [0, 24, 32]), (96, [0, 24, 48])],
)
def test_sub_images_start_at_every_step_and_the_last_ends_at_the_border(side, starts):
    assert sub_image_starts(side, crop_size=48, step=24) == starts


def test_sub_images_go_row_by_row_and_cover_the_image():
    image = np.arange(80 * 100 * 3).reshape(80, 100, 3)
    pieces = cut_into_sub_images(image, 48, 24)
    assert len(pieces) == 3 * 4
    assert np.array_equal(pieces[0], image[:48, :48])
    assert np.array_equal(pieces[1], image[:48, 24:72])
    assert np.array_equal(pieces[-1], image[32:, 52:])


def test_hr_and_each_lr_are_cut_at_the_same_places(tmp_path, hr):
    paths = databases(tmp_path, 1, 2, 3, 4)
    counts = pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    # 100x150 becomes 96x144, which has 3 x 5 sub-images, and 60x50 becomes 60x48.
    assert counts == {"sources": 3, "sub-images": 15 + 1 + 2, "grey": 1}
    whole = cv2.imread(str(hr / "0001.png"))[:96, :144]
    hr_pieces = read(paths[1])
    assert np.array_equal(hr_pieces["0001_s002"], whole[:48, 24:72])
    for scale in (2, 3, 4):
        pieces = read(paths[scale])
        assert list(pieces) == list(hr_pieces)
        lr = imresize(whole, 1 / scale)
        top, left, side = 24 // scale, 48 // scale, 48 // scale
        # The 8th: second row, third column.
        assert np.array_equal(pieces["0001_s008"], lr[top : top + side, left : left + side])


def test_basicsrs_paired_dataset_trains_on_them(tmp_path, hr):
    paths = databases(tmp_path, 1, 2)
    pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    dataset = build_dataset(
        {
            "name": "set",
            "type": "PairedImageDataset",
            "phase": "train",
            "scale": 2,
            "dataroot_gt": str(paths[1]),
            "dataroot_lq": str(paths[2]),
            "io_backend": {"type": "lmdb"},
            "gt_size": 48,
            "use_hflip": False,
            "use_rot": False,
        }
    )
    assert len(dataset) == 18
    for pair in (dataset[i] for i in range(len(dataset))):
        assert pair["gt"].shape == (3, 48, 48)
        assert pair["lq"].shape == (3, 24, 24)
        assert abs(pair["gt"].mean() - pair["lq"].mean()) < 0.01


def test_official_lr_is_taken_where_it_is_given(tmp_path, hr):
    official = tmp_path / "X2"
    official.mkdir()
    for path in hr.iterdir():
        height, width = cv2.imread(str(path)).shape[:2]
        lr = np.full((height // 2, width // 2, 3), int(path.stem), np.uint8)
        write(official / f"{path.stem}x2.png", lr)
    paths = databases(tmp_path, 1, 2, 3)
    pack_sub_images(find_sources([hr], "--hr", {2: official}), paths, CUTTING, workers=1)
    assert all((piece == int(key[:4])).all() for key, piece in read(paths[2]).items())
    expected = imresize(cv2.imread(str(hr / "0002.png")), 1 / 3)
    assert np.array_equal(read(paths[3])["0002_s001"], expected)


def test_a_turned_jpeg_is_cut_upright_as_its_official_lr_is(tmp_path, photographs):
    upright = Image.fromarray(photographs["coffee"][100:196, 100:196])
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by a quarter to the right.
    for side in ("HR", "X2"):
        (tmp_path / side).mkdir()
    upright.rotate(90).save(tmp_path / "HR" / "1.jpg", exif=exif, quality=100, subsampling=0)
    upright.resize((48, 48), Image.Resampling.BOX).save(tmp_path / "X2" / "1x2.png")
    sources = find_sources([tmp_path / "HR"], "--hr", {2: tmp_path / "X2"})
    paths = databases(tmp_path, 1, 2)
    pack_sub_images(sources, paths, CUTTING, workers=1)
    hr, lr = read(paths[1]), read(paths[2])
    for key, piece in hr.items():
        half = cv2.resize(piece, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        assert np.abs(half.astype(int) - lr[key]).mean() < 3


def test_official_lr_must_be_there_and_fit(tmp_path, hr):
    official = tmp_path / "X2"
    official.mkdir()
    write(official / "0001x2.png", np.zeros((50, 74, 3), np.uint8))
    with pytest.raises(UserError) as error:
        find_sources([hr], "--hr", {2: official})
    assert error.value.lines == [
        f"--lr-x2 {official}: {name}x2.png is missing" for name in ("0002", "0003")
    ]
    source = Source("0001", hr / "0001.png", {2: official / "0001x2.png"})
    with pytest.raises(UserError, match="0001x2.png: 74x50 pixels, but x2 of 0001.png has 75x50"):
        pack_sub_images([source], databases(tmp_path, 1, 2), CUTTING, workers=1)


def test_bad_images_are_all_named_and_cost_nothing_of_the_others(tmp_path, hr):
    good = (hr / "0001.png").read_bytes()
    (hr / "0004.png").write_bytes(good[: len(good) // 2])
    (hr / "0005.png").write_text("no image")
    write(hr / "0006.png", np.zeros((47, 90, 3), np.uint8))
    paths = databases(tmp_path, 1, 2)
    with pytest.raises(UserError) as error:
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    assert len(error.value.lines) == 3
    assert "0004.png" in error.value.lines[0] and "whole image" in error.value.lines[0]
    assert "0005.png: not an image" in error.value.lines[1]
    assert "0006.png: 90x47 pixels, too small for a sub-image of 48" in error.value.lines[2]
    assert not any(path.exists() for path in paths.values())

    # What is done is not read again: spoilt files of the same size and time do no harm.
    for name in ("0001", "0002", "0003"):
        path = hr / f"{name}.png"
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (hr / "0004.png").write_bytes(good)
    (hr / "0005.png").unlink()
    (hr / "0006.png").unlink()
    counts = pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    assert counts == {"sources": 4, "sub-images": 15 + 1 + 2 + 15, "grey": 1}
    pieces = read(paths[2])
    assert np.array_equal(pieces["0001_s015"], pieces["0004_s015"])


def test_a_second_run_does_only_what_is_missing(tmp_path, hr):
    sources = find_sources([hr], "--hr")
    pack_sub_images(sources, databases(tmp_path, 1, 2), CUTTING, workers=1)
    before = (tmp_path / "X1.lmdb" / "data.mdb").stat().st_mtime_ns
    counts = pack_sub_images(sources, databases(tmp_path, 1, 2, 4), CUTTING, workers=1)
    assert counts["sub-images"] == 18
    assert (tmp_path / "X1.lmdb" / "data.mdb").stat().st_mtime_ns == before
    assert list(read(tmp_path / "X4.lmdb")) == list(read(tmp_path / "X1.lmdb"))


def change_in_place(path: Path) -> None:
    """Changes the pixels of an uncompressed image, and so not its size."""
    size = path.stat().st_size
    write(path, 255 - cv2.imread(str(path))[..., ::-1])
    assert path.stat().st_size == size
    touch(path)


def touch(path: Path) -> None:
    """Gives a file a later modification time, by more than any file system's resolution."""
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 4 * 10**9))


def last_transaction(path: Path) -> int:
    """Number of the last change to an LMDB."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        return environment.info()["last_txnid"]


@pytest.fixture
def bmp(hr) -> Path:
    """One of the photographs as BMP, beside a file that keeps its LMDB from being finished."""
    path = hr / "0002.bmp"
    write(path, cv2.imread(str(hr / "0002.png"))[..., ::-1])
    (hr / "0002.png").unlink()
    (hr / "bad.png").write_text("no image")
    return path


def test_an_image_that_changed_but_not_in_size_is_made_again(tmp_path, hr, bmp):
    paths = databases(tmp_path, 1, 2)
    with pytest.raises(UserError, match="bad.png"):
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    (hr / "bad.png").unlink()
    change_in_place(bmp)
    pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    changed = cv2.imread(str(bmp))
    assert np.array_equal(read(paths[1])["0002_s001"], changed)
    assert np.array_equal(read(paths[2])["0002_s001"], imresize(changed, 1 / 2))
    change_in_place(bmp)
    with pytest.raises(UserError, match="made from other images .0002 has changed since"):
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)


def test_images_that_were_only_copied_or_touched_are_not_made_again(tmp_path, hr, bmp):
    paths = databases(tmp_path, 1, 2)
    with pytest.raises(UserError, match="bad.png"):
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    (hr / "bad.png").unlink()
    for path in hr.iterdir():
        touch(path)
    before = last_transaction(tmp_path / "X2.lmdb.partial")
    pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    assert last_transaction(paths[2]) == before
    copy = tmp_path / "copy"
    shutil.copytree(hr, copy, copy_function=shutil.copyfile)
    counts = pack_sub_images(find_sources([copy], "--hr"), paths, CUTTING, workers=1)
    assert counts["sources"] == 3
    stamps = {line.split("\t")[1] for line in (paths[1] / "sources.tsv").read_text().splitlines()}
    assert stamps == {source.stamp(1) for source in find_sources([copy], "--hr")}


def test_finished_lmdbs_of_other_images_are_not_mistaken_for_these(tmp_path, hr):
    paths = databases(tmp_path, 1)
    pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    write(hr / "0004.png", np.zeros((48, 48, 3), np.uint8))
    with pytest.raises(UserError, match="made from other images .0004 was not among them"):
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)
    (hr / "0004.png").unlink()
    (hr / "0001.png").unlink()
    with pytest.raises(UserError, match="made from other images .some are missing now"):
        pack_sub_images(find_sources([hr], "--hr"), paths, CUTTING, workers=1)


def test_small_images_are_left_out_and_counted_when_asked(tmp_path, hr):
    write(hr / "0004.png", np.zeros((47, 90, 3), np.uint8))
    cutting = Cutting(crop_size=48, step=24, skip_small=True)
    paths = databases(tmp_path, 1, 2)
    counts = pack_sub_images(find_sources([hr], "--hr"), paths, cutting, workers=1)
    assert counts == {"sources": 4, "sub-images": 18, "grey": 1, "small": 1}
    assert not any(key.startswith("0004") for key in read(paths[2]))


def test_sides_from_the_smallest_up_to_the_crop_size_are_taken_whole(tmp_path, hr):
    cutting = Cutting(crop_size=120, step=60, min_side=48)
    paths = databases(tmp_path, 1, 3)
    pack_sub_images(find_sources([hr], "--hr"), paths, cutting, workers=1)
    assert {key: piece.shape[:2] for key, piece in read(paths[1]).items()} == {
        "0001_s001": (96, 120),
        "0001_s002": (96, 120),
        "0002_s001": (48, 48),
        "0003_s001": (60, 48),
    }
    assert read(paths[3])["0003_s001"].shape[:2] == (20, 16)


def test_keys_have_nothing_basicsr_cannot_read(tmp_path, hr):
    (hr / "0001.png").rename(hr / "a photo.v2 é.png")
    names = [source.name for source in find_sources([hr], "--hr", prefix="Set_")]
    assert names == ["Set_0002", "Set_0003", "Set_a_photo_v2__"]


def test_two_images_with_one_key_are_refused(tmp_path, hr):
    (hr / "0001.jpg").touch()
    with pytest.raises(UserError, match="0001.jpg and .*0001.png would both be called 0001"):
        find_sources([hr], "--hr")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 100}, "--crop-size 100: a positive multiple of 12"),
        ({"step": 0}, "--step 0: a positive multiple of 12"),
        ({"min_side": 481}, "--min-side 481: a number from 1 to --crop-size 480"),
    ],
)
def test_sizes_that_would_tear_hr_and_lr_apart_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Cutting(**settings)
