"""The parts of a larger film behind each other, beside all that the film has but its pictures."""

import heapq
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from esc_arch.errors import UserError, printable
from esc_arch.films.opening import opened, packets_of
from esc_arch.films.segments import Segments
from esc_arch.whole_files import replacing

_FORMATS = {".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".mov": "mov"}


def join(source: Path, target: Path, segments: Segments) -> list[str]:
    """Write a film of parts, and of the sound, subtitles, chapters and fonts of the source.

    Args:
        source: The film that was upscaled.
        target: Where the result goes, whole or not at all.
        segments: Its pictures.

    Returns:
        Lines on what the result cannot hold.

    Raises:
        UserError: It can hold none of it.
    """
    notes = []
    form = _FORMATS.get(target.suffix.lower(), "mp4")
    with opened(source) as film, replacing(target) as file:
        out = av.open(file, "w", format=form)
        out.metadata.update(film.metadata)
        pictures = film.streams.video[0]
        with av.open(str(segments.file(0))) as first:
            video = out.add_stream_from_template(first.streams.video[0], opaque=True)
        # Its other texts may tell of the codec and the size that it had.
        for name in ("language", "title"):
            if name in pictures.metadata:
                video.metadata[name] = pictures.metadata[name]
        copied = {}
        for stream in film.streams:
            if stream.type not in ("audio", "subtitle", "attachment"):
                continue
            try:
                copied[stream.index] = _add_copy(out, stream)
            except (av.error.FFmpegError, ValueError):
                codec = f" ({stream.codec_context.name})" if stream.codec_context else ""
                notes.append(
                    f"{printable(source)}: its {stream.type}{codec} does not fit {target.suffix}: "
                    "left out"
                )
        with suppress(AttributeError):  # Of a PyAV before 14.1.
            out.set_chapters(film.chapters())
        try:
            out.start_encoding()
        except av.error.FFmpegError as error:
            raise UserError(
                f"{printable(target)}: {target.suffix} cannot hold this: {error.strerror}; .mkv "
                "holds nearly everything"
            ) from None
        streams = [stream for stream in film.streams if copied.get(stream.index) is not None]
        streams = [stream for stream in streams if stream.type != "attachment"]
        sound = packets_of(film, *streams) if streams else iter(())
        both = heapq.merge(
            _timed(_video_packets(source, segments)), _timed(sound), key=lambda timed: timed[0]
        )
        for _, packet in both:
            of_video = packet.stream.type == "video"
            packet.stream = video if of_video else copied[packet.stream.index]
            out.mux(packet)
        out.close()
    return notes


def _add_copy(out: Any, stream: Any) -> Any:
    """Add a stream like another, with what is known of it: its language, whether it is forced."""
    if stream.type == "attachment":
        if out.format.name != "matroska" or not hasattr(out, "add_attachment"):
            raise ValueError
        texts = stream.metadata
        name = texts.get("filename", "attachment")
        return out.add_attachment(name, texts.get("mimetype", ""), stream.data)
    copy = out.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(stream.metadata)
    with suppress(AttributeError, TypeError):  # Of an older PyAV.
        copy.disposition = stream.disposition
    return copy


def _video_packets(source: Path, segments: Segments) -> Iterator[Any]:
    """Those of all parts, each for as long as the source shows its frame: parts do not say that."""
    with opened(source) as film:
        stream = film.streams.video[0]
        durations = {
            packet.pts * packet.time_base: packet.duration * packet.time_base
            for packet in packets_of(film, stream)
            if packet.pts is not None and packet.duration
        }
    for number in range(segments.done()):
        with av.open(str(segments.file(number))) as part:
            for packet in part.demux(part.streams.video[0]):
                if packet.size:
                    duration = durations.get((packet.pts or 0) * packet.time_base)
                    if duration is not None:
                        packet.duration = round(duration / packet.time_base)
                    yield packet


def _timed(packets: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    for packet in packets:
        time = packet.pts if packet.dts is None else packet.dts
        if time is not None:
            yield float(time * packet.time_base), packet
