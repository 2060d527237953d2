"""TIFF of the kinds that libvips alone reads as something else: right, or refused by their kind."""

from pathlib import Path

import numpy as np
import pytest

from esc_arch.errors import UserError
from esc_arch.inference.picture_files import open_picture, read_picture

tifffile = pytest.importorskip("tifffile")

RGB = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]
TILE = (16, 32)


def write(path: Path, pixels: np.ndarray, *, separate: bool = False, **options) -> Path:
    """Write the channels together or each by itself."""
    if pixels.ndim == 3 and pixels.shape[2] > 1:
        options["planarconfig"] = "separate" if separate else "contig"
        pixels = np.moveaxis(pixels, 2, 0) if separate else pixels
    options = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"} | options
    tifffile.imwrite(path, pixels, metadata=None, **options)
    return path


def change(path: Path, **tags: int | tuple[int, ...]) -> Path:
    """Let a file say something else of itself."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)
    return path


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("number, name", [(50000, "Zstandard"), (34925, "LZMA"), (34712, "JPEG 2")])
def test_compressions_that_are_not_built_in_are_named(number, name, tile, separate, tmp_path):
    options = {"tile": tile, "compression": "zlib", "separate": separate}
    path = change(write(tmp_path / "a.tif", RGB, **options), Compression=number)
    with pytest.raises(UserError, match=f"a.tif: compressed by {name}"):
        read_picture(path)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("big", [False, True])
def test_tiles_that_are_cut_anywhere_are_refused(big, compression, separate, tmp_path):
    options = {"tile": TILE, "compression": compression, "separate": separate, "bigtiff": big}
    content = write(tmp_path / "a.tif", RGB, **options).read_bytes()
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, RGB)
    for twentieth in range(20):
        (tmp_path / "b.tif").write_bytes(content[: len(content) * twentieth // 20])
        with pytest.raises(UserError, match="b.tif"):
            read_picture(tmp_path / "b.tif")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("place", [0, 0xF0000000, 1 << 61, (1 << 63) - 1])
def test_parts_that_stand_nowhere_are_no_made_up_ones(place, tile, separate, tmp_path, capfd):
    options = {"tile": tile, "separate": separate, "bigtiff": place >= 1 << 32}
    path = write(tmp_path / "a.tif", RGB, rowsperstrip=16, **options)
    with tifffile.TiffFile(path) as file:
        name = "TileOffsets" if tile else "StripOffsets"
        numbers = list(file.pages[0].tags[name].value)
    numbers[1] = place
    change(path, **{name: tuple(numbers)})
    with pytest.raises(UserError, match="a.tif: damaged"):
        read_picture(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("rows", [5, 37])
def test_a_damaged_tile_is_no_black_one(rows, separate, tmp_path):
    path = write(tmp_path / "a.tif", RGB, tile=TILE, compression="zlib", separate=separate)
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    content = bytearray(path.read_bytes())
    content[last : last + 20] = bytes(20)
    path.write_bytes(content)
    part = open_picture(path).open_rows()
    with pytest.raises(UserError, match="a.tif: damaged"):
        for start in range(0, 37, rows):
            part(min(rows, 37 - start))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_floats_of_every_layout(kind, order, tile, separate, tmp_path):
    values = (RGB / 255).astype(kind)
    path = write(tmp_path / "a.tif", values, tile=tile, separate=separate, byteorder=order)
    expected = (values.astype(np.float32) * 65535).round().astype(int)
    assert np.abs(read_picture(path).pixels - expected).max() <= 1


@pytest.mark.parametrize("tile", [None, TILE])
def test_floats_with_white_as_zero_are_no_negative(tile, tmp_path):
    values = 1 - GREY.astype(np.float32) / 255
    path = write(tmp_path / "a.tif", values, photometric="miniswhite", tile=tile)
    found = read_picture(path).pixels[:, :, 0]
    assert np.abs(found.astype(int) - GREY.astype(int) * 257).max() <= 1


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("deep", [False, True])
def test_white_as_zero_beside_alpha_is_no_negative(deep, tile, separate, tmp_path):
    pixels = RGB[:, :, :2].astype(np.uint16) * 257 if deep else RGB[:, :, :2]
    stored = pixels.copy()
    stored[:, :, 0] = (65535 if deep else 255) - pixels[:, :, 0]
    options = {"photometric": "miniswhite", "extrasamples": ["unassalpha"], "tile": tile}
    path = write(tmp_path / "a.tif", stored, separate=separate, **options)
    assert np.array_equal(read_picture(path).pixels, pixels)


@pytest.mark.parametrize("orientation", [0, 9, 300])
@pytest.mark.parametrize("tile", [None, TILE])
def test_orientations_that_there_are_not_do_not_decide(orientation, tile, tmp_path, capfd):
    tags = [(274, "H", 1, orientation, True)]
    path = write(tmp_path / "a.tif", RGB, tile=tile, extratags=tags)
    assert np.array_equal(read_picture(path).pixels, RGB)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("separate", [False, True])
def test_tiles_stand_upright(orientation, separate, tmp_path):
    turned = {2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1)}
    turned |= {6: turned[5][:, ::-1], 7: turned[5][::-1, ::-1], 8: turned[5][::-1]}
    tags = [(274, "H", 1, orientation, True)]
    path = write(tmp_path / "a.tif", RGB, tile=TILE, separate=separate, extratags=tags)
    assert np.array_equal(read_picture(path).pixels, turned.get(orientation, RGB))


REFUSED = {
    "12 bits": (GREY.astype(np.uint16), {}, {"BitsPerSample": 12}, "12 bits a value; save it as"),
    "mixed bits": (RGB, {}, {"BitsPerSample": (5, 6, 5)}, "5, 6, 5 bits"),
    "RGB of 4 bits": (RGB, {}, {"BitsPerSample": (4, 4, 4)}, "3 channels of 4 bits"),
    "64-bit integers": (GREY.astype(np.uint64), {}, {}, "64-bit unsigned numbers; save it as"),
    "64-bit floats": (GREY / 255, {}, {}, "64-bit floats; save it as"),
    "complex": (GREY.astype(np.complex64), {}, {}, "complex numbers; save it as"),
    "CMYK of floats": (
        np.zeros((8, 9, 4), np.float32),
        {"photometric": "separated"},
        {},
        "floats that are neither grey nor RGB",
    ),
    "ITU Lab": (RGB, {}, {"PhotometricInterpretation": 10}, "ITU L.a.b."),
    "YCbCr without JPEG": (RGB, {}, {"PhotometricInterpretation": 6}, "YCbCr"),
    "a sensor's": (GREY, {"photometric": "cfa"}, {}, "a camera's raw data"),
    "DNG": (GREY, {"extratags": [(50706, "B", 4, (1, 4, 0, 0), True)]}, {}, "a camera's raw data"),
    "RGB of one channel": (GREY, {}, {"PhotometricInterpretation": 2}, "1 of its 3 channels"),
    "CMYK of three": (RGB, {}, {"PhotometricInterpretation": 5}, "3 of its 4 channels"),
    "colours of no kind": (RGB, {}, {"PhotometricInterpretation": 99}, "colours are of kind 99"),
    "a mask": (GREY, {}, {"PhotometricInterpretation": 4}, "its colours are a mask"),
    "no palette": (GREY, {}, {"PhotometricInterpretation": 3}, "its palette is missing"),
    "half a palette": (
        GREY,
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        {"ColorMap": (0,) * 384},
        "its palette is missing, or some of it",
    ),
    "other inks": (
        np.zeros((8, 9, 4), np.uint8),
        {"photometric": "separated", "extratags": [(332, "H", 1, 2, True)]},
        {},
        "inks other than CMYK",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("tile", [None, TILE])
def test_what_cannot_be_read_is_refused_by_its_kind(kind, tile, tmp_path):
    pixels, options, tags, told = REFUSED[kind]
    path = change(write(tmp_path / "a.tif", pixels, tile=tile, **options), **tags)
    with pytest.raises(UserError, match=told) as error:
        read_picture(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


def test_a_preview_of_what_stands_below_it_is_not_taken_for_the_picture(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY[::4, ::4], subifds=1, subfiletype=1, photometric="minisblack")
        file.write(GREY, photometric="minisblack")
    with pytest.raises(UserError, match="a.tif: a camera's raw data"):
        read_picture(path)


def test_a_page_without_fields_is_damaged(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0\0\0\x08\0\0\0")
    with pytest.raises(UserError, match="a.tif: damaged"):
        read_picture(path)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("tile", [None, TILE])
def test_lab_with_a_sign_is_that_without(kind, tile, tmp_path):
    stored = RGB.astype(np.int16) * (1 if kind == np.int8 else 256)
    whole = stored.astype(np.uint8 if kind == np.int8 else np.uint16)
    write(tmp_path / "a.tif", whole, photometric="cielab", tile=tile)
    write(tmp_path / "b.tif", whole.view(kind), photometric="cielab", tile=tile)
    found = [read_picture(tmp_path / name).pixels for name in ("a.tif", "b.tif")]
    assert np.array_equal(*found) and np.ptp(found[0], 2).max() > 0


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab_of_16_bits_is_that_of_8(photometric, separate, tmp_path):
    lab = np.dstack([RGB[:, :, 0] / 2.55, RGB[:, :, 1:] // 3 - 40.0]).round()
    found = {}
    for bits, kind in ((8, np.uint8), (16, np.uint16)):
        full, zero = 2**bits, 128 if photometric == "icclab" else 0
        white = {8: 255, 16: 65280 if photometric == "icclab" else 65535}[bits]
        stored = (lab + [0, zero, zero]) * [white / 100, full / 256, full / 256]
        stored = (stored.round().astype(int) % full).astype(kind)
        path = tmp_path / f"{bits}.tif"
        write(path, stored, photometric=photometric, separate=separate)
        source = open_picture(path)
        assert source.dtype == kind and "LAB, converted to sRGB" in source.notes[0]
        found[bits] = source.read().pixels / (257 if bits == 16 else 1)
    assert np.abs(found[8] - found[16]).max() <= 2.5
    assert found[8].std() > 20
