import os
import zipfile

import cv2
import pytest

from esc_arch.errors import UserError
from esc_arch.prepare.subimages import Cutting
from esc_arch.prepare.training_sets import prepare_dflip, prepare_training_set, unpack_images

CUTTING = Cutting(crop_size=48, step=48)


@pytest.fixture
def folder(tmp_path, photographs):
    """Makes a folder of 50x60 photographs."""

    def make(name: str, *images: str):
        for number, image in enumerate(images):
            path = tmp_path / name / image
            path.parent.mkdir(parents=True, exist_ok=True)
            crop = photographs["coffee"][20 * number : 20 * number + 50, 100:160]
            assert cv2.imwrite(str(path), crop[..., ::-1])
        return tmp_path / name

    return make


def keys(lmdb_folder) -> list[str]:
    lines = (lmdb_folder / "meta_info.txt").read_text().splitlines()
    return [line.split(".")[0] for line in lines]


def test_a_set_like_div2k_is_named_as_the_option_files_name_it(tmp_path, folder):
    hr = [folder("A", "x.png", "y.png"), folder("B", "z.png")]
    counts = prepare_training_set("My", hr, tmp_path / "out", (2, 4), CUTTING, workers=1)
    assert counts == {"sources": 3, "sub-images": 6}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "My_train_HR_sub.lmdb",
        "My_train_LR_bicubic_X2_sub.lmdb",
        "My_train_LR_bicubic_X4_sub.lmdb",
    ]
    assert keys(tmp_path / "out" / "My_train_LR_bicubic_X4_sub.lmdb") == [
        f"{name}_s00{i}" for name in "xyz" for i in (1, 2)
    ]


def test_div2k_must_be_whole(tmp_path, folder):
    hr = folder("HR", *(f"{i:04d}.png" for i in (1, 2, 4)))
    with pytest.raises(UserError) as error:
        prepare_training_set("DIV2K", [hr], tmp_path / "out", (2,), CUTTING, workers=1)
    assert str(error.value) == (
        f"--hr {hr}: 797 of the 800 images of DIV2K are missing: 0003, 0005, 0006, 0007, 0008 ...; "
        "--count 0 takes any images"
    )
    with pytest.raises(UserError, match="3 images, but DF2K is to have 3450; --count 0"):
        prepare_training_set("DF2K", [hr], tmp_path / "out", (2,), CUTTING, workers=1)
    assert not (tmp_path / "out").exists()
    counts = prepare_training_set(
        "DIV2K", [hr], tmp_path / "out", (2,), CUTTING, count=3, workers=1
    )
    assert counts["sources"] == 3


def test_the_name_of_a_set_stays_in_its_folder(tmp_path, folder):
    hr = folder("HR", "1.png")
    with pytest.raises(UserError, match="--name ../My: the start of a file name is needed"):
        prepare_training_set("../My", [hr], tmp_path / "out", (2,), CUTTING, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["HR"]


def test_dflip_is_one_lmdb_over_its_sets_with_folders_in_folders(tmp_path, folder):
    folders = {
        "DIV2K": folder("DIV2K", "0001.png"),
        "LSDIR": folder("LSDIR", "0001000/0000001.png", "0002000/0001001.png"),
    }
    cutting = Cutting(crop_size=50, step=50, multiple=1)
    counts = prepare_dflip(folders, tmp_path / "out", cutting, any_count=True, workers=1)
    assert counts == {"sources": 3, "sub-images": 6}
    assert keys(tmp_path / "out" / "DFLIP_train_HR_sub.lmdb") == [
        f"{name}_s00{i}"
        for name in ("DIV2K_0001", "LSDIR_0000001", "LSDIR_0001001")
        for i in (1, 2)
    ]


def test_dflip_names_every_set_that_is_not_whole(tmp_path, folder):
    folders = {
        "DIV2K": folder("DIV2K", "0001.png"),
        "Flickr2K": tmp_path / "absent",
        "LSDIR": folder("LSDIR", "1/1.png"),
    }
    with pytest.raises(UserError) as error:
        prepare_dflip(folders, tmp_path / "out", CUTTING, workers=1)
    assert len(error.value.lines) == 3
    assert "799 of the 800 images of DIV2K are missing" in error.value.lines[0]
    assert error.value.lines[1].startswith(f"--flickr2k {tmp_path / 'absent'}: No such file")
    assert "; --any-count takes any images" in error.value.lines[0]
    assert error.value.lines[2] == (
        f"--lsdir {folders['LSDIR']}: 1 images, but LSDIR is to have 84991; --any-count takes any "
        "number"
    )


def archive(tmp_path, files: dict[str, bytes]):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def test_unpacking_takes_images_alone_and_stays_in_its_folder(tmp_path):
    path = archive(
        tmp_path, {"HR/1.png": b"one", "../../2.png": b"two", "readme.txt": b"no", "/3.jpg": b"3"}
    )
    unpack_images(path, tmp_path / "HR", progress=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "HR").iterdir()} == {
        "1.png": b"one",
        "2.png": b"two",
        "3.jpg": b"3",
    }


def test_unpacking_again_mends_what_is_wrong_and_keeps_the_rest(tmp_path):
    path = archive(tmp_path, {"1.png": b"one", "2.png": b"two"})
    unpack_images(path, tmp_path / "HR", progress=False)
    before = (tmp_path / "HR" / "1.png").stat().st_mtime_ns
    (tmp_path / "HR" / "2.png").write_bytes(b"tw")
    unpack_images(path, tmp_path / "HR", progress=False)
    assert (tmp_path / "HR" / "2.png").read_bytes() == b"two"
    assert (tmp_path / "HR" / "1.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["b/1.png", "a/1.PNG", "../1.png", "/1.png"])
def test_an_archive_of_two_images_that_would_be_one_file_is_refused(tmp_path, other):
    path = archive(tmp_path, {"a/1.png": b"one", other: b"two"})
    with pytest.raises(UserError, match=f"set.zip: a/1.png and .*{other.lstrip('/')} would be one"):
        unpack_images(path, tmp_path / "HR", progress=False)
    assert not (tmp_path / "HR").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
def test_a_pipe_and_a_link_in_the_place_of_an_image_are_replaced(tmp_path):
    path = archive(tmp_path, {"1.png": b"one", "2.png": b"two"})
    (tmp_path / "HR").mkdir()
    (tmp_path / "theirs").write_bytes(b"theirs")
    os.mkfifo(tmp_path / "HR" / "1.png")
    (tmp_path / "HR" / "2.png").symlink_to(tmp_path / "theirs")
    unpack_images(path, tmp_path / "HR", progress=False)
    assert (tmp_path / "HR" / "1.png").read_bytes() == b"one"
    assert (tmp_path / "HR" / "2.png").read_bytes() == b"two"
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_archive_is_an_error_of_one_line(tmp_path, damage):
    path = archive(tmp_path, {"1.png": bytes(1000)})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:500]
    else:
        content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="remove it to download it anew"):
        unpack_images(path, tmp_path / "HR", progress=False)
