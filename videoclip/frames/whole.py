"""File -> frames by decoding all of it: slow, and right where nothing else is."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoclip.errors import VideoError
from videoclip.frames.container import open_source, reason

KEPT = 64 << 20
"""Bytes of decoded frames that are kept for reading after they were counted."""


class Painter:
    """Decoded frames -> upright pixels, all of one size."""

    def __init__(self, short_side: int | None) -> None:
        self.short_side = short_side
        self.size: dict[str, int] = {}
        self.scale, self.color = VideoReformatter(), VideoReformatter()

    def measure(self, frame: av.VideoFrame) -> None:
        """A stream may change its size midway; the first frame's counts."""
        self.size = self.size or scaled_size(frame.width, frame.height, self.short_side)

    def paint(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3)."""
        if self.short_side:
            # In the frame's own pixel format: a color picture of full size is never made.
            frame = self.scale.reformat(frame, **self.size, interpolation="BICUBIC", threads=1)
        turn = round(frame.rotation / 90)
        frame = self.color.reformat(frame, **self.size, format="rgb24", threads=1)
        # PyAV leaves the turn of a phone's video to the caller.
        return np.rot90(frame.to_ndarray(), turn)


def scaled_size(width: int, height: int, short_side: int | None) -> dict[str, int]:
    """Sides with a short one of so many pixels, rounded down as torchvision does."""
    if short_side:
        short = min(width, height)
        width, height = short_side * width // short, short_side * height // short
    return {"width": width, "height": height}


def scaled(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """Upright pictures (T, H, W, 3) uint8 with another short side."""
    if not short_side:
        return pixels
    size, scale = scaled_size(pixels.shape[2], pixels.shape[1], short_side), VideoReformatter()
    return np.stack(
        [
            scale.reformat(
                av.VideoFrame.from_ndarray(picture, format="rgb24"),
                **size,
                interpolation="BICUBIC",
                threads=1,
            ).to_ndarray()
            for picture in pixels
        ]
    )


class Whole:
    """The reader for the others, MSVD's AVI with B-frames for example; counts by decoding.

    Strict: where the decoder would paint over a damaged spot, this is an error.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.frames: list[av.VideoFrame] = []
        """All of them as they were decoded to be counted, where they are few."""
        shown, size = [], 0
        for frame in _decode(path):
            shown.append(frame.time if frame.time is not None else np.nan)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size <= KEPT:
                self.frames.append(frame)
            else:
                self.frames.clear()
        self.timestamps = np.array(shown, dtype=np.float64)
        if not (np.diff(self.timestamps) > 0).all():  # a missing time stamp is not a number
            self.timestamps = np.arange(len(shown)) / rate
        self.timestamps -= self.timestamps[:1]

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices."""
        return _picked(self.path, self.frames or _decode(self.path), indices, short_side)


def read_whole(
    path: Path, indices: Sequence[int] | np.ndarray, short_side: int | None = None
) -> np.ndarray:
    """The frames at these indices, found by counting from the first.

    Raises VideoError where something before the last of them is damaged.
    """
    return _picked(path, _decode(path), indices, short_side)


def _picked(
    path: Path,
    frames: Iterable[av.VideoFrame],
    indices: Sequence[int] | np.ndarray,
    short_side: int | None,
) -> np.ndarray:
    painter = Painter(short_side)
    wanted = {int(index) for index in indices}
    found: dict[int, np.ndarray] = {}
    number = -1
    for number, frame in enumerate(frames):
        painter.measure(frame)
        if number in wanted:
            found[number] = painter.paint(frame)
        if len(found) == len(wanted):
            break
    if number < 0:
        raise VideoError(f"{path} holds no frame; replace the file or remove it from the manifest")
    if len(found) < len(wanted):
        raise IndexError(f"{path} has {number + 1} frames, not {max(wanted)}")
    return np.stack([found[int(index)] for index in indices])


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    with open_source(path) as source:
        number = 0
        try:
            for frame in source.container.decode(source.stream):
                yield frame
                number += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{path} is damaged at frame {number} ({reason(error)}); "
                "fetch it again or remove it"
            ) from error
