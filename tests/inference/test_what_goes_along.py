"""What a picture says beside its pixels: kept where it fits, and never a reason to refuse it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from esc_arch.cli.main import main
from esc_arch.inference.encoding import Encoding, encode
from esc_arch.inference.metadata import Metadata
from esc_arch.inference.picture_files import Picture, open_picture, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = ["png", "jpeg", "webp", "tiff"]


def written(metadata: Metadata, form: str, path: Path) -> Metadata:
    path.write_bytes(encode(Picture(RGB, metadata), Encoding(form)))
    return read_picture(path).metadata


@pytest.mark.parametrize("form", FORMATS)
def test_profiles_of_megabytes_stay(form, tmp_path):
    # As profiles with large tables are; libvips itself refuses to write them into PNG.
    profile = SRGB + np.random.default_rng(0).bytes(3_000_000)
    assert written(Metadata(profile), form, tmp_path / "a").icc_profile == profile


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_empty_is_left_out(form, tmp_path):
    found = written(Metadata(icc_profile=b"", exif=b"", xmp=b""), form, tmp_path / "a")
    assert not found.icc_profile and not found.xmp


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("grey", [False, True])
def test_profiles_of_other_colours_are_left_out(form, grey, tmp_path):
    image = Image.fromarray(RGB[..., 0] if grey else RGB)
    for space in (b"RGB ", b"GRAY", b"CMYK", b"Lab "):
        image.save(tmp_path / "a", form, icc_profile=bytes(16) + space + bytes(108))
        picture = read_picture(tmp_path / "a")
        fits = space == (b"GRAY" if picture.pixels.shape[2] == 1 else b"RGB ")
        assert (picture.metadata.icc_profile is not None) == fits


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
@pytest.mark.parametrize("profile", [None, SRGB, b"junk", bytes(16) + b"CMYK" + bytes(200)])
def test_cmyk_is_not_said_to_be_converted_by_a_profile_that_is_none_of_cmyk(
    form, profile, tmp_path
):
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a", form, icc_profile=profile)
    usual = f"{tmp_path}/a: CMYK, converted to sRGB by a usual profile, since it has none"
    assert open_picture(tmp_path / "a").notes == [usual]


def test_what_another_format_does_not_keep_is_told(folder, model, capsys):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    gamma = b"\0\1\x86\xa0"
    content = encode(Picture(RGB, Metadata(None, {b"gAMA": gamma}, exif.tobytes())))
    (folder / "a.png").write_bytes(content)
    command = ["upscale", "a.png", "--model", str(model), "--device", "cpu", "-o", "out"]
    assert main([*command, "--format", "tiff"]) == 0
    told = [line.split("a.png: ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "its gAMA say which colours it means; only PNG keeps them",
        "its EXIF is left out; PNG, JPEG and WebP keep it",
    ]
    assert main([*command, "--format", "png"]) == 0
    assert capsys.readouterr().err == ""
