"""Alpha beside colours, rows of tiles beside whole pictures, and results that are not finite."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_network import TINY

import esc_arch
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference.encoding import encode
from esc_arch.inference.picture_files import Picture, open_picture, read_picture
from esc_arch.inference.transparency import fill_hidden
from esc_arch.inference.upscaler import Upscaler
from esc_arch.zoo.identify import build_on_meta


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network whose results look like its inputs."""
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    path = tmp_path_factory.mktemp("model") / "net.pth"
    torch.save({"params": params}, path)
    return path


@pytest.fixture(scope="module")
def upscaler(model: Path) -> Upscaler:
    return esc_arch.load(model, "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    channels=st.sampled_from([2, 4]),
    depth=st.sampled_from([8, 16]),
    seed=st.integers(0, 10**6),
    tiled=st.booleans(),
)
def test_what_is_wholly_empty_or_opaque_stays_so(size, channels, depth, seed, tiled, upscaler):
    largest = 2**depth - 1
    random = np.random.default_rng(seed)
    dtype = np.uint8 if depth == 8 else np.uint16
    pixels = random.integers(0, largest + 1, (*size, channels)).astype(dtype)
    # Large flat parts, hard edges between them.
    coarse = random.choice([0, largest], (-(-size[0] // 6), -(-size[1] // 6)))
    pixels[..., -1] = np.kron(coarse, np.ones((6, 6)))[: size[0], : size[1]]
    run = upscaler
    if tiled:
        run = Upscaler(upscaler.network, TINY, tile=8, tile_pad=8)
    result = run.upscale_picture(Picture(pixels)).pixels[..., -1]
    padded = np.pad(pixels[..., -1], 1, mode="edge")
    nine = [padded[i : i + size[0], j : j + size[1]] for i in range(3) for j in range(3)]
    for value in (0, largest):
        same = np.kron(np.all(np.equal(nine, value), axis=0), np.ones((2, 2))).astype(bool)
        assert (result[same] == value).all()


def test_hidden_colours_become_the_nearest_visible_ones():
    pixels = np.zeros((5, 9, 4), np.uint8)
    pixels[:, 2] = (10, 20, 30, 255)
    pixels[:, 7] = (200, 100, 50, 1)
    filled = fill_hidden(pixels)
    assert np.array_equal(filled[..., 3], pixels[..., 3])
    assert (filled[:, :4, :3] == (10, 20, 30)).all()
    assert (filled[:, 6:, :3] == (200, 100, 50)).all()
    for alpha in (0, 255):
        pixels[..., 3] = alpha
        assert np.array_equal(fill_hidden(pixels), pixels)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 0, 255)])
def test_colours_below_alpha_0_do_not_bleed(depth, background):
    yy, xx = np.mgrid[:48, :48]
    inside = (xx - 24) ** 2 + (yy - 24) ** 2 < 300
    pixels = np.full((48, 48, 4), 120, np.uint8)
    pixels[~inside, :3] = background
    pixels[..., 3] = np.where(inside, 255, 0)
    if depth == 16:
        pixels = pixels.astype(np.uint16) * 257
    largest = np.iinfo(pixels.dtype).max
    result = esc_arch.load(device="cpu").upscale_picture(Picture(pixels)).pixels / largest
    alpha = result[..., 3:]
    colour = 120 / 255
    composed = result[..., :3] * alpha + colour * (1 - alpha)
    assert np.abs(composed - colour).max() <= 4 / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("size", [(50, 70), (64, 24), (9, 90), (5, 5)])
def test_rows_of_tiles_are_what_tiles_of_the_whole_give(channels, depth, size, upscaler, folder):
    random = np.random.default_rng(channels)
    dtype = np.uint8 if depth == 8 else np.uint16
    largest = np.iinfo(dtype).max
    # Far from black and white, where results would be cut off.
    pixels = random.integers(largest * 0.4, largest * 0.6, (*size, channels)).astype(dtype)
    (folder / "a.png").write_bytes(encode(Picture(pixels)))
    tiled = Upscaler(upscaler.network, TINY, tile=16, tile_pad=8)
    parts = list(tiled.upscale_rows(open_picture(folder / "a.png")))
    lq = torch.from_numpy(pixels / np.float32(largest)).permute(2, 0, 1)
    whole = (tiled.upscale(lq).permute(1, 2, 0) * largest).round().numpy()
    rows = np.concatenate(parts)
    assert rows.shape == whole.shape and rows.dtype == dtype
    assert np.abs(rows.astype(int) - whole).max() <= 1
    assert len(parts) > 1 or size[0] < 30


