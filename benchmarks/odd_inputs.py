"""Upscale pictures and read checkpoints of kinds that people have reported, and print each miss.

Usage: python benchmarks/odd_inputs.py FOLDER

FOLDER is laid out as the project's maker of odd inputs leaves it: plain.png and plain_grey.png,
tiff/, alpha/, png/, meta/, names/, names_bytes/, folder_jfif/, loop/, ckpt/. Prints `ok` or `MISS`
for each, and ends with status 1 if there is a miss.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from esc_arch.inference.picture_files import open_picture, read_picture

misses = 0


def report(name: str, right: bool, told: object = "") -> None:
    """Print one line."""
    global misses
    misses += not right
    print(f"{'ok  ' if right else 'MISS'} {name}{'' if right else f': {told}'}")


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "esc_arch.cli", *map(os.fsdecode, map(os.fspath, arguments))],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **(env or {})},
        timeout=600,
    )


def one_line(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether a command failed with one line that has the words, and no traceback."""
    lines = result.stderr.splitlines()
    return (
        result.returncode in (1, 2) and len(lines) == 1 and all(word in lines[0] for word in words)
    )


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference in levels of 8 bits."""
    return float(np.abs(in_8(a) - in_8(b)).max())


def in_8(pixels: np.ndarray) -> np.ndarray:
    """Values as levels of 8 bits."""
    return pixels / 257 if pixels.dtype == np.uint16 else pixels.astype(float)


def check_pictures(folder: Path, out: Path, model: Path) -> None:
    """What is drawn like plain.png gives what plain.png gives."""
    upscale = ("upscale", folder / "plain.png", folder / "plain_grey.png", folder / "tiff")
    result = run(*upscale, folder / "meta", "-o", out, "--model", model)
    plain = read_picture(out / "plain.png").pixels
    grey = read_picture(out / "plain_grey.png").pixels
    lines = result.stderr.splitlines()
    tiff = out / "tiff"
    for name in ("planar16", "planar8", "with_thumbnail"):
        report(name, farthest(read_picture(tiff / f"{name}.png").pixels, plain) <= 1)
    for name in ("white_is_zero16", "white_is_zero8"):
        report(name, farthest(read_picture(tiff / f"{name}.png").pixels, grey) <= 1)
    extra = [read_picture(tiff / f"extra_unspecified{bits}.png").pixels for bits in (8, 16)]
    report("extra_unspecified alike", farthest(*extra) <= 1)
    premultiplied = read_picture(tiff / "premultiplied16.png").pixels
    visible = in_8(premultiplied[..., 3]) > 20
    difference = np.abs(in_8(premultiplied[..., :3]) - in_8(plain))[visible].max()
    report("premultiplied16", difference <= 1.5, difference)
    report("grey_alpha16", read_picture(tiff / "grey_alpha16.png").pixels.shape[2] == 2)
    report("cmyk16", any("cmyk16.tif: CMYK, converted" in line for line in lines))
    report("signed16", any("signed16.tif: its values are 16-bit signed" in line for line in lines))
    report("only those", result.returncode == 1 and len(lines) == 2, lines)
    # Trained weights: random ones change colours, too.
    result = run("upscale", folder / "alpha", "-o", out / "alpha")
    report("alpha/", result.returncode == 0 and result.stderr == "", result.stderr)
    check_alpha(folder / "alpha", out / "alpha")
    check_metadata(folder / "meta", out / "meta")


def check_alpha(folder: Path, out: Path) -> None:
    """Empty stays empty, opaque stays opaque, and no colour bleeds."""
    square = read_picture(out / "square.png").pixels[..., 3]
    report("square outside", square[:44].max() == 0 and square[:, 148:].max() == 0)
    report("square inside", square[52:140, 52:140].min() == 255)
    for name, colour in (
        ("white_logo_zeroed", 255),
        ("magenta_key", 120),
        ("palette_magenta", 120),
    ):
        pixels = read_picture(out / f"{name}.png").pixels.astype(float)
        alpha = pixels[..., 3:] / 255
        composed = pixels[..., :3] * alpha + colour * (1 - alpha)
        report(name, np.abs(composed - colour).max() <= 4, np.abs(composed - colour).max())
    for name in ("grey16_trns", "grey_alpha16"):
        pixels = read_picture(out / f"{name}.png").pixels
        report(name, pixels.dtype == np.uint16 and pixels.shape[2] == 2, pixels.shape)
    pixels = read_picture(out / "grey8_trns.png").pixels
    report("grey8_trns", pixels.dtype == np.uint8 and pixels.shape[2] == 2)


def check_metadata(folder: Path, out: Path) -> None:
    """What says which colours are meant, and the rest, goes along."""
    for name in ("gamma_linear", "adobe_rgb_chrm", "hdr_cicp"):
        before, after = (open_picture(path / f"{name}.png").metadata for path in (folder, out))
        report(name, before.colour_chunks == after.colour_chunks != {}, after)
    dpi = Image.open(out / "dpi300.png").info.get("dpi", (0, 0))
    report("dpi300", round(dpi[0]) == 300, dpi)
    exif = Image.open(out / "date_and_copyright.png").getexif()
    report("date_and_copyright", exif.get(0x9003) == "2020:01:02 03:04:05", dict(exif))
    report("copyright", exif.get(0x8298) == "(c) somebody")


def check_odd_metadata(folder: Path, out: Path, model: Path) -> None:
    """Metadata never decides."""
    files = sorted(path for path in folder.iterdir() if "megapixels" not in path.name)
    result = run("upscale", *files, "-o", out, "--model", model)
    report("png/", result.returncode == 0 and result.stderr == "", result.stderr)
    names = {path.stem for path in out.glob("*.png")}
    report("png/ all", names == {path.stem for path in files}, names)
    big = folder / "200_megapixels.png"
    source = open_picture(big)
    report("200_megapixels opens", (source.width, source.height) == (16320, 12240))
    result = run("upscale", big, "-o", out, "--model", model, "--max-megapixels", "100")
    report("200_megapixels, limit", one_line(result, "--max-megapixels"), result.stderr)


def check_names(folder: Path, out: Path, model: Path) -> None:
    """Names of any length and any bytes."""
    result = run("upscale", folder / "names", "-o", out / "names", "--model", model)
    done = len(list((out / "names").glob("*.png")))
    report("names/", result.returncode == 0 and done == 2, result)
    for encoding in ("utf-8:strict", "cp1252"):
        target = out / encoding.replace(":", "_")
        arguments = ("upscale", folder / "names_bytes", folder / "names", "-o", target)
        result = run(*arguments, "--model", model, env={"PYTHONIOENCODING": encoding})
        done = len(list(target.rglob("*.png")))
        report(f"names_bytes, {encoding}", result.returncode == 0 and done == 5, result)
    target = out / "jfif"
    result = run("upscale", folder / "folder_jfif", "-o", target, "--model", model)
    done = len(list(target.glob("*.png")))
    told = "1 file of other kinds left out" in result.stderr
    report("folder_jfif/", done == 3 and told and result.returncode == 0, result)


def check_folders(folder: Path, out: Path, model: Path) -> None:
    """Loops, pipes, outputs."""
    work = Path(tempfile.mkdtemp(dir=out))
    shutil.copy(folder / "loop" / "a.png", work)
    os.symlink("self.png", work / "self.png")
    os.mkfifo(work / "pipe.png")
    result = run("upscale", work, "-o", out / "loop", "--model", model)
    right = result.returncode == 1 and len(result.stderr.splitlines()) == 2
    report("loop/ and a FIFO", right and (out / "loop" / "a.png").exists(), result)
    plain = folder / "plain.png"
    for name in ("x.gif", "x.avif"):
        result = run("upscale", plain, "-o", out / name, "--model", model)
        report(f"-o {name}", one_line(result, ".png", ".webp"), result)
    result = run("upscale", plain, "-o", "/dev/null/x", "--model", model)
    report("-o that cannot be written", one_line(result, "cannot be written"), result)
    redone = out / "redone"
    (redone / "plain.png").mkdir(parents=True)
    result = run("upscale", plain, "-o", redone, "--model", model)
    report("a folder of the result's name", one_line(result, "is a folder"), result)
    (redone / "plain.png").rmdir()
    (redone / "plain.png").touch()
    result = run("upscale", plain, "-o", redone, "--model", model)
    report("an empty file of its name", "done anew" in result.stdout, result)
    for device in ("meta", "hpu", "privateuseone"):
        result = run("upscale", plain, "-o", out, "--model", model, "--device", device)
        report(f"--device {device}", one_line(result, "there is: cpu"), result)
    for command in (("checkpoints", "list"), ("upscale", folder / "alpha", "--model", model)):
        words = [sys.executable, "-m", "esc_arch.cli", *map(str, command)]
        words += ["-o", str(out / "head")] if command[0] == "upscale" else []
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.readline()
            process.stdout.close()
            told = process.stderr.read()
        report(f"{command[0]} | head -1", told == b"", told)


def check_checkpoints(folder: Path, out: Path, plain: Path) -> None:
    """Loaded by content, or refused by what they are."""
    whole = (
        "safetensors_called.pth pth_called.safetensors UPPER.SAFETENSORS under_state_dict.pth "
        "under_model.pth under_net_g.pth lightning.ckpt orig_mod.pth fine.pth"
    ).split()
    for name in whole:
        result = run("upscale", plain, "-o", out / f"{name}.png", "--model", folder / name)
        report(name, result.returncode == 0 and result.stderr == "", result.stderr)
    refused = {
        "nan.pth": "proj.weight",
        "lfs_pointer.pth": "Git LFS pointer",
        "lfs_pointer.safetensors": "Git LFS pointer",
        "page.pth": "web page",
        "page.safetensors": "web page",
        "text.pth": "is text",
        "without_last_layer.pth": "lacks 'to_img.weight'",
        "bytes_keys.pth": "bytes",
    }
    for name, word in refused.items():
        target = out / f"refused_{name}.png"
        result = run("upscale", plain, "-o", target, "--model", folder / name)
        report(name, one_line(result, word) and not target.exists(), result.stderr)
        result = run("checkpoints", "verify", folder / name)
        report(f"verify {name}", one_line(result, word), result.stderr)
    target = out / "overflow.png"
    model = folder / "float16_overflows.pth"
    result = run("upscale", plain, "-o", target, "--model", model, "--dtype", "float16")
    right = one_line(result, "float16", "bfloat16 or float32") and not target.exists()
    report("float16_overflows, float16", right, result.stderr)
    for dtype in ("float32", "bfloat16"):
        result = run("upscale", plain, "-o", out / dtype, "--model", model, "--dtype", dtype)
        report(f"float16_overflows, {dtype}", result.returncode == 0, result.stderr)


def main() -> int:
    """Check all; 1 if there is a miss."""
    folder = Path(sys.argv[1])
    model = folder / "ckpt" / "fine.pth"
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        check_pictures(folder, out / "pictures", model)
        check_odd_metadata(folder / "png", out / "png", model)
        check_names(folder, out, model)
        check_folders(folder, out, model)
        check_checkpoints(folder / "ckpt", out, folder / "plain.png")
    print(f"{misses} misses")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
