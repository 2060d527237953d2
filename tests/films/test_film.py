"""Films: every frame through the network, sound and timing kept, gone on with after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clips import UNEVEN, av, expected, frames, make_clip, psnr, sound, times, upscale
from PIL import Image

from esc_arch.films import CODECS


def test_frames_are_those_of_the_pipeline_and_sound_and_timing_stay(folder, photographs, capsys):
    make_clip("clip.mp4", photographs["coffee"], UNEVEN)
    assert upscale("clip.mp4", "-o", "clip_x2.mp4", "--quality", 95, "--batch", 2) == 0
    assert capsys.readouterr().out == "clip_x2.mp4: done\n"
    results = frames("clip_x2.mp4")
    assert len(results) == len(UNEVEN) and results[0].shape == (96, 128, 3)
    assert min(map(psnr, results, expected("clip.mp4"))) > 38
    assert times("clip_x2.mp4") == pytest.approx(times("clip.mp4"), abs=1e-6)
    assert sound("clip_x2.mp4") == sound("clip.mp4")
    assert sorted(os.listdir()) == ["clip.mp4", "clip_x2.mp4", "net.pth"]
    # It is kept, as results are.
    assert upscale("clip.mp4", "-o", "clip_x2.mp4") == 0
    line = "clip_x2.mp4: kept, whatever weights and options made it; --overwrite replaces it\n"
    assert capsys.readouterr().out == line


def test_in_a_folder_a_film_of_other_weights_options_or_sources_is_done_anew(
    folder, photographs, capsys
):
    make_clip("clip.mp4", photographs["coffee"], [0, 4], sound=False)
    cv2.imwrite("photo.png", photographs["coffee"][:12, :16])
    assert upscale("photo.png", "clip.mp4", "-o", "out") == 1  # Not without a word.
    assert upscale("clip.mp4", "-o", "out") == 0
    first = Path("out/clip.mp4").read_bytes()
    capsys.readouterr()
    assert upscale("clip.mp4", "-o", "out") == 0
    assert capsys.readouterr().out == "out/clip.mp4: kept; --overwrite replaces it\n"
    assert upscale("photo.png", "-o", "out") == 0
    assert "out/photo.png: kept" in capsys.readouterr().out

    state = torch.load("net.pth", weights_only=True)
    torch.save(
        {"params": {name: value * 1.5 for name, value in state["params"].items()}}, "net.pth"
    )
    assert upscale("clip.mp4", "-o", "out") == 0
    line = "out/clip.mp4: done anew: what is there was made by other weights\n"
    assert capsys.readouterr().out.startswith(line)
    second = Path("out/clip.mp4").read_bytes()
    assert second != first
    assert upscale("clip.mp4", "-o", "out", "--quality", "30") == 0
    assert "done anew: what is there was made with another quality" in capsys.readouterr().out
    make_clip("clip.mp4", photographs["chelsea"], [0, 4, 8], sound=False)
    assert upscale("clip.mp4", "-o", "out", "--quality", "30") == 0
    assert "done anew: the source is another than it was" in capsys.readouterr().out
    assert len(frames("out/clip.mp4")) == 3


@pytest.mark.parametrize("what", ["smaller", "older", "no film"])
def test_what_is_there_is_not_called_the_result_of_another_film(what, folder, photographs, capsys):
    make_clip("clip.mp4", photographs["coffee"], [0, 4])
    if what == "older":
        assert upscale("clip.mp4", "-o", "clip_x2.mp4") == 0
        os.utime("clip_x2.mp4", (1, 1))
    else:
        content = {"smaller": Path("clip.mp4").read_bytes(), "no film": b"mine"}[what]
        Path("clip_x2.mp4").write_bytes(content)
    before = Path("clip_x2.mp4").read_bytes()
    assert upscale("clip.mp4", "-o", "clip_x2.mp4") == 2
    told = {"smaller": "64 x 48, not 128 x 96", "older": "older than its source"}.get(what, what)
    line = f"clip_x2.mp4: is there, and {told}; --overwrite replaces it"
    assert line in capsys.readouterr().err
    assert Path("clip_x2.mp4").read_bytes() == before
    assert upscale("clip.mp4", "-o", "clip_x2.mp4", "--overwrite") == 0


def test_ffv1_is_what_the_pipeline_gives_to_the_bit(folder, photographs):
    make_clip("clip.mkv", photographs["coffee"], [0, 4, 8], sound=False)
    assert upscale("clip.mkv", "-o", "out", "--codec", "ffv1") == 0
    for ours, theirs in zip(frames("out/clip.mkv"), expected("clip.mkv"), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("codec, form", [("av1", "mp4"), ("av1", "webm"), ("hevc", "mkv")])
def test_other_codecs_hold_the_same_film(codec, form, folder, photographs):
    encoder, _ = CODECS[codec]
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    make_clip("clip.mp4", photographs["coffee"], UNEVEN, sound=False)
    assert upscale("clip.mp4", "-o", f"a.{form}", "--codec", codec, "--quality", "90") == 0
    with av.open(f"a.{form}") as film:
        assert codec in film.streams.video[0].codec_context.codec.long_name.lower()
    results = frames(f"a.{form}")
    assert len(results) == len(UNEVEN)
    assert min(map(psnr, results, expected("clip.mp4"))) > 34
    # Matroska counts whole milliseconds.
    assert times(f"a.{form}") == pytest.approx(times("clip.mp4"), abs=1.1e-3)


def test_ten_bits_stay_ten(folder, photographs):
    make_clip("clip.mp4", photographs["coffee"], [0, 4, 8], form="yuv420p10le")
    assert upscale("clip.mp4", "-o", "clip_x2.mp4", "--quality", 95) == 0
    with av.open("clip_x2.mp4") as film:
        assert film.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
    assert min(map(psnr, frames("clip_x2.mp4"), expected("clip.mp4"))) > 38


@pytest.mark.parametrize(("form", "told"), [("bgra", True), ("bgr0", False)])
def test_transparency_is_not_lost_without_a_word(form, told, folder, photographs, capsys):
    make_clip("clip.mkv", photographs["coffee"], [0, 4], "ffv1", form, sound=False)
    assert upscale("clip.mkv", "-o", "out.mkv") == 0
    assert ("clip.mkv: its transparency is left out" in capsys.readouterr().err) == told


def test_colours_stay_where_players_would_guess_others(folder, photographs):
    # Of 400 lines players take BT.601; of 800 they would take BT.709.
    pixels = np.zeros((400, 64, 3), np.uint8)
    pixels[:] = (200, 40, 40)
    with av.open("red.mp4", "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 400, "yuv420p"
        out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
    assert upscale("red.mp4", "-o", "red_x2.mp4") == 0
    with av.open("red_x2.mp4") as film:
        context = film.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)
        frame = next(film.decode(video=0))
    with av.open("red.mp4") as film:
        before = next(film.decode(video=0))
    middle = [each.to_ndarray()[100, 30] for each in (before, frame)]
    assert abs(int(middle[0]) - int(middle[1])) <= 3


# From inside: how far it is when a signal from outside arrives depends on the machine's load.
KILLED_AT_THE_SECOND_PART = """
import os, sys
from esc_arch.cli.main import main
sys.addaudithook(
    lambda event, args: event == "os.rename"
    and str(args[1]).endswith("000001.nut")
    and os.kill(os.getpid(), 9)
)
sys.exit(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_after_a_kill_it_goes_on_and_the_film_is_as_without(folder, photographs, capsys):
    make_clip("clip.mp4", photographs["coffee"], list(range(0, 4 * 300, 4)))
    _damage("clip.mp4", (50, 150))
    assert upscale("clip.mp4", "-o", "whole.mp4") == 0
    assert "clip.mp4: 2 frames are damaged" in capsys.readouterr().err
    command = [sys.executable, "-c", KILLED_AT_THE_SECOND_PART, "upscale", "clip.mp4"]
    command += ["-o", "killed.mp4", "--model", "net.pth", "--device", "cpu"]
    parts = Path(".killed.mp4.parts")
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (parts / "000000.nut").exists() and not Path("killed.mp4").exists()
    capsys.readouterr()
    assert upscale("clip.mp4", "-o", "killed.mp4") == 0
    error = capsys.readouterr().err
    assert "clip.mp4: gone on from frame 120" in error and "2 frames are damaged" in error
    assert times("killed.mp4") == times("whole.mp4")
    for ours, theirs in zip(frames("killed.mp4"), frames("whole.mp4"), strict=True):
        assert np.array_equal(ours, theirs)
    assert not parts.exists()


def test_parts_of_other_options_are_not_gone_on_from(folder):
    from esc_arch.films.segments import Segments

    first = Segments(Path("a.mp4"), {"model": "1"})
    first.file(0).write_bytes(b"part")
    assert Segments(Path("a.mp4"), {"model": "1"}).done() == 1
    assert Segments(Path("a.mp4"), {"model": "2"}).done() == 0
    assert not first.file(0).exists()


@pytest.mark.parametrize(
    "arguments, status, told",
    [
        (["*.mp4"], 2, "*.mp4: fits 3 films; they are upscaled one at a time"),
        (["no*.mp4"], 2, "no*.mp4: nothing fits this pattern"),
        (["clip.mp4", "sound.mp4"], 2, "clip.mp4: films are upscaled one at a time, alone"),
        (["clip.mp4", "picture.png"], 1, "clip.mp4: films are upscaled one at a time, alone"),
        (["clip.mp4", "--format", "png"], 2, "--format: is for pictures; this is a film"),
        (["clip.mp4", "--codec", "ffv1", "-o", "a.mp4"], 2, "-o a.mp4: ffv1 goes into .mkv"),
        (["clip.mp4", "--codec", "ffv1", "--quality", "9"], 2, "--quality 9: ffv1 is lossless"),
        (["net.pth", "--codec", "h264"], 2, "--codec h264: is for films; these are pictures"),
        (["text.mp4"], 2, "text.mp4: not a film that can be read"),
        (["none.mp4"], 2, "none.mp4: "),
        (["sound.mp4"], 2, "sound.mp4: has no pictures in it"),
        (["clip.mp4", "-o", "."], 2, "clip.mp4: its result would replace it"),
    ],
)
def test_mistakes_are_one_line(arguments, status, told, folder, photographs, capsys):
    make_clip("clip.mp4", photographs["coffee"], [0, 4])
    Path("text.mp4").write_text("not a film")
    with av.open("sound.mp4", "w") as out:
        tone = out.add_stream("aac", rate=22050)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate, part.pts = 22050, 0
        out.mux([*tone.encode(part), *tone.encode(None)])
    before = Path("clip.mp4").read_bytes()
    Image.new("RGB", (9, 9)).save("picture.png")
    assert upscale(*arguments) == status
    assert Path("upscaled/picture.png").exists() == ("picture.png" in arguments)
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1, error
    assert Path("clip.mp4").read_bytes() == before


def test_a_film_that_breaks_off_is_told_and_nothing_half_is_left(folder, photographs, capsys):
    make_clip("clip.mkv", photographs["coffee"], list(range(0, 400, 4)), sound=False)
    content = Path("clip.mkv").read_bytes()
    Path("half.mkv").write_bytes(content[: len(content) // 2])
    status = upscale("half.mkv", "-o", "half_x2.mkv")
    # What can be decoded of a film that was cut off is shown by players, too.
    left = len(frames("half_x2.mkv"))
    assert status == 0 and 10 < left < 100
    told = "half.mkv: breaks off: its pictures end at "
    error = capsys.readouterr().err
    assert told in error and error.endswith(" of 4.0 s\n"), error
    assert abs(float(error.split(told)[1].split()[0]) - (left - 1) * 0.04) < 0.1


def _damage(name: str, numbers: tuple[int, ...]) -> None:
    """Write zeros in the place of some frames."""
    content = bytearray(Path(name).read_bytes())
    with av.open(name) as film:
        packets = [packet for packet in film.demux(video=0) if packet.size]
    for number in numbers:
        start = content.index(bytes(packets[number]), packets[number].pos)
        content[start : start + packets[number].size] = bytes(packets[number].size)
    Path(name).write_bytes(content)


def test_damaged_frames_are_left_out_and_told(folder, photographs, capsys):
    make_clip("clip.mkv", photographs["coffee"], list(range(0, 400, 4)), "mjpeg", "yuvj420p")
    _damage("clip.mkv", (0, 30, 60))
    assert upscale("cl*.mkv", "-o", "clip_x2.mkv") == 0
    error = capsys.readouterr().err
    assert "clip.mkv: 3 frames are damaged: left out or shown in part\n" in error
    kept = [number * 0.04 for number in range(100) if number not in (0, 30, 60)]
    assert times("clip_x2.mkv") == pytest.approx(kept)
    assert sound("clip_x2.mkv") == sound("clip.mkv")


def test_a_film_from_a_stranger_names_no_other_file(folder, photographs, capsys):
    make_clip("other.mp4", photographs["coffee"], [0, 4])
    # FFmpeg has a list of files behind this first line, and a protocol in this name.
    Path("list.mp4").write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    Path("concat:other.mp4").write_text("not a film")
    for name in ("list.mp4", "concat:other.mp4"):
        assert upscale(name, "-o", "out.mp4") == 2
        error = capsys.readouterr().err
        assert f"{name}: not a film that can be read" in error and error.count("\n") == 1, error


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
def test_no_pipe_is_waited_for_and_no_link_written_through(folder, photographs, capsys):
    make_clip("clip.mp4", photographs["coffee"], [0, 4])
    os.mkfifo("pipe.mp4")
    assert upscale("pipe.mp4", "-o", "out.mp4") == 2
    assert "pipe.mp4: is a pipe or a device" in capsys.readouterr().err
    # Where the parts of a film go can be guessed.
    Path("elsewhere").mkdir()
    Path("elsewhere/.esc-mine.tmp").touch()
    Path(".out.mp4.parts").symlink_to("elsewhere")
    assert upscale("clip.mp4", "-o", "out.mp4") == 0
    assert os.listdir("elsewhere") == [".esc-mine.tmp"]
