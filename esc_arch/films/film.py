"""A film in, a larger one out: frames through the network, sound and timing as they were."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from esc_arch.errors import UserError, printable
from esc_arch.films import CODECS
from esc_arch.films.joining import join
from esc_arch.films.opening import frames_of, opened
from esc_arch.films.segments import FRAMES, Segments
from esc_arch.inference.picture_files import Picture
from esc_arch.whole_files import replacing

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler

# What players take for granted where a film does not say how its colours are meant.
_BT709, _BT601, _NARROW = 1, 6, 1
# By how much the last frame may begin before the end that a film states.
_LEEWAY = Fraction(1, 2)
_SEGMENT_FORMAT = "nut"  # Keeps the times of frames exactly, and takes every codec.


@dataclass(frozen=True)
class FilmSettings:
    """How a film is written.

    Attributes:
        codec: A key of `esc_arch.films.CODECS`.
        quality: 1 to 100; ffv1 is lossless and has none.
        batch: Frames that go through the network together.
    """

    codec: str = "h264"
    quality: int = 70
    batch: int = 1


@dataclass(frozen=True)
class Facts:
    """What a film says of itself.

    Attributes:
        width: Pixels across, as it is shown.
        height: Pixels down, as it is shown.
        frames: How many there are, about.
        time_base: What times are counted in.
        rate: Frames a second, about.
        deep: Whether it has more than 8 bits a value.
        colours: Matrix, range, primaries and transfer, as FFmpeg counts them.
        aspect: Width of a pixel by its height.
        transparent: Whether it has alpha.
        ends: When its pictures shall end, in seconds; 0 where it does not say.
    """

    width: int
    height: int
    frames: int
    time_base: Fraction
    rate: Fraction
    deep: bool
    colours: tuple[int, int, int, int]
    aspect: Fraction | None
    transparent: bool
    ends: Fraction | int


def upscale_film(
    source: Path,
    target: Path,
    upscaler: "Upscaler",
    settings: FilmSettings,
    made_by: dict[str, Any],
    watch: Callable[[int, int], None] = lambda done, all: None,
) -> list[str]:
    """Upscale a film; what a run that was ended had done is gone on from.

    Args:
        source: The film.
        target: Where the result goes.
        upscaler: What to do it with.
        settings: How to write it.
        made_by: What the frames depend on beside `source` and `settings`.
        watch: Is told how many frames are done, of how many.

    Returns:
        Lines to tell the user.

    Raises:
        UserError: It cannot be read, or not be written.
    """
    with _told_of(source):
        facts = _facts(source)
        status = os.stat(source)
        made_by = {**made_by, **vars(settings), "size": status.st_size, "time": status.st_mtime_ns}
        target.parent.mkdir(parents=True, exist_ok=True)
        segments = Segments(target, made_by)
        notes = []
        if facts.transparent:
            notes.append(f"{printable(source)}: its transparency is left out")
        done = segments.done()
        if done:
            notes.append(f"{printable(source)}: gone on from frame {done * FRAMES}")
        notes += _make_segments(source, facts, upscaler, settings, segments, watch)
        notes += join(source, target, segments)
        segments.remove()
    return notes


def why_not_kept(source: Path, target: Path, scale: int) -> str | None:
    """What shows that a file that is there is not the result of this film, or None.

    Raises:
        UserError: The source cannot be read.
    """
    with _told_of(source):
        facts = _facts(source)
    wanted = facts.width * scale, facts.height * scale
    try:
        with _told_of(target):
            found = _facts(target)
    except UserError:
        return "no film"
    # Some codecs take even sides only.
    if max(abs(found.width - wanted[0]), abs(found.height - wanted[1])) > 1:
        return f"{found.width} x {found.height}, not {wanted[0]} x {wanted[1]}"
    if os.stat(source).st_mtime > os.stat(target).st_mtime:
        return "older than its source"
    return None


@contextmanager
def _told_of(source: Path) -> Iterator[None]:
    shown = printable(source)
    try:
        yield
    except av.error.FFmpegError as error:
        reason = printable(error.strerror or error)
        raise UserError(f"{shown}: not a film that can be read, or damaged: {reason}") from None
    except OSError as error:
        where = printable(error.filename or source)
        raise UserError(f"{where}: {error.strerror or error}") from None


def _facts(source: Path) -> Facts:
    with opened(source) as film:
        if not film.streams.video:
            raise UserError(f"{printable(source)}: has no pictures in it")
        stream = film.streams.video[0]
        first = next(filter(None, frames_of(film, stream)), None)
        if first is None:
            raise UserError(f"{printable(source)}: has no frame that can be decoded")
        width, height = first.width, first.height
        turned = round(first.rotation / 90) % 2 == 1
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        seconds = film.duration / av.time_base if film.duration else 0
        context = stream.codec_context
        usual = _BT709 if height >= 720 else _BT601
        matrix = context.colorspace if context.colorspace not in (0, 2) else usual
        colours = (
            int(matrix),
            int(context.color_range) or _NARROW,
            int(context.color_primaries),
            int(context.color_trc),
        )
        return Facts(
            height if turned else width,
            width if turned else height,
            stream.frames or round(seconds * rate),
            stream.time_base,
            rate,
            max(part.bits for part in first.format.components) > 8,
            colours,
            stream.sample_aspect_ratio,
            any(part.is_alpha for part in first.format.components),
            _end_of(stream),
        )


def _end_of(stream: Any) -> Fraction | int:
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    # As Matroska tells it.
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(\.\d+)?)", stream.metadata.get("DURATION", ""))
    return sum(Fraction(clock[place]) * 60 ** (3 - place) for place in (1, 2, 3)) if clock else 0


def _frames(
    source: Path, facts: Facts, skip: int, notes: list[str]
) -> Iterator[tuple[Picture, int, int]]:
    """Frames upright, with when and how long each is shown; the first ones are left out.

    Notes are on what is damaged, and complete once the last frame was asked for.
    """
    form = "rgb48le" if facts.deep else "rgb24"
    with opened(source) as film:
        stream = film.streams.video[0]
        # Several frames at once would hide which of them are damaged.
        stream.thread_type = "SLICE"
        number, damaged, end = -1, 0, Fraction(0)
        for frame in frames_of(film, stream):
            damaged += frame is None or frame.is_corrupt
            if frame is None:
                continue
            number += 1
            time = frame.pts
            if time is None:
                time = round(number / facts.rate / facts.time_base)
            end = max(end, time * facts.time_base)
            if number < skip:
                continue
            matrix, values = facts.colours[:2]
            try:
                plain = frame.reformat(format=form, src_colorspace=matrix, src_color_range=values)
            except av.error.FFmpegError:
                raise UserError(
                    f"{printable(source)}: its colours are of a kind that FFmpeg does not make RGB "
                    f"of (matrix {matrix}); convert the film to BT.709 before"
                ) from None
            pixels = plain.to_ndarray()
            # FFmpeg's angle is counterclockwise, as numpy's.
            turns = round(frame.rotation / 90) % 4
            pixels = np.ascontiguousarray(np.rot90(pixels, turns))
            if pixels.shape[:2] != (facts.height, facts.width):
                raise UserError(
                    f"{printable(source)}: its frame {number} has {pixels.shape[1]} x "
                    f"{pixels.shape[0]} pixels, those before {facts.width} x {facts.height}; split "
                    "the film there"
                )
            yield Picture(pixels), time, frame.duration or 0
        if damaged:
            count = "1 frame is" if damaged == 1 else f"{damaged} frames are"
            notes.append(f"{printable(source)}: {count} damaged: left out or shown in part")
        if end + _LEEWAY < facts.ends:
            notes.append(
                f"{printable(source)}: breaks off: its pictures end at {float(end):.1f} s of "
                f"{float(facts.ends):.1f} s"
            )


def _ahead(items: Iterable[Any], count: int) -> Iterator[Any]:
    """Items that a thread makes before they are asked for, `count` at most."""
    source = iter(items)
    ended = object()
    with ThreadPoolExecutor(1, "decoder") as thread:
        waiting = deque(thread.submit(next, source, ended) for _ in range(count))
        while waiting:
            item = waiting.popleft().result()
            if item is ended:
                return
            waiting.append(thread.submit(next, source, ended))
            yield item


def _make_segments(
    source: Path,
    facts: Facts,
    upscaler: "Upscaler",
    settings: FilmSettings,
    segments: Segments,
    watch: Callable[[int, int], None],
) -> list[str]:
    notes: list[str] = []
    number = segments.done()
    done = number * FRAMES
    batch = min(settings.batch, upscaler.together(facts.height, facts.width, settings.batch))
    tiled = upscaler.tiles_needed(facts.height, facts.width)
    frames = _ahead(_frames(source, facts, done, notes), 2 * batch)
    watch(done, facts.frames)
    part = _Part(frames, FRAMES)
    with ThreadPoolExecutor(1, "encoder") as encoder:
        while part.has_more():
            with replacing(segments.file(number)) as file:
                writer = _SegmentWriter(file, facts, upscaler.scale, settings)
                waiting = []
                while group := part.next(1 if tiled else batch):
                    pictures = [picture for picture, _, _ in group]
                    if tiled:
                        large = [upscaler.upscale_picture(picture) for picture in pictures]
                    else:
                        large = upscaler.upscale_pictures(pictures)
                    # One group is encoded while the next is computed.
                    for future in waiting:
                        future.result()
                    waiting = [
                        encoder.submit(writer.write, picture.pixels, time, duration)
                        for picture, (_, time, duration) in zip(large, group, strict=True)
                    ]
                    done += len(group)
                    watch(done, max(facts.frames, done))
                for future in waiting:
                    future.result()
                encoder.submit(writer.close).result()
            number += 1
            part = _Part(frames, FRAMES)
    return notes


class _Part:
    """The next so many items of an iterator, in groups."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self._items, self._left = items, count
        self._first = self._one()

    def _one(self) -> list[Any]:
        self._left -= 1
        return [item for item in [next(self._items, None)] if item is not None]

    def has_more(self) -> bool:
        """Whether there is any."""
        return bool(self._first)

    def next(self, count: int) -> list[Any]:
        """As many as that, or as are left."""
        group, self._first = self._first, []
        while len(group) < count and self._left > 0:
            more = self._one()
            if not more:
                self._left = 0
                break
            group += more
        return group


