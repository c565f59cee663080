"""File -> uint8 frames: decord, and PyAV for the files that decord cannot open.

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
from PIL import Image, ImageOps

from videoclip.errors import VideoError

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,ogg,asf"
"""FFmpeg's names of what may be opened; no playlists, no network."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are one frame."""

decord.logging.set_level(decord.logging.QUIET)


class Video(Protocol):
    """An open video."""

    timestamps: np.ndarray
    """(F,) float64: when each frame is shown, in seconds from the first; F frames in all."""

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
        stream = _video_stream(path)
        try:
            video = _Decord(path)
        except (decord.DECORDError, RuntimeError):
            video = _PyAV(path, stream)
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


def _video_stream(path: Path) -> int:
    """The index of the best video stream, after a look at the container."""
    with _container(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError(f"{path} has no video stream; replace it or remove it")
        return stream.index


@contextmanager
def _container(path: Path) -> Iterator[av.container.InputContainer]:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path), options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} is not a video that can be read ({_reason(error)}); replace it or remove it"
        ) from error
    with container:
        yield container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


class _Decord:
    """The usual reader. Frames before the start that an edit list hides are not counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = decord.VideoReader(str(path), num_threads=1)
        count = len(self.reader)
        shown = self.reader.get_frame_timestamp(list(range(count)))[:, 0].astype(np.float64)
        # Some AVI and MPEG files carry no usable time stamps: then the average rate has to do.
        usable = (
            np.isfinite(shown).all() and np.abs(shown).max() < 1e9 and (np.diff(shown) >= 0).all()
        )
        if not usable:
            shown = np.arange(count) / self.reader.get_avg_fps()
        self.visible = np.flatnonzero(shown > -1e-6)
        self.timestamps = shown[self.visible] - shown[self.visible[:1]]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = self.visible[np.asarray(indices)]
        try:
            return self.reader.get_batch(wanted).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(
                f"{self.path} is damaged: frames {wanted.min()} to {wanted.max()} of "
                f"{len(self.reader)} cannot be decoded; fetch it again or remove it"
            ) from error


class _PyAV:
    """The reader for what decord cannot open, AV1 and GIF for example; counts by decoding."""

    def __init__(self, path: Path, stream: int) -> None:
        self.path, self.stream = path, stream
        shown = [frame.time if frame.time is not None else np.nan for frame in self._decode()]
        self.timestamps = np.array(shown, dtype=np.float64)
        if np.isnan(self.timestamps).any():
            self.timestamps = np.arange(len(shown), dtype=np.float64)
        self.timestamps -= self.timestamps[:1]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = {int(index) for index in indices}
        found: dict[int, np.ndarray] = {}
        for number, frame in enumerate(self._decode()):
            if number in wanted:
                # PyAV leaves the turn of a phone's video to the caller; decord applies it.
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                found[number] = upright
            if len(found) == len(wanted):
                break
        return np.stack([found[int(index)] for index in indices])

    def _decode(self) -> Iterator[av.VideoFrame]:
        with _container(self.path) as container:
            try:
                yield from container.decode(container.streams[self.stream])
            except (av.FFmpegError, OSError) as error:
                raise VideoError(
                    f"{self.path} is damaged ({_reason(error)}); fetch it again or remove it"
                ) from error


class _Picture:
    """A picture is a video of one frame."""

    def __init__(self, path: Path) -> None:
        self.timestamps = np.zeros(1)
        try:
            with Image.open(path) as picture:
                self.pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(
                f"{path} is not a picture that can be read ({_reason(error)}); replace it"
            ) from error

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.pixels[None][np.asarray(indices)]
