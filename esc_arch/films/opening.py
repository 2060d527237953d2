"""Opening a film that may be a stranger's."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av

from esc_arch.inference.regular_files import open_regular

# Not those that name other files to read, here or on the network, whatever the file's name says.
_READ = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg,ogg,flv,asf", "protocol_whitelist": ""}


@contextmanager
def opened(source: Path) -> Iterator[Any]:
    """A film as PyAV has it, from a file that is its own.

    Raises:
        UserError: It is a folder, a pipe or a device.
        av.error.FFmpegError: It is no film.
    """
    # Not by its name, in which FFmpeg sees protocols: "concat:other.mp4".
    with open_regular(source) as file, av.open(file, container_options=_READ) as film:
        yield film


def packets_of(film: Any, *streams: Any) -> Iterator[Any]:
    """Packets of a film, to where it breaks off, if it does."""
    with suppress(av.error.InvalidDataError):
        yield from film.demux(*streams)


def frames_of(film: Any, stream: Any) -> Iterator[Any]:
    """Frames of a film; None for what cannot be decoded."""
    for packet in packets_of(film, stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            frames = [None]
        yield from frames
