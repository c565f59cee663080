"""File -> uint8 frames: decord, and PyAV for the files that decord cannot open or cannot index.

A video is untrusted input. Its container is checked first, so that a playlist that calls itself
.mp4 cannot make the decoder read other files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import av
import decord
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from videoclip.errors import VideoError

CONTAINERS = "mov,matroska,avi,gif,mpeg,mpegts,mpegvideo,flv,ogg,asf,wav,mp3,flac"
"""FFmpeg's names of what may be opened; no playlists, no network. Sound is opened to be named."""
SIGNED = ("mov", "matroska", "avi")
"""Containers that a signature at the very start gives away, so that decord's older FFmpeg cannot
take them for something else. A transport stream after a playlist's first line is a transport
stream to PyAV and a playlist to decord, which then opens the files that it names."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are one frame."""

decord.logging.set_level(decord.logging.QUIET)


class Video(Protocol):
    """An open video."""

    timestamps: np.ndarray
    """(F,) float64: when each frame is shown, in seconds from the first; F frames in all."""
    rate: float
    """Frames a second on average, as the container says; 1 for a picture."""

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames at these indices, upright, uint8 (len(indices), H, W, 3)."""


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Opens a video file, or a picture as a video of one frame.

    Raises VideoError that names the file, what is wrong with it and what to do: at opening where
    the file is missing, empty, not a video or holds no frame, at reading where it is damaged. A
    file that decord opens and then fails on is damaged: no other decoder is tried, because some
    give smeared frames instead of an error.
    """
    path = Path(path)
    _check_file(path)
    video: Video
    if path.suffix.lower() in PICTURES:
        video = _Picture(path)
    else:
        stream, rate, for_decord = _video_stream(path)
        reader = _decord_reader(path) if for_decord else None
        video = _Decord(path, rate, *reader) if reader else _PyAV(path, rate, stream)
    if not len(video.timestamps):
        raise VideoError(f"{path} holds no frame; replace the file or remove it from the manifest")
    yield video


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"{path} does not exist; correct the path in the manifest")
    if not path.is_file():
        raise VideoError(f"{path} is not a file; correct the path in the manifest")
    if not path.stat().st_size:
        raise VideoError(f"{path} is empty (0 bytes); fetch it again")


def _video_stream(path: Path) -> tuple[int, float, bool]:
    """The index of the best video stream, its rate, and whether decord may read the file."""
    with _container(path) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise VideoError(f"{path} has no video stream; replace it or remove it")
        signed = container.format.name.split(",")[0] in SIGNED
        # decord refuses some frames narrower than 80 pixels, 16, 24, 48 and 72 for example.
        wide = min(stream.codec_context.width, stream.codec_context.height) >= 80
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return stream.index, rate, signed and wide


@contextmanager
def _container(path: Path) -> Iterator[av.container.InputContainer]:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # An absolute path, so that a name such as 12:30.mp4 is not taken for a protocol.
        container = av.open(str(path.absolute()), options=options)
    except av.ArgumentError as error:
        raise VideoError(
            f"{path} is in a format that is not read here{_beginning(path)}; convert it to .mp4 "
            "or remove it"
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} is not a video that can be read ({_reason(error)}{_beginning(path)}); "
            "replace it or remove it"
        ) from error
    with container:
        yield container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _beginning(path: Path) -> str:
    """The first words of a file that is text: a failed download often leaves a web page."""
    with path.open("rb") as file:
        text = file.read(40).decode("ascii", errors="replace")
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return f", it begins with {text!r}" if readable and "\ufffd" not in text else ""


def _decord_reader(path: Path) -> tuple[decord.VideoReader, np.ndarray] | None:
    """An open decord reader and its (F,) seconds; None where it cannot open or index the file.

    decord finds a frame by its time stamp. Files without time stamps (H.264 in AVI, as in MSVD) and
    with frames that an edit list hides (negative stamps) then give other frames than those asked
    for, without an error.
    """
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
        shown = reader.get_frame_timestamp(list(range(len(reader))))[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError):
        return None
    # A missing time stamp is a huge negative number here.
    usable = np.isfinite(shown).all() and shown[0] >= 0 and (np.diff(shown) > 0).all()
    return (reader, shown) if usable else None


class _Decord:
    """The usual reader."""

    def __init__(
        self, path: Path, rate: float, reader: decord.VideoReader, shown: np.ndarray
    ) -> None:
        self.path, self.rate, self.reader = path, rate, reader
        self.timestamps = shown - shown[:1]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(indices)
        try:
            return self.reader.get_batch(wanted).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(
                f"{self.path} is damaged: frames {wanted.min()} to {wanted.max()} of "
                f"{len(self.reader)} cannot be decoded; fetch it again or remove it"
            ) from error


class _PyAV:
    """The reader for the others, AV1, GIF and MSVD's AVI for example; counts by decoding.

    Strict: where the decoder would paint over a damaged spot, this is an error.
    """

    def __init__(self, path: Path, rate: float, stream: int) -> None:
        self.path, self.rate, self.stream = path, rate, stream
        shown = [frame.time if frame.time is not None else np.nan for frame in self._decode()]
        self.timestamps = np.array(shown, dtype=np.float64)
        if not (np.diff(self.timestamps) > 0).all():  # a missing time stamp is not a number
            self.timestamps = np.arange(len(shown)) / rate
        self.timestamps -= self.timestamps[:1]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = {int(index) for index in indices}
        found: dict[int, np.ndarray] = {}
        size: dict[str, int] = {}
        for number, frame in enumerate(self._decode()):
            # A stream may change its size midway; as with decord, the first frame's counts.
            size = size or {"width": frame.width, "height": frame.height}
            if number in wanted:
                # PyAV leaves the turn of a phone's video to the caller; decord applies it.
                pixels = frame.to_ndarray(format="rgb24", **size)
                found[number] = np.rot90(pixels, round(frame.rotation / 90))
            if len(found) == len(wanted):
                break
        if len(found) < len(wanted):
            raise IndexError(f"{self.path} has {len(self.timestamps)} frames, not {max(wanted)}")
        return np.stack([found[int(index)] for index in indices])

    def _decode(self) -> Iterator[av.VideoFrame]:
        with _container(self.path) as container:
            stream = container.streams[self.stream]
            stream.codec_context.thread_count = 1  # as decord's: the callers work in parallel
            stream.codec_context.options = {"err_detect": "explode"}
            number = 0
            try:
                for frame in container.decode(stream):
                    yield frame
                    number += 1
            except (av.FFmpegError, OSError) as error:
                raise VideoError(
                    f"{self.path} is damaged at frame {number} ({_reason(error)}); "
                    "fetch it again or remove it"
                ) from error


class _Picture:
    """A picture is a video of one frame."""

    def __init__(self, path: Path) -> None:
        self.timestamps, self.rate = np.zeros(1), 1.0
        try:
            with Image.open(path) as picture:
                self.pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(
                f"{path} is not a picture that can be read ({_reason(error)}); replace it"
            ) from error

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.pixels[None][np.asarray(indices)]
