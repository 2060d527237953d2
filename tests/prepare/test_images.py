import contextlib
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from esc_arch.errors import UserError
from esc_arch.prepare.headers import read_header
from esc_arch.prepare.images import encode_png, list_images, png_shape, read_image


@pytest.fixture(scope="module")
def bgr(photographs) -> np.ndarray:
    return cv2.cvtColor(photographs["chelsea"][:60, :80], cv2.COLOR_RGB2BGR)


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_colour_image_is_read_as_it_is(tmp_path, bgr, suffix):
    image, was_grey = read_image(write(tmp_path / f"image{suffix}", bgr))
    assert np.array_equal(image, bgr)
    assert not was_grey


def test_jpeg_is_decoded_as_opencv_and_so_basicsr_does(tmp_path, bgr):
    path = write(tmp_path / "image.jpg", bgr)
    assert np.array_equal(read_image(path)[0], cv2.imread(str(path)))


def read_by_basicsr(path: Path) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_an_image_is_turned_upright_as_basicsr_turns_it(tmp_path, bgr, suffix, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(bgr[..., ::-1].copy()).save(path, exif=exif)
    image, _ = read_image(path)
    assert np.array_equal(image, read_by_basicsr(path))
    header = read_header(path)
    assert header == (*image.shape[:2], turn)
    if suffix == ".png":
        upright = ImageOps.exif_transpose(Image.open(path))
        assert np.array_equal(image, np.asarray(upright)[..., ::-1])
    Image.fromarray(bgr[..., 0]).save(path, exif=exif)
    image, grey = read_image(path)
    assert grey or suffix == ".webp"  # Which knows no grey.
    assert np.array_equal(image, read_by_basicsr(path))


def test_an_orientation_in_xmp_alone_turns_nothing_as_in_opencv(tmp_path, bgr):
    path = tmp_path / "xmp.jpg"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    Image.fromarray(bgr).save(path, xmp=xmp)
    assert np.array_equal(read_image(path)[0], read_by_basicsr(path))
    assert read_header(path) == (*bgr.shape[:2], 1)


def test_a_grey_image_becomes_rgb_and_says_so(tmp_path, bgr):
    image, was_grey = read_image(write(tmp_path / "grey.png", bgr[:, :, 1]))
    assert was_grey
    assert np.array_equal(image, np.stack([bgr[:, :, 1]] * 3, axis=2))


def test_alpha_is_dropped(tmp_path, bgr):
    rgba = np.dstack([bgr, np.full(bgr.shape[:2], 9, np.uint8)])
    image, was_grey = read_image(write(tmp_path / "alpha.png", rgba))
    assert np.array_equal(image, bgr)
    assert not was_grey


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_truncated_image_is_refused(tmp_path, bgr, suffix):
    path = write(tmp_path / f"image{suffix}", bgr)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=f"image{suffix}: .*a whole image file is needed"):
        read_image(path)


def test_a_png_with_a_flipped_bit_is_refused(tmp_path, bgr):
    path = write(tmp_path / "image.png", bgr)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="a whole image file is needed"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_what_is_no_image_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(error.value) == f"{path}: not an image; a whole image file is needed"


def test_16_bit_is_refused(tmp_path, bgr):
    path = write(tmp_path / "deep.png", bgr.astype(np.uint16) * 257)
    with pytest.raises(UserError, match="uint16; 8 bit is needed"):
        read_image(path)


def test_a_missing_file_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="gone.png: No such file or directory"):
        read_image(tmp_path / "gone.png")


def test_images_are_listed_by_name_without_hidden_and_other_files(tmp_path):
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.bmp").touch()
    assert [path.name for path in list_images(tmp_path, "--hr")] == ["a.jpg", "b.PNG"]
    recursive = list_images(tmp_path, "--hr", recursive=True)
    assert [path.name for path in recursive] == ["a.jpg", "b.PNG", "c.bmp"]


@pytest.mark.parametrize("recursive", [False, True])
def test_a_folder_that_is_missing_or_without_images_is_named_with_its_option(tmp_path, recursive):
    with pytest.raises(UserError, match="--hr .*absent: No such file or directory"):
        list_images(tmp_path / "absent", "--hr", recursive)
    with pytest.raises(UserError, match=f"--hr {tmp_path}: no images in it"):
        list_images(tmp_path, "--hr", recursive)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_shape_of_a_png_is_in_its_first_bytes(bgr, channels):
    image = np.dstack([bgr, bgr])[:, :, :channels]
    content = cv2.imencode(".png", image)[1].tobytes()
    assert png_shape(content[:26]) == (60, 80, channels)
    with pytest.raises(ValueError, match="not a PNG"):
        png_shape(content[:25])


def test_encoding_loses_nothing(bgr):
    decoded = cv2.imdecode(np.frombuffer(encode_png(bgr), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, bgr)


@pytest.mark.skipif(os.name != "posix", reason="a program that is a script")
def test_only_the_listed_formats_are_opened_whatever_the_name(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    # Pillow starts Ghostscript for such a file, if it may.
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/it-ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    with contextlib.suppress(OSError), Image.open(path) as picture:
        picture.load()
    assert (tmp_path / "it-ran").exists()
    (tmp_path / "it-ran").unlink()

    with pytest.raises(UserError, match="photo.png: not an image"):
        read_image(path)
    assert read_header(path) is None
    assert not (tmp_path / "it-ran").exists()


def test_a_pipe_called_like_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(UserError, match="is not a regular file"):
        read_image(tmp_path / "photo.png")


def test_a_file_of_terabytes_is_not_read_into_memory(tmp_path):
    with open(tmp_path / "photo.bmp", "wb") as file:
        file.write(b"BM")
        file.truncate(2**41)  # A hole: it takes no room on the disk.
    with pytest.raises(UserError, match="2,199,023,255,552 bytes, more than an image"):
        read_image(tmp_path / "photo.bmp")


@pytest.mark.filterwarnings("error")
def test_damaged_metadata_is_passed_over_without_a_word(tmp_path, bgr, capfd):
    exif = Image.Exif()
    exif[0x010F] = "somebody"
    content = exif.tobytes()
    # Cut within the table, and a text that lies beyond the end.
    for number, damage in enumerate([content[:20], content[:27] + b"\xff" + content[28:]]):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(bgr).save(path, exif=damage, quality=100)
        assert read_header(path) == (*bgr.shape[:2], 1)
        assert read_image(path)[0].shape == bgr.shape
    assert capfd.readouterr() == ("", "")