class _SegmentWriter:
    """Encodes frames into one part; every part can be decoded alone."""

    def __init__(self, file: Any, facts: Facts, scale: int, settings: FilmSettings) -> None:
        self._facts = facts
        encoder, _ = CODECS[settings.codec]
        self._out = av.open(file, "w", format=_SEGMENT_FORMAT)
        stream = self._out.add_stream(encoder, rate=facts.rate)
        context = stream.codec_context
        context.width, context.height = facts.width * scale, facts.height * scale
        context.pix_fmt = _pixel_format(settings.codec, facts, context.width, context.height)
        context.time_base = stream.time_base = facts.time_base
        # Without frames that are decoded out of order parts can be joined as they are.
        context.max_b_frames = 0
        context.gop_size = FRAMES
        context.flags |= av.codec.context.Flags.global_header
        matrix, values, primaries, transfer = facts.colours
        context.colorspace, context.color_range = matrix, values
        context.color_primaries, context.color_trc = primaries, transfer
        if facts.aspect:
            context.sample_aspect_ratio = facts.aspect
        if settings.codec == "ffv1":
            # Lossless: as RGB, so that nothing is rounded on the way.
            context.options = {"level": "3", "slicecrc": "1"}
        else:
            crf = str(max(1, round((100 - settings.quality) * 0.55)))
            context.options = {"crf": crf}
            if settings.codec == "av1":
                # Else it prints dozens of lines.
                os.environ.setdefault("SVT_LOG", "1")
            if settings.codec == "hevc":
                context.options = {"crf": crf, "x265-params": "log-level=error"}
        self._stream = stream

    def write(self, pixels: np.ndarray, time: int, duration: int) -> None:
        """Encode one frame (H, W, 3)."""
        form = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        frame = av.VideoFrame.from_ndarray(pixels, format=form)
        matrix, values = self._facts.colours[:2]
        wanted = self._stream.codec_context.pix_fmt
        if wanted.startswith(("bgr", "gbr")):
            frame = frame.reformat(format=wanted)
        else:
            frame = frame.reformat(format=wanted, dst_colorspace=matrix, dst_color_range=values)
        frame.pts, frame.time_base, frame.duration = time, self._facts.time_base, duration
        for packet in self._stream.encode(frame):
            self._out.mux(packet)

    def close(self) -> None:
        """Write what the encoder still has."""
        for packet in self._stream.encode(None):
            self._out.mux(packet)
        self._out.close()


def _pixel_format(codec: str, facts: Facts, width: int, height: int) -> str:
    if codec == "ffv1":
        return "gbrp16le" if facts.deep else "bgr0"
    depth = "10le" if facts.deep else ""
    # Colours of half the size need even sides; AV1's encoder has no other.
    if codec != "av1" and (width % 2 or height % 2):
        return f"yuv444p{depth}"
    return f"yuv420p{depth}"
