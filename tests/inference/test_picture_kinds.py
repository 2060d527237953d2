"""Every layout of TIFF and PNG against the array it was made from."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.inference.encoding import Encoding, encode
from esc_arch.inference.picture_files import Picture, open_picture, read_picture
from esc_arch.inference.png_chunks import chunk, read_chunks

tifffile = pytest.importorskip("tifffile")

CHANNELS = {"grey": 1, "grey_alpha": 2, "rgb": 3, "rgba": 4}
DEPTHS = {8: np.uint8, 16: np.uint16}


def make(kind: str, depth: int, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    """Pixels without pattern, alpha among them, so that any mistake shows."""
    shape = (*size, CHANNELS[kind])
    values = np.random.default_rng(depth + CHANNELS[kind]).integers(0, 2**depth, shape)
    return values.astype(DEPTHS[depth])


def check(path: Path, expected: np.ndarray) -> None:
    """The whole and the rows one after another are the array."""
    pixels = read_picture(path).pixels
    assert pixels.dtype == expected.dtype and pixels.shape == expected.shape
    assert np.array_equal(pixels, expected)
    rows, height = open_picture(path).open_rows(), len(expected)
    parts = [rows(min(10, height - start)) for start in range(0, height, 10)]
    assert len(parts) > 1 and np.array_equal(np.concatenate(parts), expected)


# Written by tifffile: 4 kinds x 2 depths x 2 byte orders x 2 plane layouts x strips or tiles x
# 2 compressions.
@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_every_layout(kind, depth, order, planes, tile, compression, tmp_path):
    pixels = make(kind, depth)
    alpha = kind in ("grey_alpha", "rgba")
    stored = np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels
    options = {"extrasamples": ["unassalpha"]} if alpha else {}
    if kind == "grey":
        stored = pixels[:, :, 0]
    else:
        options["planarconfig"] = planes
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored.astype(stored.dtype.newbyteorder(order)),
        byteorder=order,
        photometric="rgb" if CHANNELS[kind] > 2 else "minisblack",
        tile=tile,
        rowsperstrip=None if tile else 7,
        compression=compression,
        **options,
    )
    check(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_tiff_of_pillow(kind, compression, tmp_path):
    pixels = make(kind, 8)
    image = Image.fromarray(pixels[:, :, 0] if kind == "grey" else pixels)
    image.save(tmp_path / "a.tif", compression=compression)
    check(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero_is_no_negative(depth, order, tile, compression, tmp_path):
    pixels = make("grey", depth)
    inverted = (2**depth - 1 - pixels[:, :, 0]).astype(pixels.dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        inverted.astype(inverted.dtype.newbyteorder(order)),
        byteorder=order,
        photometric="miniswhite",
        tile=tile,
        compression=compression,
    )
    check(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_premultiplied_colours_are_divided_by_alpha(depth, planes, tmp_path):
    pixels = make("rgba", depth)
    pixels[..., 3] = np.maximum(pixels[..., 3], 2**depth // 2)
    alpha = pixels[..., 3:].astype(float) / (2**depth - 1)
    stored = pixels.copy()
    stored[..., :3] = (pixels[..., :3] * alpha).round()
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.moveaxis(stored, 2, 0) if planes == "separate" else stored,
        photometric="rgb",
        planarconfig=planes,
        extrasamples=["assocalpha"],
    )
    found = read_picture(tmp_path / "a.tif").pixels
    assert found.dtype == pixels.dtype
    assert np.abs(found.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_extra_channel_of_unknown_meaning_is_alpha_in_both_depths(depth, tmp_path):
    pixels = make("rgba", depth)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    check(tmp_path / "a.tif", pixels)


def test_cmyk_is_converted_alike_in_both_depths_and_that_is_said(tmp_path):
    photograph = np.asarray(Image.linear_gradient("L").resize((40, 30)).convert("RGB"))
    cmyk = np.asarray(Image.fromarray(photograph).convert("CMYK"))
    tifffile.imwrite(tmp_path / "8.tif", cmyk, photometric="separated")
    tifffile.imwrite(tmp_path / "16.tif", cmyk.astype(np.uint16) * 257, photometric="separated")
    found = {}
    for depth in (8, 16):
        source = open_picture(tmp_path / f"{depth}.tif")
        assert "CMYK, converted to sRGB" in source.notes[0] and len(source.notes) == 1
        found[depth] = source.read().pixels
        assert found[depth].shape == (30, 40, 3)
    assert np.abs(found[16] / 257 - found[8]).max() <= 1.5
    grey = found[8].mean(2)
    assert np.corrcoef(grey.ravel(), photograph[..., 0].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_lab_of_8_bits_is_converted_and_that_is_said(photometric, planes, order, tmp_path):
    color = pytest.importorskip("skimage.color")
    # Within what sRGB shows, far from its borders, where rounding of L*a*b* costs little.
    rgb = np.random.default_rng(0).integers(60, 200, (20, 30, 3)).astype(np.uint8)
    lab = color.rgb2lab(rgb, illuminant="D65").round()
    stored = lab.copy()
    stored[:, :, 0] = (lab[:, :, 0] * 255 / 100).round()
    stored[:, :, 1:] += 128 if photometric == "icclab" else 0
    stored = stored.astype(np.int16).astype(np.uint8)
    stored = np.moveaxis(stored, 2, 0) if planes == "separate" else stored
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric=photometric, planarconfig=planes, byteorder=order, metadata=None
    )
    source = open_picture(path)
    pixels = source.read().pixels
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - rgb).max() <= 4
    assert source.notes == [f"{path}: LAB, converted to sRGB by its definition"]


@pytest.mark.parametrize(
    "dtype, told",
    [
        (np.int8, "8-bit signed"),
        (np.int16, "16-bit signed"),
        (np.int32, "32-bit signed"),
        (np.uint32, "32-bit unsigned"),
    ],
)
def test_other_integers_are_refused_by_their_kind(dtype, told, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 9), dtype), photometric="minisblack")
    with pytest.raises(UserError, match=f"{told} numbers; save it as"):
        read_picture(tmp_path / "a.tif")


def test_floats_from_0_to_1_are_16_bits_and_others_refused(tmp_path):
    values = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    check(tmp_path / "a.tif", (values * np.float32(65535)).round().astype(np.uint16))
    assert "floats from 0 to 1" in open_picture(tmp_path / "a.tif").notes[0]
    for wrong in (values * 2, values - 0.5, np.full_like(values, np.nan)):
        tifffile.imwrite(tmp_path / "b.tif", wrong, photometric="rgb")
        with pytest.raises(UserError, match="b.tif: its values are floats from"):
            read_picture(tmp_path / "b.tif")


def test_thumbnails_are_no_pages_and_real_pages_are_told(tmp_path):
    pixels = make("rgb", 8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(pixels, photometric="rgb")
    source = open_picture(tmp_path / "a.tif")
    assert source.notes == [] and np.array_equal(source.read().pixels, pixels)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for page in (pixels, pixels[::-1]):
            file.write(page, photometric="rgb")
    source = open_picture(tmp_path / "b.tif")
    assert len(source.notes) == 1 and "page 1 of 2 is upscaled; --page N" in source.notes[0]
    assert np.array_equal(source.read().pixels, pixels)
    assert np.array_equal(read_picture(tmp_path / "b.tif", 2).pixels, pixels[::-1])
    with pytest.raises(UserError, match="--page 3: it has 2"):
        read_picture(tmp_path / "b.tif", 3)


def png(kind: int, depth: int, packed: np.ndarray, width: int, *extra: bytes) -> bytes:
    """A PNG with rows as they are, without filter."""
    header = struct.pack(">IIBBBBB", width, len(packed), depth, kind, 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_png_of_every_kind(kind, depth, tmp_path):
    pixels = make(kind, depth)
    colour = {"grey": 0, "grey_alpha": 4, "rgb": 2, "rgba": 6}[kind]
    rows = pixels.astype(f">u{depth // 8}").reshape(len(pixels), -1)
    (tmp_path / "a.png").write_bytes(png(colour, depth, rows, pixels.shape[1]))
    check(tmp_path / "a.png", pixels)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_of_few_bits(depth, palette, transparent, tmp_path):
    values = np.random.default_rng(depth).integers(0, 2**depth, (12, 29)).astype(np.uint8)
    bits = np.unpackbits(values[:, :, None], axis=2)[:, :, 8 - depth :].reshape(12, -1)
    colours = np.random.default_rng(9).integers(0, 256, (2**depth, 3)).astype(np.uint8)
    extra = [(b"PLTE", colours.tobytes())] if palette else []
    if transparent:
        extra.append((b"tRNS", b"\0" if palette else b"\0\0"))
    (tmp_path / "a.png").write_bytes(
        png(3 if palette else 0, depth, np.packbits(bits, axis=1), 29, *extra)
    )
    expected = colours[values] if palette else (values * (255 // (2**depth - 1)))[:, :, None]
    if transparent:
        alpha = np.where(values == 0, 0, 255).astype(np.uint8)
        expected = np.dstack([expected, alpha])
    check(tmp_path / "a.png", expected)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_one_colour_that_is_transparent_becomes_alpha(kind, depth, tmp_path):
    pixels = make(kind, depth)
    key = pixels[3, 4].copy()
    pixels[10:20] = key
    rows = pixels.astype(f">u{depth // 8}").reshape(len(pixels), -1)
    chunk = (b"tRNS", key.astype(">u2").tobytes())
    colour = 0 if kind == "grey" else 2
    (tmp_path / "a.png").write_bytes(png(colour, depth, rows, pixels.shape[1], chunk))
    alpha = np.where((pixels == key).all(2), 0, 2**depth - 1).astype(pixels.dtype)
    check(tmp_path / "a.png", np.dstack([pixels, alpha]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(list(CHANNELS)),
    depth=st.sampled_from(list(DEPTHS)),
    form=st.sampled_from(["png", "tiff", "webp"]),
    parts=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_what_is_written_is_read_as_it_was(size, kind, depth, form, parts, seed, tmp_path):
    import io

    from esc_arch.inference.encoding import save_rows
    from esc_arch.inference.metadata import Metadata

    shape = (*size, CHANNELS[kind])
    pixels = np.random.default_rng(seed).integers(0, 2**depth, shape).astype(DEPTHS[depth])
    if form == "webp":
        # 8 bits, and RGB.
        pixels = pixels.astype(np.uint8)
        pixels = np.repeat(pixels[:, :, :1], 3, 2) if shape[2] in (1, 2) else pixels
        pixels[..., 3:] |= 1  # Below alpha 0, WebP may change colours.
    file = io.BytesIO()
    rows = [part for part in np.array_split(pixels, parts) if len(part)]
    save_rows(file, rows, pixels.shape, Metadata(), Encoding(form))
    (tmp_path / "a").write_bytes(file.getvalue())
    assert np.array_equal(read_picture(tmp_path / "a").pixels, pixels)
    assert encode(Picture(pixels), Encoding(form)) == file.getvalue() or parts > 1


def every_tenth(content: bytes) -> list[bytes]:
    return [content[: len(content) * tenth // 10] for tenth in range(10)]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "16 bit PNG"])
def test_pictures_cut_anywhere_are_refused_in_one_line(form, tmp_path):
    if form == "16 bit PNG":
        content = encode(Picture(make("rgb", 16)))
    else:
        Image.fromarray(make("rgb", 8)).save(tmp_path / "a", form)
        content = (tmp_path / "a").read_bytes()
    for part in every_tenth(content):
        (tmp_path / "a").write_bytes(part)
        with pytest.raises(UserError) as error:
            read_picture(tmp_path / "a")
        assert "\n" not in str(error.value) and str(error.value).startswith(f"{tmp_path / 'a'}: ")


@pytest.mark.parametrize("dpi", [(300, 300), (72, 150), None])
def test_the_resolution_of_a_png_stays_to_the_bit_and_none_is_made_up(dpi, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4)).save(path, **({"dpi": dpi} if dpi else {}))
    (tmp_path / "b.png").write_bytes(encode(read_picture(path)))
    chunks = []
    for name in ("a.png", "b.png"):
        with open(tmp_path / name, "rb") as file:
            chunks.append(read_chunks(file).get(b"pHYs"))
    assert chunks[0] == chunks[1] and (chunks[0] is not None) == (dpi is not None)


def test_a_ratio_of_sides_is_no_resolution(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4)).save(path, dpi=(300, 300))
    with open(path, "rb") as file:
        body = read_chunks(file)[b"pHYs"]
    ratio = struct.pack(">IIB", 2, 1, 0)
    path.write_bytes(path.read_bytes().replace(chunk(b"pHYs", body), chunk(b"pHYs", ratio)))
    assert read_picture(path).metadata.resolution is None


@pytest.mark.parametrize(
    "start, told",
    [
        (b"", "is empty"),
        (b"GIF89a", "is a GIF"),
        (b"\0\0\0\x18ftypheic", "is an HEIC"),
        (b"\0\0\0\x18ftypavif", "is an AVIF"),
        (b"\0\0\0\x18ftypisom", "is a film"),
        (b"\xff\x0a\0", "is a JPEG XL"),
        (b"<svg xmlns='x'/>", "is XML, such as SVG"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\r\n", "is a Git LFS pointer"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "is an AVIF"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0hevc", "is an HEIC"),
        (b"\x89PNG\n\x1a\n", "is a PNG that was damaged when it was sent as text"),
        (b"<!-- of a map --><svg/>", "is XML, such as SVG"),
        (b"Pf\n1 1\n-1.0\n", "is a netpbm picture"),
        (b"some text", "not a picture that can be read"),
    ],
)
def test_other_kinds_of_files_are_named_whatever_they_are_called(start, told, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(start + bytes(100) * bool(start))
    with pytest.raises(UserError, match=f"a.png: {told}"):
        read_picture(path)


def header(width: int = 5, height: int = 4, depth: int = 8, colour: int = 2) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


@pytest.mark.parametrize(
    "chunks, told",
    [
        ([(b"IHDR", header(width=0))], "its header says 0 x 4 pixels"),
        ([(b"IHDR", header(colour=5))], "its header says colours of kind 5 with 8 bits"),
        ([(b"IHDR", header(2**31 - 1, 2**31 - 1))], "2147483647 x 2147483647 pixels are more than"),
        ([(b"IHDR", header()), (b"XYZW", b"?")], "it has a part 'XYZW' that is not known"),
        ([(b"IHDR", header(colour=3))], "its palette is missing"),
        ([(b"IDAT", b"")], "its header is missing"),
        (None, "its header is missing, or the checksum is wrong"),
    ],
)
def test_what_is_wrong_in_the_header_of_a_png_is_told(chunks, told, tmp_path):
    path, rows = tmp_path / "a.png", (b"IDAT", zlib.compress(bytes(4 * 16)))
    content = b"".join(chunk(*each) for each in [*(chunks or [(b"IHDR", header())]), rows])
    if chunks is None:
        content = content[:24] + b"????" + content[25:]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=f"a.png: damaged, or not a picture: .*{told}"):
        read_picture(path)
