"""Films of all kinds: what goes along with their pictures, and what cannot be upscaled."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import UNEVEN, av, make_clip, upscale


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
