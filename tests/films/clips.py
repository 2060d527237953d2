"""Films of a few frames, and what is in one."""

from fractions import Fraction

import numpy as np
import pytest

import esc_arch
from esc_arch.cli.main import main
from esc_arch.inference.picture_files import Picture

av = pytest.importorskip("av", reason="needs PyAV")


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
