"""File -> its video stream, opened so that it can make nobody read another file.

A video is untrusted input. Its container is checked first, so that a playlist that calls itself
.mp4 names no other files, then its codec; the decoder is told the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition

from videoclip.errors import VideoError
from videoclip.frames.allowed import CODECS, CONTAINERS
from videoclip.frames.wholeness import promised


class Source(NamedTuple):
    """A video file, open, and the stream of it that is read."""

    path: Path
    container: av.container.InputContainer
    stream: av.VideoStream
    rate: float
    """Frames a second on average, as the container says."""

    @property
    def format(self) -> str:
        """FFmpeg's short name of the container."""
        return self.container.format.name.split(",")[0]

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, not of the decoder."""
        return self.stream.codec_context.codec.canonical_name


def check_file(path: Path) -> None:
    """Raises VideoError where there is no file with something in it."""
    if not path.exists():
        raise VideoError(f"{path} does not exist; correct the path in the manifest")
    if not path.is_file():
        raise VideoError(f"{path} is not a file; correct the path in the manifest")
    if not path.stat().st_size:
        raise VideoError(f"{path} is empty (0 bytes); fetch it again")


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Opens a file and finds its best video stream.

    One thread decodes, as everywhere: the callers work in parallel. Where the decoder would paint
    over a damaged spot, it says so instead. Raises VideoError where that cannot be, and where the
    file is shorter than it says.
    """
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # An absolute path, so that a name such as 12:30.mp4 is not taken for a protocol.
        container = av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise VideoError(
            f"{path} is in a format that is not read here{_beginning(path)}; convert it to .mp4 "
            "or remove it"
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} is not a video that can be read ({reason(error)}{_beginning(path)}); "
            "replace it or remove it"
        ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise VideoError(f"{path} has no video stream; replace it or remove it")
        if size := promised(path):
            raise VideoError(
                f"{path} is damaged: it has {path.stat().st_size:,} bytes of {size:,}; "
                "fetch it again or remove it"
            )
        context = stream.codec_context
        if context is None or context.codec.canonical_name not in CODECS:
            name = context.codec.canonical_name if context else "no codec that is known"
            raise VideoError(f"{path} holds {name}, which is not decoded here; convert it to H.264")
        # On the codec's own context: what av.open is given does not reach the decoder.
        context.options = {"codec_whitelist": context.codec.name, "err_detect": "explode"}
        context.thread_count = 1
        yield Source(
            path, container, stream, float(stream.average_rate or stream.guessed_rate or 25)
        )


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, in one line."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _beginning(path: Path) -> str:
    """The first words of a file that is text: a failed download often leaves a web page."""
    with path.open("rb") as file:
        text = file.read(40).decode("ascii", errors="replace")
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return f", it begins with {text!r}" if readable and "\ufffd" not in text else ""
