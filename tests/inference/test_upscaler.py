"""`basicsr upscale`: every kind of picture in, the same kind out, twice as large."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils import img2tensor, tensor2img
from PIL import Image, ImageOps

import esc_arch  # noqa: F401
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference.encoding import encode
from esc_arch.inference.metadata import Metadata
from esc_arch.inference.picture_files import Picture, read_picture
from esc_arch.inference.upscaler import Upscaler
from esc_arch.zoo import catalogue as checkpoints
from esc_arch.zoo.loading import load_network

ICC_RGB = bytes(16) + b"RGB " + bytes(108)


def with_alpha(crop: np.ndarray, depth: type = np.uint8) -> np.ndarray:
    ramp = np.linspace(0, np.iinfo(depth).max, crop.shape[1]).astype(depth)
    return np.dstack([crop, np.tile(ramp, (crop.shape[0], 1))])


def upscale(*arguments: object) -> int:
    return main(["upscale", "--device", "cpu", *map(str, arguments)])


def test_the_result_is_that_of_the_evaluation(folder, model, crop):
    Image.fromarray(crop).save("cat.png")
    assert upscale("cat.png", "-o", "out", "--model", model) == 0

    network, _ = load_network(model)
    lq = img2tensor(crop.astype(np.float32) / 255, bgr2rgb=False)[None]
    padded = torch.nn.functional.pad(lq, (0, -30 % 8, 0, -20 % 8), mode="reflect")
    expected = tensor2img(network(padded)[..., :40, :60], rgb2bgr=False)
    assert np.array_equal(np.asarray(Image.open("out/cat.png")), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp"])
def test_every_format_is_read(suffix, folder, model, crop):
    Image.fromarray(crop).save(f"cat.{suffix}")
    assert upscale("cat." + suffix, "-o", "out", "--model", model) == 0
    result = Image.open("out/cat.png")
    assert (result.mode, result.size) == ("RGB", (60, 40))
    nearest = crop.repeat(2, axis=0).repeat(2, axis=1).astype(float)
    assert np.abs(np.asarray(result) - nearest).mean() < 30


def test_the_suffix_of_a_picture_does_not_matter(folder, crop):
    Image.fromarray(crop).save("cat.jpg", "PNG")
    assert np.array_equal(read_picture(Path("cat.jpg")).pixels, crop)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
def test_16_bits_keep_their_depth_and_their_kind(kind, suffix, folder, model, crop, upscaler):
    deep = crop.astype(np.uint16) * 257 - crop[::-1]
    deep = {"grey": deep[..., :1], "rgb": deep, "rgba": with_alpha(deep, np.uint16)}[kind]
    cv2.imwrite(
        f"cat.{suffix}", deep[:, :, [2, 1, 0, 3][: deep.shape[2]]] if kind != "grey" else deep
    )
    assert np.array_equal(read_picture(Path(f"cat.{suffix}")).pixels, deep)
    assert upscale(f"cat.{suffix}", "-o", "out", "--model", model) == 0
    result = read_picture(Path("out/cat.png")).pixels
    assert (result.dtype, result.shape) == (np.uint16, (40, 60, deep.shape[2]))
    assert np.array_equal(result, upscaler.upscale_picture(Picture(deep)).pixels)
    # Values between those of 8 bits are used.
    assert len(np.unique(result % 257)) > 100


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_each_mode_come_out_as_the_nearest_plain_one(mode, folder, model, crop):
    image = Image.fromarray(with_alpha(crop)).convert(mode if mode != "CMYK" else "RGB")
    image.convert(mode).save("cat.tif" if mode == "CMYK" else "cat.png")
    assert upscale("cat.tif" if mode == "CMYK" else "cat.png", "-o", "out", "--model", model) == 0
    expected = {"1": "L", "P": "RGBA" if image.has_transparency_data else "RGB", "CMYK": "RGB"}
    assert Image.open("out/cat.png").mode == expected.get(mode, mode)


def test_grey_is_the_mean_of_the_networks_three_channels(upscaler, crop):
    grey = crop[..., :1]
    rgb = upscaler.upscale_tensor(
        torch.from_numpy(grey / 255).float().permute(2, 0, 1).expand(1, 3, -1, -1)
    )
    expected = (rgb.mean(1)[0] * 255).round().byte().numpy()
    assert np.array_equal(upscaler.upscale_picture(Picture(grey)).pixels[..., 0], expected)


def test_alpha_goes_through_the_network_and_leaves_the_colours_alone(upscaler, crop):
    rgba = with_alpha(crop)
    rgba[..., 3] = np.maximum(rgba[..., 3], 1)
    result = upscaler.upscale_picture(Picture(rgba)).pixels
    assert np.array_equal(result[..., :3], upscaler.upscale_picture(Picture(crop)).pixels)
    alpha = upscaler.upscale_picture(Picture(rgba[..., 3:])).pixels[..., 0].astype(int)
    # Within the nine values around.
    around = np.pad(rgba[..., 3], 1, mode="edge")
    nine = [around[i : i + 20, j : j + 30] for i in range(3) for j in range(3)]
    smallest, largest = (np.kron(f(nine, axis=0), np.ones((2, 2), int)) for f in (np.min, np.max))
    assert np.array_equal(result[..., 3], alpha.clip(smallest, largest))


def test_an_alpha_that_is_the_same_everywhere_stays_so(upscaler, crop):
    for value in (0, 77, 255):
        rgba = np.dstack([crop, np.full(crop.shape[:2], value, np.uint8)])
        assert (upscaler.upscale_picture(Picture(rgba)).pixels[..., 3] == value).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "16 bit PNG", "TIFF"])
def test_pictures_are_upright(orientation, kind, folder, photographs):
    crop = photographs["coffee"][100:140, 100:160]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = Path("cup")
    # What Pillow itself makes of it.
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, kind.split()[-1], exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    if kind == "16 bit PNG":
        done, content = cv2.imencode(".png", crop[..., ::-1].astype(np.uint16) * 257)
        chunk = exif.tobytes().removeprefix(b"Exif\0\0")
        body = b"eXIf" + chunk
        chunk = struct.pack(">I", len(chunk)) + body + struct.pack(">I", zlib.crc32(body))
        content = content.tobytes()
        path.write_bytes(content[:33] + chunk + content[33:])
        assert np.array_equal(read_picture(path).pixels, expected.astype(np.uint16) * 257)
    else:
        path.write_bytes(buffer.getvalue())
        assert np.array_equal(read_picture(path).pixels, expected)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_the_colour_profile_is_kept(depth, folder, model, crop):
    Image.fromarray(crop).save("cat.png", icc_profile=ICC_RGB)
    if depth == np.uint16:
        picture = Picture(crop.astype(np.uint16) * 257, Metadata(ICC_RGB))
        Path("cat.png").write_bytes(encode(picture))
    assert upscale("cat.png", "-o", "out", "--model", model) == 0
    result = read_picture(Path("out/cat.png"))
    assert result.metadata.icc_profile == ICC_RGB and result.pixels.dtype == depth


def test_the_profile_of_another_kind_of_picture_is_dropped(folder, crop):
    Image.fromarray(crop).convert("L").save("cat.png", icc_profile=ICC_RGB)
    assert read_picture(Path("cat.png")).metadata.icc_profile is None


def test_of_a_phones_picture_with_others_attached_the_first_is_taken(folder, crop):
    others = [Image.fromarray(crop[::-1])]
    Image.fromarray(crop).save("cat.jpg", "MPO", save_all=True, append_images=others, quality=95)
    assert np.abs(read_picture(Path("cat.jpg")).pixels.astype(int) - crop).mean() < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2), (8, 8)])
def test_pictures_of_any_size_are_upscaled(size, upscaler, crop):
    pixels = np.resize(crop, (*size, 3))
    assert upscaler.upscale_picture(Picture(pixels)).pixels.shape == (2 * size[0], 2 * size[1], 3)


def test_a_bad_picture_is_one_line_and_the_others_go_on(folder, model, crop, capsys):
    Path("in").mkdir()
    Image.fromarray(crop).save("in/a.png")
    Image.fromarray(crop).save("in/z.jpg")
    content = Path("in/a.png").read_bytes()
    Path("in/b.png").write_bytes(content[: len(content) // 2])
    Path("in/c.png").write_text("not a picture")
    cv2.imwrite("in/d.tif", crop.astype(np.float32))
    Path("in/e.tif").write_bytes(content)
    Path("in/e.tif").write_bytes(b"II*\0" + content)
    Image.fromarray(crop[..., 0].astype(np.int32)).save("in/f.tif")
    Path("in/g.jpg").touch()
    assert upscale("in", "none.png", "-o", "out", "--model", model) == 1
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert [line.split(": ")[2] for line in errors] == [
        "none.png",
        *(f"in/{name}" for name in ("b.png", "c.png", "d.tif", "e.tif", "f.tif", "g.jpg")),
    ]
    assert sorted(path.name for path in Path("out/in").iterdir()) == ["a.png", "z.png"]
    assert captured.out.splitlines()[-1] == "2 upscaled, 0 kept, 7 failed"


def test_tiles_change_little_and_whole_windows_not_at_all(model, upscaler, photographs):
    network, options = load_network(model)
    pixels = photographs["rocket"][100:164, 300:380]
    lq = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None]
    whole = upscaler.upscale(lq)
    tiled = Upscaler(network, options, tile=24, tile_pad=16).upscale(lq)
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().max() < 0.02
    one_tile = Upscaler(network, options, tile=100, tile_pad=0).upscale(lq)
    torch.testing.assert_close(one_tile, whole)


def test_the_command_takes_tiles_and_half_precision(folder, model, crop, capsys):
    from esc_arch.kernels.cpu import library

    Image.fromarray(crop).save("a.png")
    assert upscale("a.png", "-o", "whole", "--model", model) == 0
    more = ("--tile", 16, "--tile-pad", 8, "--dtype", "bfloat16")
    assert "bfloat16" not in capsys.readouterr().err
    assert upscale("a.png", "-o", "tiled", "--model", model, *more) == 0
    brings_nothing = library.is_built() and not library.has_amx()
    said = "basicsr: bfloat16 is no faster than float32"
    assert capsys.readouterr().err.count(said) == brings_nothing
    whole, tiled = (
        np.asarray(Image.open(f"{name}/a.png")).astype(int) for name in ("whole", "tiled")
    )
    assert 0 < np.abs(whole - tiled).max() < 16


def test_without_weights_the_line_says_how_to_get_some(folder, monkeypatch, crop, capsys):
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", folder / "none")
    Image.fromarray(crop).save("a.png")
    assert upscale("a.png") == 2
    assert "basicsr checkpoints download ESC_light_X2" in capsys.readouterr().err
    assert upscale("a.png", "--model", "ESC_light_X2") == 2
    assert "basicsr checkpoints download ESC_light_X2" in capsys.readouterr().err


def test_shipped_weights_are_used_where_no_model_is_named(folder, monkeypatch, model, crop):
    from safetensors.torch import save_file

    params = torch.load(model, weights_only=True)["params"]
    Path("weights").mkdir()
    save_file(params, "weights/ESC_light_x2_BSD.safetensors")
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", folder / "weights")
    Image.fromarray(crop).save("a.png")
    assert upscale("a.png") == 0
    assert Image.open("upscaled/a.png").size == (60, 40)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--tile", "-1"], "--tile -1"),
        (["--tile-pad", "-8"], "--tile-pad -8"),
        (["--device", "nonsense"], "--device nonsense: cannot be used here"),
        (["--model", "none.pth"], "none.pth: no such checkpoint"),
    ],
)
def test_wrong_options_are_one_line(arguments, problem, folder, model, crop, capsys):
    Image.fromarray(crop).save("a.png")
    assert main(["upscale", "a.png", "--model", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not Path("upscaled").exists()


def test_a_missing_picture_is_an_error_even_where_its_result_exists(tmp_path, model, capsys):
    result = tmp_path / "result.png"
    result.write_bytes(b"an earlier result")
    absent = str(tmp_path / "absent.png")
    assert main(["upscale", absent, "-o", str(result), "--model", str(model)]) == 1
    assert "absent.png: No such file or directory" in capsys.readouterr().err
    assert result.read_bytes() == b"an earlier result"


@pytest.mark.parametrize("count", [1, 3])
def test_the_network_is_given_channels_first_as_in_evaluation(count, upscaler, crop):
    # In another layout convolutions add in another order, and results differ by a level.
    given = []
    handle = upscaler.network.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        upscaler.upscale_pictures([Picture(crop)] * count)
    finally:
        handle.remove()
    assert given and all(lq.is_contiguous() for lq in given)


@pytest.mark.parametrize("largest", [255.0, float("nan"), -0.5])
def test_tensors_beyond_0_to_1_are_refused_as_arrays_are(largest, upscaler):
    pixels = np.zeros((6, 8, 3), np.float32)
    pixels[2, 3, 1] = largest
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        with pytest.raises(UserError, match="floats must lie between 0 and 1"):
            upscaler.upscale(image)


def test_an_upscaler_says_what_it_is(upscaler):
    assert repr(upscaler) == "Upscaler(ESC x2, float32, cpu)"


def test_where_there_is_nothing_to_do_no_network_is_loaded(folder, capsys):
    Path("damaged.pth").write_text("no checkpoint")
    assert main(["upscale", "absent.png", "--model", "damaged.pth"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "basicsr: error: absent.png: No such file or directory\n"
    assert captured.out == "0 upscaled, 0 kept, 1 failed\n"
