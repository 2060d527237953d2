"""Hundreds of odd inputs at once: each a right picture or one clear line, and the others done."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import TINY

from esc_arch.inference.picture_files import read_picture
from esc_arch.zoo.identify import build_on_meta

SIZES = [(1, 1), (1, 30), (30, 1), (2, 3), (17, 9), (64, 48), (4000, 30), (30, 4000)]
KINDS = {
    "png": ["1", "L", "LA", "RGB", "RGBA", "P", "P with alpha", "I;16"],
    "jpg": ["L", "RGB", "CMYK"],
    "webp": ["RGB", "RGBA"],
    "tif": ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"],
    "bmp": ["1", "L", "RGB", "P"],
}


def smooth(size: tuple[int, int]) -> Image.Image:
    """Colours that change slowly, so that a right result is near its source."""
    width, height = size
    across = np.linspace(40, 200, width)[None, :].repeat(height, 0)
    down = np.linspace(60, 180, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, (across + down) / 2], 2).astype(np.uint8))


def draw(size: tuple[int, int], kind: str) -> Image.Image:
    picture = smooth(size)
    if kind == "P with alpha":
        picture = picture.convert("P")
        picture.info["transparency"] = 0
        return picture
    if kind == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if kind in ("LA", "RGBA"):
        picture = picture.convert(kind)
        picture.putalpha(200)
        return picture
    return picture.convert(kind)


def header_only(side: int) -> bytes:
    """A PNG that says it is huge, and has a line of it."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 + 3 * side))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def fill(folder: Path) -> tuple[dict[str, Image.Image], set[str], set[str]]:
    """Good pictures by name, names of what cannot be right, and of what may be either."""
    good: dict[str, Image.Image] = {}
    bad: set[str] = set()
    either: set[str] = set()

    def put(name: str, content: bytes, kind: set[str]) -> None:
        (folder / name).write_bytes(content)
        kind.add(name)

    for suffix, kinds in KINDS.items():
        for kind in kinds:
            for size in SIZES:
                name = f"{kind.replace(';', '')} {size[0]}x{size[1]} {suffix}.{suffix}"
                draw(size, kind).save(folder / name)
                with Image.open(folder / name) as picture:
                    good[name] = picture.copy()
        whole = io.BytesIO()
        draw((17, 9), "RGB").save(whole, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        content = whole.getvalue()
        step = max(10, len(content) // 300 * 10)
        for end in range(0, len(content), step):
            # The last bytes may hold no pixels.
            near = len(content) - end < 16
            put(f"cut {suffix} {end:04}.{suffix}", content[:end], either if near else bad)
        put(f"text {suffix}.{suffix}", b"This is not a picture.\n" * 20, bad)
        put(f"noise {suffix}.{suffix}", np.random.default_rng(0).bytes(5000), bad)
        put(f"empty {suffix}.{suffix}", b"", bad)
        put(f"signature {suffix}.{suffix}", content[:12] + b"\0" * 500, bad)
    put("bomb.png", header_only(60_000), bad)
    put("bomb2.png", header_only(30_000), bad)
    for name in ("line\nbreak.png", "\x1b[2Jclear.png", "\u5b57 \u202e.png", "-o.png", " .png"):
        picture = draw((9, 7), "RGB")
        picture.save(folder / name)
        good[name] = picture
    os.symlink("loop b.png", folder / "loop a.png")
    os.symlink("loop a.png", folder / "loop b.png")
    os.symlink("nowhere.png", folder / "broken link.png")
    os.symlink("/dev/zero", folder / "device.png")
    os.mkfifo(folder / "pipe.png")
    bad |= {"loop a.png", "loop b.png", "broken link.png", "device.png", "pipe.png"}
    os.symlink(".", folder / "itself")
    return good, bad, either


def plain(picture: Image.Image) -> np.ndarray:
    """Its colours as 8-bit RGB."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    return np.asarray(picture.convert("RGBA").convert("RGB")).astype(float)


def is_right(result: Path, source: Image.Image) -> bool:
    """Whether it is twice as large, and each 2x2 pixels are about the one that they came from."""
    pixels = read_picture(result).pixels
    height, width = source.height, source.width
    if pixels.shape[:2] != (2 * height, 2 * width):
        return False
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, 2)
    colours = colours / (257 if pixels.dtype == np.uint16 else 1)
    means = colours.reshape(height, 2, width, 2, 3).mean((1, 3))
    # Black and white dots, palettes and CMYK by other profiles are near only on the whole.
    allowed = 40 if source.mode in ("1", "P", "CMYK") else 12
    return bool(np.abs(means - plain(source)).mean() < allowed)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="links, pipes and names")
def test_hundreds_of_odd_inputs_are_right_pictures_or_one_line_each(tmp_path: Path):
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save({"params": params}, tmp_path / "net.pth")
    (tmp_path / "in").mkdir()
    good, bad, either = fill(tmp_path / "in")
    assert len(good) + len(bad) + len(either) >= 300
    command = [sys.executable, "-m", "esc_arch.cli", "upscale", "in", "-o", "out", "--batch", "4"]
    command += ["--keep-suffix", "--model", "net.pth", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    results = {path.name.removesuffix(".png") for path in (tmp_path / "out").glob("*.png")}
    errors = [line for line in done.stderr.splitlines() if line.startswith("basicsr: error: in/")]
    failed = {line.removeprefix("basicsr: error: in/").split(": ")[0] for line in errors}
    assert len(failed) == len(errors), "one line each"
    assert results == set(good) | (either - failed)
    assert bad <= failed <= bad | either
    wrong = [
        name for name, source in good.items() if not is_right(tmp_path / f"out/{name}.png", source)
    ]
    assert wrong == []
    counts = f"{len(results)} upscaled, 0 kept, {len(failed)} failed"
    assert done.stdout.splitlines()[-1] == counts
