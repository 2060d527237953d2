"""Where there is no libvips, Pillow alone reads the plain kinds, and one line says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from esc_arch.inference.picture_files import open_picture, read_picture

# What Python says where the package is missing, and where only the library behind it is.
NO_PACKAGE = "raise ModuleNotFoundError(\"No module named 'pyvips'\")\n"
# Slowly, so that another thread could find it half imported.
NO_LIBRARY = "import time\ntime.sleep(0.1)\nraise OSError('no library libvips.so.42')\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photographs) -> Path:
    """One of each kind that Pillow alone has to read, and two that it need not."""
    folder = tmp_path_factory.mktemp("pictures")
    colour = Image.fromarray(photographs["chelsea"][60:92, 100:140])
    exif = Image.Exif()
    exif[0x0112] = 6
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100000).to_bytes(4, "big"))
    colour.save(folder / "rgb.png", pnginfo=gamma)
    colour.convert("L").save(folder / "grey.png")
    colour.convert("P").save(folder / "palette.png")
    alpha = colour.copy()
    alpha.putalpha(colour.convert("L"))
    alpha.save(folder / "rgba.png")
    alpha.convert("LA").save(folder / "grey_alpha.png")
    alpha.save(folder / "rgba.webp", lossless=True)
    colour.save(folder / "turned.jpg", quality=95, exif=exif)
    colour.save(folder / "colour.bmp")
    deep = np.asarray(colour.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    colour.save(folder / "colour.tif")
    return folder


# Several commands in one process, each in the arguments that JSON has.
COMMANDS = """
import json, sys
from esc_arch.cli.main import main
print([main(arguments) for arguments in json.loads(sys.argv[1])])
"""


def upscale(
    failure: str | None, place: Path, *arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run commands in a process of its own, in which importing the library fails as said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if failure is not None:
        (place / "pyvips.py").write_text(failure)
        environment["PYTHONPATH"] = str(place)
    commands = [["upscale", "--keep-suffix", "--device", "cpu", *one] for one in arguments]
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def right(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What libvips makes of them."""
    out = tmp_path_factory.mktemp("right")
    result = upscale(None, out, [str(pictures), "-o", str(out)])
    assert result.stdout.endswith("[0]\n"), result.stderr
    return out


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(NO_PACKAGE, id="no package"),
        pytest.param(NO_LIBRARY, id="no library", marks=pytest.mark.slow),
    ],
)
def test_plain_pictures_are_upscaled_alike_and_others_refused_by_name(
    pictures, right, tmp_path, failure
):
    out = tmp_path / "out"
    result = upscale(failure, tmp_path, [str(pictures), "-o", str(out)])
    told = result.stderr.splitlines()
    assert result.stdout.endswith("[1]\n"), result.stderr
    (missing,) = [line for line in told if "libvips is not installed, so only PNG, JPEG" in line]
    refused = [line for line in told if line != missing]
    assert len(refused) == 2
    assert all("libvips" in line and "pip install 'pyvips[binary]'" in line for line in refused)
    assert any("deep.png: 16 bits" in line for line in refused)
    assert any("colour.tif: needs libvips" in line for line in refused)

    names = {path.name for path in right.glob("*.png")}
    done = {path.name for path in out.glob("*.png")}
    assert done == names - {"deep.png.png", "colour.tif.png"} and len(done) == 8
    for name in done:
        # Decoders of JPEG may differ by a level.
        most = 2 if "jpg" in name else 0
        assert farthest(out / name, right / name) <= most, name
    chunks = open_picture(out / "rgb.png.png").metadata.colour_chunks
    assert chunks == {b"gAMA": (100000).to_bytes(4, "big")}


def test_results_are_written_as_with_libvips(pictures, right, tmp_path):
    source = str(pictures / "rgb.png")
    outputs = {kind: tmp_path / kind for kind in ("jpeg", "webp", "tiff")}
    commands = [[source, "-o", str(out), "--format", kind] for kind, out in outputs.items()]
    result = upscale(NO_PACKAGE, tmp_path, *commands)
    assert result.stdout.endswith("[0, 0, 1]\n"), result.stderr
    assert "TIFF need libvips" in result.stderr and [*outputs["tiff"].iterdir()] == []
    for kind, most in (("jpeg", 12), ("webp", 0)):
        (written,) = outputs[kind].glob("rgb.*")
        assert farthest(written, right / "rgb.png.png") <= most


def farthest(one: Path, other: Path) -> int:
    """The largest difference of values."""
    return np.abs(read_picture(one).pixels.astype(int) - read_picture(other).pixels).max()
