"""Films: every frame through the network, sound and timing kept, gone on with after a kill."""

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import esc_arch
from esc_arch.cli.main import main
from esc_arch.films import CODECS
from esc_arch.inference.picture_files import Picture
from esc_arch.zoo.identify import build_on_meta

av = pytest.importorskip("av", reason="needs PyAV")

TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model whose results look like their inputs."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save({"params": params}, "net.pth")
    return tmp_path


def make_clip(
    name: str,
    photograph: np.ndarray,
    times: list[int],
    codec: str = "libx264",
    form: str = "yuv420p",
    sound: bool = True,
) -> None:
    """A film of 64x48 that moves over a photograph; a frame at each of the times, in 1/100 s."""
    with av.open(name, "w") as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, form
        video.codec_context.time_base = Fraction(1, 100)
        tone = out.add_stream("aac", rate=22050) if sound else None
        for number, when in enumerate(times):
            pixels = photograph[number % 60 : number % 60 + 48, 100:164]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = when, Fraction(1, 100)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if tone is not None:
            samples = np.sin(np.arange(22050 * (times[-1] + 4) // 100) * 0.05).astype(np.float32)
            for start in range(0, len(samples) - 1024, 1024):
                part = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                part.sample_rate, part.pts = 22050, start
                out.mux(tone.encode(part))
            out.mux(tone.encode(None))


def frames(name: str, form: str = "rgb24") -> list[np.ndarray]:
    with av.open(name) as film:
        return [frame.to_ndarray(format=form) for frame in film.decode(video=0)]


def times(name: str) -> list[float]:
    with av.open(name) as film:
        return [frame.time for frame in film.decode(video=0)]


def sound(name: str) -> list[tuple[bytes, float]]:
    with av.open(name) as film:
        packets = [packet for packet in film.demux(audio=0) if packet.size]
        return [(bytes(packet), float(packet.pts * packet.time_base)) for packet in packets]


def upscale(*arguments: object) -> int:
    words = ["upscale", "--model", "net.pth", "--device", "cpu", *map(str, arguments)]
    return main(words)


def expected(name: str) -> list[np.ndarray]:
    upscaler = esc_arch.load("net.pth", "cpu")
    return [upscaler.upscale_picture(Picture(frame)).pixels for frame in frames(name)]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Of the luma, since most films have colours at half the size only."""
    luma = [picture @ np.array([0.299, 0.587, 0.114]) for picture in (first, second)]
    return 10 * np.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))


UNEVEN = [0, 4, 8, 9, 13, 30, 34, 38, 42]


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
    assert "kept" in capsys.readouterr().out


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


def make_rich_clip(name: str, photograph: np.ndarray) -> None:
    """A film with two languages, one of them forced, subtitles, chapters and a font."""
    make_clip("plain.mkv", photograph, UNEVEN)
    Path("text.srt").write_text("1\n00:00:00,000 --> 00:00:00,100\nHello\n", encoding="utf-8")
    with av.open("plain.mkv") as film, av.open("text.srt") as texts, av.open(name, "w") as out:
        first, second = film.streams.audio[0], film.streams.audio[0]
        video = out.add_stream_from_template(film.streams.video[0], opaque=True)
        copies = [out.add_stream_from_template(one, opaque=True) for one in (first, second)]
        lines = out.add_stream_from_template(texts.streams[0], opaque=True)
        for stream, language in zip(
            (video, *copies, lines), ("jpn", "eng", "deu", "fra"), strict=True
        ):
            stream.metadata["language"] = language
        copies[1].metadata["title"] = "for the blind"
        copies[1].disposition = FORCED
        out.add_attachment("font.ttf", "font/ttf", b"letters")
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {}}]
        )
        sound_packets = [packet for packet in film.demux(first) if packet.size]
        for packet in sound_packets:
            packet.stream = copies[0]
            out.mux(packet)
        film.seek(0)
        for packet in film.demux():
            if packet.size:
                packet.stream = video if packet.stream.type == "video" else copies[1]
                out.mux(packet)
        for packet in texts.demux():
            if packet.size:
                packet.stream = lines
                out.mux(packet)


def described(name: str) -> list[tuple[str, str | None, str | None, int]]:
    with av.open(name) as film:
        return [
            (one.type, one.language, one.metadata.get("title"), int(one.disposition))
            for one in film.streams
        ]


def durations(name: str) -> dict[float, float]:
    with av.open(name) as film:
        packets = [packet for packet in film.demux(video=0) if packet.size]
        return {
            float(one.pts * one.time_base): float(one.duration * one.time_base) for one in packets
        }


FORCED = 64


@pytest.mark.skipif(
    not hasattr(av.container.OutputContainer, "add_attachment"), reason="needs a newer PyAV"
)
def test_languages_chapters_fonts_and_durations_stay(folder, photographs, capsys):
    make_rich_clip("rich.mkv", photographs["coffee"])
    assert upscale("rich.mkv", "-o", "out.mkv") == 0
    assert described("out.mkv") == described("rich.mkv")
    assert described("out.mkv")[2] == ("audio", "deu", "for the blind", FORCED)
    assert durations("out.mkv") == durations("rich.mkv") and len(durations("out.mkv")) > 5
    with av.open("out.mkv") as film:
        assert [chapter["end"] * chapter["time_base"] for chapter in film.chapters()] == [
            Fraction(1, 5)
        ]
        (font,) = film.streams.attachments
        assert font.data == b"letters"
    assert upscale("rich.mkv", "-o", "out.mp4") == 0
    assert [language for _, language, _, _ in described("out.mp4")][:3] == ["jpn", "eng", "deu"]
    told = capsys.readouterr().err.splitlines()
    assert [line.split("its ")[1].split()[0] for line in told] == ["subtitle", "attachment"]
    assert all(line.endswith("does not fit .mp4: left out") for line in told)


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
    assert upscale("clip.mp4", "-o", "whole.mp4") == 0
    command = [sys.executable, "-c", KILLED_AT_THE_SECOND_PART, "upscale", "clip.mp4"]
    command += ["-o", "killed.mp4", "--model", "net.pth", "--device", "cpu"]
    parts = Path(".killed.mp4.parts")
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (parts / "000000.nut").exists() and not Path("killed.mp4").exists()
    capsys.readouterr()
    assert upscale("clip.mp4", "-o", "killed.mp4") == 0
    assert "clip.mp4: gone on from frame 120" in capsys.readouterr().err
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
        (["clip.mp4", "net.pth"], 2, "clip.mp4: films are upscaled one at a time, alone"),
        (["clip.mp4", "--format", "png"], 2, "--format: is for pictures; this is a film"),
        (["clip.mp4", "--codec", "ffv1", "-o", "a.mp4"], 2, "-o a.mp4: ffv1 goes into .mkv"),
        (["clip.mp4", "--codec", "ffv1", "--quality", "9"], 2, "--quality 9: ffv1 is lossless"),
        (["net.pth", "--codec", "h264"], 2, "--codec h264: no film is among the inputs"),
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
    assert upscale(*arguments) == status
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1, error
    assert Path("clip.mp4").read_bytes() == before


def test_a_film_that_changes_its_size_or_has_other_colours_is_told(folder, photographs, capsys):
    for name, (height, width) in {"a.h264": (48, 64), "b.h264": (32, 80)}.items():
        with av.open(name, "w") as out:
            video = out.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            for _ in range(3):
                pixels = np.ascontiguousarray(photographs["coffee"][:height, :width])
                out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(video.encode(None))
    Path("both.h264").write_bytes(Path("a.h264").read_bytes() + Path("b.h264").read_bytes())
    with av.open("both.h264", format="h264") as parts, av.open("both.mkv", "w") as out:
        video = out.add_stream_from_template(parts.streams.video[0], opaque=True)
        packets = [packet for packet in parts.demux() if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.time_base = video, Fraction(1, 25)
            packet.pts = packet.dts = number
            out.mux(packet)
    assert upscale("both.mkv", "-o", "out.mkv", "--batch", 4) == 2
    told = "both.mkv: its frame 3 has 80 x 32 pixels, those before 64 x 48; split the film there"
    assert told in capsys.readouterr().err
    with av.open("ycgco.mkv", "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.colorspace = 8
        pixels = np.zeros((48, 64, 3), np.uint8)
        out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
    assert upscale("ycgco.mkv", "-o", "out.mkv") == 2
    error = capsys.readouterr().err
    assert "does not make RGB of (matrix 8)" in error and error.count("\n") == 1
    assert not Path("out.mkv").exists()


def test_a_film_that_breaks_off_is_told_and_nothing_half_is_left(folder, photographs, capsys):
    make_clip("clip.mkv", photographs["coffee"], list(range(0, 400, 4)), sound=False)
    content = Path("clip.mkv").read_bytes()
    Path("half.mkv").write_bytes(content[: len(content) // 2])
    status = upscale("half.mkv", "-o", "half_x2.mkv")
    # What can be decoded of a film that was cut off is shown by players, too.
    assert status == 0 and 10 < len(frames("half_x2.mkv")) < 100


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
