"""`basicsr upscale` with names, folders and outputs of all kinds: done, or told in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import TINY

from esc_arch.cli.main import main
from esc_arch.zoo.identify import build_on_meta

needs_posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and names of bytes")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model of random weights beside it."""
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save(params, tmp_path / "net.pth")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def draw(path: str | Path, size: tuple[int, int] = (8, 6)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (100, 150, 200)).save(path)


def upscale(*arguments: object) -> int:
    return main(["upscale", "--device", "cpu", "--model", "../net.pth", *map(str, arguments)])


def test_the_longest_names_are_written(folder):
    names = ["a" * 247 + ".png", "\u5b57" * 82 + ".png", "b" * 251 + ".png"]
    for name in names:
        draw(Path("in") / name)
    assert upscale("in", "-o", "out") == 0
    assert sorted(path.name for path in Path("out").glob("*.png")) == sorted(names)


@needs_posix
@pytest.mark.parametrize("encoding", ["utf-8:strict", "cp1252", "ascii:strict"])
def test_names_that_cannot_be_printed_are_escaped_and_all_is_done(encoding, folder):
    os.mkdir("in")
    for name in (b"a.png", b"caf\xe9.png", "\u5b57\n\x1b[2J.png".encode()):
        with open(b"in/" + name, "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    command = [sys.executable, "-m", "esc_arch.cli", "upscale", "in", "--model", "../net.pth"]
    result = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert result.returncode == 0 and result.stderr == b""
    assert b"caf\\udce9.png" in result.stdout and b"\\n\\x1b[2J.png" in result.stdout
    assert result.stdout.count(b"\n") == 5
    assert len([name for name in os.listdir("upscaled") if name.endswith("png")]) == 3


def test_other_spellings_of_jpeg_and_bmp_are_taken_and_the_rest_is_counted(folder, capsys):
    for suffix in ("jfif", "jpe", "jif", "JPG"):
        draw("one.jpg")
        Path("in").mkdir(exist_ok=True)
        os.replace("one.jpg", f"in/{suffix}.{suffix}")
    draw("in/b.bmp")
    os.replace("in/b.bmp", "in/b.dib")
    draw("in/a.gif")
    Path("in/notes.txt").touch()
    assert upscale("in", "-o", "out") == 0
    assert len(list(Path("out").glob("*.png"))) == 5
    assert (
        capsys.readouterr().err
        == "basicsr: in: 2 files of other kinds left out: a.gif, notes.txt\n"
    )


@needs_posix
def test_circles_pipes_and_broken_links_are_told_and_the_others_done(folder, capsys):
    draw("in/a.png")
    os.symlink("self.png", "in/self.png")
    os.symlink("none.png", "in/broken.png")
    os.symlink("../in", "in/up")
    os.mkfifo("in/pipe.png")
    os.symlink("/dev/zero", "in/zero.png")
    os.symlink("/proc/self/mem", "in/failing.png")  # A regular file of which no byte can be read.
    assert upscale("in", "in/pipe.png", "/dev/zero", "-o", "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and all(line.startswith("basicsr: error: ") for line in lines)
    assert sorted(path.name for path in Path("out").rglob("*.png")) == ["a.png"]


@needs_posix
@pytest.mark.parametrize("compare", [[], ["--compare"]])
def test_a_circle_of_links_that_is_named_itself_is_told(compare, folder, capsys):
    draw("a.png")
    os.symlink("second.png", "first.png")
    os.symlink("first.png", "second.png")
    assert upscale("first.png", "a.png", "-o", "out", *compare) == 1
    told = "first.png: Too many levels of symbolic links"
    assert capsys.readouterr().err == f"basicsr: error: {told}\n"
    assert Path("out/a.png").exists()
    # As a result it is replaced, not followed.
    assert upscale("a.png", "-o", "second.png", *compare) == 0
    assert not Path("second.png").is_symlink()


@needs_posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_cannot_be_listed_is_told(folder, capsys):
    draw("in/a.png")
    draw("in/closed/b.png")
    os.chmod("in/closed", 0)
    try:
        assert upscale("in", "-o", "out") == 1
    finally:
        os.chmod("in/closed", 0o700)
    assert "in/closed: cannot be listed" in capsys.readouterr().err


def test_what_cannot_be_listed_is_told_whoever_runs_it(folder, capsys, monkeypatch):
    # Root may list all, so the error comes from a folder that goes away while it is walked.
    draw("in/a.png")
    draw("in/gone/b.png")
    scandir = os.scandir

    def vanish(path: str) -> object:
        if str(path).endswith("gone"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert upscale("in", "-o", "out") == 1
    assert "in/gone: cannot be listed: Permission denied" in capsys.readouterr().err
    assert Path("out/a.png").exists()


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Path("out").touch(), "is a file; a folder is needed"),
        (lambda: Path("file").touch(), "cannot be written to"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_first_picture(
    make: Callable[[], None], told, folder, capsys
):
    draw("a.png")
    make()
    out = "out" if Path("out").exists() else "file/out"
    assert upscale("a.png", "-o", out) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_folder_with_the_name_of_a_result_is_told(folder, capsys):
    draw("a.png")
    Path("out/a.png").mkdir(parents=True)
    assert upscale("a.png", "-o", "out") == 1
    assert "out/a.png is a folder" in capsys.readouterr().err


@needs_posix
@pytest.mark.parametrize("command", ["checkpoints list", "upscale in --model ../net.pth"])
def test_a_pipe_that_closes_ends_the_command_quietly(command, folder):
    for number in range(40):
        draw(f"in/{number}.png")
    words = [sys.executable, "-m", "esc_arch.cli", *command.split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("form, suffix", [("jpeg", "jpg"), ("webp", "webp"), ("tiff", "tif")])
def test_results_are_written_in_other_formats(form, suffix, folder):
    draw("a.png")
    assert upscale("a.png", "-o", "out", "--format", form) == 0
    assert upscale("a.png", "-o", f"b.{suffix}") == 0
    for path in (f"out/a.{suffix}", f"b.{suffix}"):
        with Image.open(path) as image:
            assert (image.format, image.size) == (form.upper(), (16, 12))


def test_quality_makes_files_smaller(folder, photographs):
    Image.fromarray(photographs["chelsea"][:64, :64]).save("a.png")
    for quality in (20, 95):
        assert upscale("a.png", "-o", f"{quality}.jpg", "--quality", quality) == 0
    assert Path("20.jpg").stat().st_size < Path("95.jpg").stat().st_size / 2


def test_transparency_is_refused_by_jpeg_and_16_bits_are_told(folder, capsys):
    Image.new("RGBA", (8, 8)).save("a.png")
    assert upscale("a.png", "-o", "out", "--format", "jpeg") == 1
    assert "a.png: JPEG has no transparency" in capsys.readouterr().err
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("b.png")
    assert upscale("b.png", "-o", "b.jpg") == 0
    assert "b.png: JPEG has 8 bits a value" in capsys.readouterr().err


def test_a_suffix_keeps_results_beside_their_sources_and_apart_from_them(folder):
    draw("a.png")
    for _ in range(2):
        assert upscale(".", "-o", ".", "--suffix", "_x2") == 0
    assert sorted(path.name for path in folder.glob("*.png")) == ["a.png", "a_x2.png"]


def test_shards_together_do_each_picture_once(folder, capsys):
    for number in range(7):
        draw(f"in/{number}.png")
    for part in ("1/3", "2/3", "3/3"):
        assert upscale("in", "-o", "out", "--shard", part) == 0
        assert " 0 kept, 0 failed" in capsys.readouterr().out
    assert len(list(Path("out").glob("*.png"))) == 7


def test_metadata_is_kept_and_strip_drops_it(folder):
    exif = Image.Exif()
    exif[0x0112], exif[0x9003], exif[0x8298] = 6, "2020:01:02 03:04:05", "(c) somebody"
    Image.new("RGB", (8, 6)).save("a.jpg", dpi=(300, 300), exif=exif)
    assert upscale("a.jpg", "-o", "kept.png") == upscale("a.jpg", "-o", "bare.png", "--strip") == 0
    kept, bare = Image.open("kept.png"), Image.open("bare.png")
    assert kept.size == bare.size == (12, 16)
    assert {kept.getexif().get(tag) for tag in (0x0112, 0x9003, 0x8298)} == {
        1,
        "2020:01:02 03:04:05",
        "(c) somebody",
    }
    assert round(kept.info["dpi"][0]) == 300
    assert not bare.getexif() and "dpi" not in bare.info


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--scale", "3"], "--scale 3: ../net.pth upscales by 2"),
        (["--scale", "0"], "--scale 0: must be 1 or more"),
        (["--quality", "101"], "--quality 101: must be from 1 to 100"),
        (["--quality", "50"], "--quality 50: png is lossless here, and has none"),
        (["--quality", "9", "-o", "b.tif"], "--quality 9: tiff is lossless here"),
        (["--shard", "4/3"], "--shard 4/3: must be I/N"),
        (["--shard", "a"], "--shard a: must be I/N"),
        (["--suffix", "a/b"], "--suffix a/b: must be part of a file name"),
        (["--max-megapixels", "0"], "--max-megapixels 0: must be 1 or more"),
        (["-o", "b.png", "--format", "jpeg"], "-o b.png: is no JPEG"),
        (["--device", "meta"], "--device meta: cannot be used here"),
    ],
)
def test_wrong_options_are_one_line(arguments, told, folder, capsys):
    draw("a.png")
    assert upscale("a.png", *arguments) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_an_option_file_in_place_of_a_model_is_told(folder, capsys):
    draw("a.png")
    Path("train.yml").write_text("name: x\nnetwork_g:\n  type: ESC\n")
    assert main(["upscale", "a.png", "--model", "train.yml"]) == 2
    assert "train.yml: is an option file, not a checkpoint" in capsys.readouterr().err


def test_pictures_above_the_limit_are_refused_by_their_header(folder, capsys):
    Image.new("1", (2000, 1000)).save("a.png")
    assert upscale("a.png", "--max-megapixels", "1") == 1
    error = capsys.readouterr().err
    assert "a.png: 2000 x 1000 pixels are more than 1 megapixels; --max-megapixels N" in error


@needs_posix
@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_in_the_place_of_the_record_of_results_is_not_written_through(plant, folder, capsys):
    for name in "ab":
        draw(f"in/{name}.png")
    Path("precious").write_text("precious")
    Path("out").mkdir()
    plant(folder / "precious", "out/.basicsr-upscaled.jsonl")
    assert upscale("in", "-o", "out") == 2
    assert "out/.basicsr-upscaled.jsonl: cannot be written: is " in capsys.readouterr().err
    assert Path("precious").read_text() == "precious"