class Simple(torch.nn.Module):
    """The plainest network that upscales."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 12, 3, padding=1)
        torch.nn.init.constant_(self.convolution.weight, 1 / 27)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(self.convolution(x), 2)


def test_a_large_picture_needs_the_memory_of_a_row_of_tiles(folder):
    # In a child, whose largest memory is its own.
    code = """
import resource
from pathlib import Path
from esc_arch.inference.upscaler import Upscaler
from esc_arch.inference.work import Job, run_job
from test_transparency_and_tiles import Simple
upscaler = Upscaler(Simple().requires_grad_(False), {"upscaling_factor": 2, "window_size": 8})
peaks = []
for name in ("large", "larger"):
    run_job(Job(Path(f"{name}.png"), Path(f"out/{name}.png")), upscaler)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 1024)
"""
    for name, height in (("large", 2000), ("larger", 20_000)):
        Image.new("1", (600, height), 1).save(f"{name}.png")
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))},
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    # In float32 the larger result has 576 MB, ten times as many as the other.
    assert float(result.stdout) < 100
    assert Image.open("out/larger.png").size == (1200, 40_000)


@pytest.mark.parametrize("size", [1e38, 1e30])
@pytest.mark.parametrize("tile", [0, 8])
def test_weights_that_overflow_give_no_file_and_one_line(size, tile, folder, model, capsys):
    params = torch.load(model, weights_only=True)["params"]
    params["proj.weight"] *= size
    params["last.weight"] *= size
    torch.save(params, "big.pth")
    Image.new("RGB", (20, 20), (9, 99, 200)).save("a.png")
    arguments = ["upscale", "a.png", "-o", "out", "--model", "big.pth", "--tile", str(tile)]
    assert main([*arguments, "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("basicsr: error: a.png: the result is not finite")
    assert captured.err.count("\n") == 1 and list(Path("out").iterdir()) == []


def test_what_overflows_in_float16_alone_is_told_so(folder, model):
    params = torch.load(model, weights_only=True)["params"]
    for name in params:
        if name.endswith("relative_position_bias"):
            params[name] += 70000
    torch.save(params, "big.pth")
    image = np.full((16, 16, 3), 100, np.uint8)
    with pytest.raises(UserError, match="not finite in float16; use bfloat16 or float32"):
        esc_arch.load("big.pth", "cpu", "float16").upscale(image)
    for dtype in ("bfloat16", torch.float32):
        assert esc_arch.load("big.pth", "cpu", dtype).upscale(image).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((9, 11), np.uint8),
        ((9, 11, 1), np.uint16),
        ((9, 11, 2), np.uint8),
        ((9, 11, 3), np.float32),
        ((9, 11, 3), np.float64),
        ((2, 9, 11, 4), np.uint16),
        ((3, 9, 11, 3), np.uint8),
        ((9, 11), ">u2"),
        ((9, 11, 3), ">f4"),
        ((2, 9, 11, 3), ">f8"),
        ((9, 11, 3), np.longdouble),
    ],
)
def test_arrays_come_back_as_they_went_in(shape, dtype, upscaler):
    random = np.random.default_rng(0)
    native = np.dtype(dtype).newbyteorder("=")
    if native.kind == "f":
        image = random.random(shape).astype(dtype)
    else:
        image = random.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    result = upscaler.upscale(image)
    at = 0 if len(shape) < 4 else 1
    assert result.dtype == dtype
    assert result.shape == (*shape[:at], 18, 22, *shape[at + 2 :])
    if at:
        assert np.array_equal(result[1], upscaler.upscale(image[1]))
    usual = np.float64 if dtype == np.longdouble else native
    assert np.array_equal(result, upscaler.upscale(image.astype(usual)))


def test_what_a_pillow_image_says_of_itself_goes_along(upscaler, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 11)).save("a.jpg", exif=exif, dpi=(300, 300))
    with Image.open("a.jpg") as image:
        result = upscaler.upscale(image)
    assert result.size == (18, 22) and result.getexif()[0x0112] == 6
    assert result.info["dpi"] == (300, 300)
    for mode, kept in (("RGB", True), ("CMYK", False)):
        image = Image.new(mode, (9, 11))
        image.info["icc_profile"] = b"profile"
        assert ("icc_profile" in upscaler.upscale(image).info) == kept


def test_tensors_images_and_paths_come_back_as_they_went_in(upscaler, folder):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    expected = upscaler.upscale(pixels)
    lq = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)
    one, two = upscaler.upscale(lq), upscaler.upscale(torch.stack([lq, lq.flip(0)]))
    assert one.shape == (3, 18, 22) and two.shape == (2, 3, 18, 22)
    one += 0  # May be changed in place, as any tensor.
    assert np.array_equal((one.permute(1, 2, 0) * 255).round().byte().numpy(), expected)
    assert upscaler.upscale(lq.double()).dtype == torch.float64
    for mode in ("RGB", "L", "LA", "RGBA"):
        image = upscaler.upscale(Image.fromarray(pixels).convert(mode))
        assert (image.mode, image.size) == (mode, (22, 18))
    Image.fromarray(pixels).save("a.png")
    path = upscaler.upscale("a.png")
    assert path == "a_x2.png" and np.array_equal(read_picture(path).pixels, expected)
    assert upscaler.upscale(Path("a.png"), output="sub/b.tif") == Path("sub/b.tif")
    assert np.array_equal(read_picture("sub/b.tif").pixels, expected)
    with pytest.raises(UserError, match="a_x2.png: exists; overwrite=True"):
        upscaler.upscale("a.png")


@pytest.mark.parametrize(
    "image, told",
    [
        (np.zeros((4, 4, 5), np.uint8), "5 channels"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), 255.0), "between 0 and 1"),
        (np.full((4, 4, 3), np.nan), "between 0 and 1"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (torch.zeros(4, 4, 3), "1 or 3 channels"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floats"),
        (Image.new("I", (4, 4)), "mode I"),
        (b"bytes", "bytes; an array"),
        ("none.png", "none.png: No such file"),
        ("a\0.png", "a.x00.png: .*embedded null"),
        (Path("/"), "/: is a folder; a file is needed"),
        (torch.zeros(3, 4, 4).to_sparse(), "sparse"),
        (torch.zeros(3, 4, 4).to(torch.float8_e4m3fn), "torch.float8_e4m3fn; floats"),
        (torch.zeros(3, 4, 4, device="meta"), "on meta"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(image, told, upscaler):
    with pytest.raises(UserError, match=told) as error:
        upscaler.upscale(image)
    assert "\n" not in str(error.value)


def test_threads_give_what_one_gives(upscaler):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (40, 40 + 8 * n, 3)).astype(np.uint8) for n in range(6)]
    shared = Upscaler(upscaler.network, TINY, tile=24, tile_pad=8)
    expected = [shared.upscale(image) for image in images]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = shared.upscale(images[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], expected[n]) for n in range(6))


def test_a_loaded_upscaler_tells_what_it_is(upscaler):
    assert (upscaler.scale, upscaler.options, upscaler.model_card) == (2, TINY, {})
    assert isinstance(upscaler.network, torch.nn.Module) and not upscaler.network.training
    assert esc_arch.load(device="cpu").model_card["dataset"].startswith("BSDS400")
    with pytest.raises(UserError, match="--scale 7: weights for 2 and 4 came"):
        esc_arch.load(scale=7)
    with pytest.raises(UserError, match="--dtype int8: must be one of float32"):
        esc_arch.load(dtype="int8")
    for device in ("meta", "hpu", "nonsense", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {device}: cannot be used here.*is: cpu"):
            esc_arch.load(device=device)
