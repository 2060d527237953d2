import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from esc_arch.errors import UserError
from esc_arch.prepare.benchmark_sets import find_benchmark_sets, prepare_set
from esc_arch.prepare.imresize import imresize


@pytest.fixture(scope="module")
def pictures(photographs) -> dict[str, np.ndarray]:
    """Two small photographs in BGR whose sides are no multiples of the scales."""
    return {
        "cat": np.ascontiguousarray(photographs["chelsea"][100:161, 100:147, ::-1]),
        "cup": np.ascontiguousarray(photographs["coffee"][50:85, 200:253, ::-1]),
    }


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def make(out: Path, source: Path, **options):
    return prepare_set("set", source, out, workers=1, **options)


@pytest.mark.parametrize(
    "layout",
    [
        "{}.png",
        "{}.bmp",
        "HR/{}.png",
        "GTmod12/{}.png",
        "original/{}_HR.bmp",
        "image_SRF_4/img_{}_SRF_4_HR.png",
    ],
)
def test_common_layouts_give_the_same_set(tmp_path, pictures, layout):
    for name, image in pictures.items():
        path = tmp_path / "source" / layout.format(name)
        write(path, image)
        if "image_SRF" in layout:
            write(path.with_name(path.name.replace("_HR", "_LR")), image[:10, :10])
    report = make(tmp_path / "out", tmp_path / "source", count=2)
    start = "img_" if "image_SRF" in layout else ""
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("out/**/*.*"))
    expected = [f"HR/{start}{name}.png" for name in pictures]
    expected += [f"LR_bicubic/X{s}/{start}{name}x{s}.png" for s in (2, 3, 4) for name in pictures]
    assert files == sorted(expected)
    assert (report.images, report.smallest, report.largest) == (2, (53, 35), (47, 61))


def test_lr_is_matlabs_of_hr_cut_to_the_scale_and_hr_stays_whole(tmp_path, pictures):
    for name, image in pictures.items():
        write(tmp_path / "source" / f"{name}.png", image)
    make(tmp_path / "out", tmp_path / "source")
    for name, image in pictures.items():
        assert np.array_equal(cv2.imread(str(tmp_path / "out" / "HR" / f"{name}.png")), image)
        for scale in (2, 3, 4):
            lr = cv2.imread(str(tmp_path / f"out/LR_bicubic/X{scale}/{name}x{scale}.png"))
            height, width = (side // scale * scale for side in image.shape[:2])
            assert np.array_equal(lr, imresize(image[:height, :width], 1 / scale))


def test_a_jpeg_set_and_grey_images_are_read_as_rgb(tmp_path, pictures):
    write(tmp_path / "source" / "cat.jpg", pictures["cat"])
    write(tmp_path / "source" / "cup.png", pictures["cup"][:, :, 0])
    report = make(tmp_path / "out", tmp_path / "source")
    assert report.grey == 1
    assert "1 grey made RGB" in str(report)
    assert cv2.imread(str(tmp_path / "out/HR/cup.png"), cv2.IMREAD_UNCHANGED).ndim == 3


def test_the_checksum_is_of_the_pixels(tmp_path, pictures):
    for name, image in pictures.items():
        write(tmp_path / "png" / f"{name}.png", image)
        write(tmp_path / "bmp" / f"{name}.bmp", image)
        write(tmp_path / "other" / f"{name}.png", image ^ np.uint8(name == "cup"))
    reports = {name: make(tmp_path / f"out_{name}", tmp_path / name) for name in ("png", "bmp")}
    assert reports["png"].checksum == reports["bmp"].checksum
    assert make(tmp_path / "out", tmp_path / "other").checksum != reports["png"].checksum


def test_official_lr_is_verified_bit_for_bit(tmp_path, pictures):
    source = tmp_path / "source"
    for name, image in pictures.items():
        write(source / "HR" / f"{name}.png", image)
    make(tmp_path / "first", source)
    shutil.copytree(tmp_path / "first" / "LR_bicubic", source / "LR_bicubic")
    assert make(tmp_path / "second", source).verified == 6

    spoilt = source / "LR_bicubic" / "X3" / "cupx3.png"
    image = cv2.imread(str(spoilt))
    image[0, 0, 0] ^= 1
    write(spoilt, image)
    write(source / "LR_bicubic" / "X2" / "catx2.png", image)
    with pytest.raises(UserError) as error:
        make(tmp_path / "third", source)
    first, second = error.value.lines
    assert "catx2.png: 17x11 pixels, not 23x30 as HR says" in first
    assert f"cupx3.png: 1 of {image.size} values are not MATLAB's bicubic of HR" in second


def test_a_second_run_writes_only_what_is_missing_or_wrong(tmp_path, pictures):
    for name, image in pictures.items():
        write(tmp_path / "source" / f"{name}.png", image)
    report = make(tmp_path / "out", tmp_path / "source")
    files = sorted(tmp_path.glob("out/**/*.png"))
    right = files[0].stat().st_mtime_ns
    wrong, missing = files[-1], files[-2]
    content = wrong.read_bytes()
    wrong.write_bytes(content[:40])
    missing.unlink()
    assert make(tmp_path / "out", tmp_path / "source") == report
    assert wrong.read_bytes() == content
    assert missing.exists()
    assert files[0].stat().st_mtime_ns == right


def test_bad_images_do_not_stop_the_others(tmp_path, pictures):
    write(tmp_path / "source" / "cat.png", pictures["cat"])
    write(tmp_path / "source" / "tiny.png", pictures["cat"][:3, :9])
    (tmp_path / "source" / "text.png").write_text("no image")
    with pytest.raises(UserError) as error:
        make(tmp_path / "out", tmp_path / "source")
    assert "text.png: not an image" in error.value.lines[0]
    assert "tiny.png: 9x3 pixels, too small for x4" in error.value.lines[1]
    assert (tmp_path / "out" / "HR" / "cat.png").exists()


def test_wrong_counts_and_names_twice_are_refused(tmp_path, pictures):
    write(tmp_path / "source" / "HR" / "cat.png", pictures["cat"])
    with pytest.raises(UserError, match="1 HR images; set has 5"):
        make(tmp_path / "out", tmp_path / "source", count=5)
    write(tmp_path / "source" / "HR" / "cat.bmp", pictures["cat"])
    with pytest.raises(UserError, match="more than one HR image is called cat"):
        make(tmp_path / "out", tmp_path / "source")
    with pytest.raises(UserError, match="no images in it nor in its HR"):
        make(tmp_path / "out", tmp_path)


def test_sets_are_found_by_any_of_their_names_in_any_case(tmp_path):
    for name in ("set5", "BSD100"):
        (tmp_path / name).mkdir()
    found, missing = find_benchmark_sets(tmp_path, ["Set5", "Set14", "B100", "Urban100"])
    assert found == {"Set5": tmp_path / "set5", "B100": tmp_path / "BSD100"}
    assert missing == [
        f"--src {tmp_path}: no folder {name} in it" for name in ("Set14", "Urban100")
    ]
