"""File -> uint8 frames: one function, and the fastest reader that gives exactly those asked for.

docs/decoding.md says which reader takes which files, and why.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from videoclip.errors import VideoclipError, VideoError
from videoclip.frames import others
from videoclip.frames.allowed import PICTURES
from videoclip.frames.container import Source, check_file, open_source
from videoclip.frames.packed import Packed, is_packed
from videoclip.frames.plan import plan
from videoclip.frames.planned import Planned
from videoclip.frames.stills import FrameFolder, Picture
from videoclip.frames.whole import Whole

Reader = Literal["auto", "planned", "decord", "torchcodec", "whole"]
"""planned: seeks to what is asked for. decord, torchcodec: those libraries. whole: decodes from the
beginning and counts. auto: the first that is exact for the file, planned or else whole."""
VARIABLE = "VIDEOCLIP_READER"
"""Of the environment: the reader that `auto` tries first. No choice changes a frame."""


class Video(Protocol):
    """An open video."""

    timestamps: np.ndarray
    """(F,) float64: when each frame is shown, in seconds from the first; F frames in all."""
    rate: float
    """Frames a second on average, as the container says; 1 for a picture."""

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices, upright, uint8 (len(indices), H, W, 3).

        They are exact: what decoding the whole file gives. With a short side they are scaled to it,
        which takes less time than to scale them later and is not the same to the bit.
        """


@contextmanager
def open_video(path: Path, reader: Reader = "auto") -> Iterator[Video]:
    """Opens a video file, a folder of numbered pictures, a picture, or a clip of a packed store.

    A picture is a video of one frame. Raises VideoError that names the file, what is wrong with it
    and what to do: at opening where the file is missing, empty, cut off, not a video or holds no
    frame, at reading where it is damaged. What a reader fails on is only given by another where
    that one is strict, because some give smeared frames instead of an error. An open video belongs
    to the process and thread that opened it.
    """
    path = Path(path)
    if is_packed(path):
        yield Packed(path)
        return
    if path.is_dir():
        yield FrameFolder(path)
        return
    check_file(path)
    if path.suffix.lower() in PICTURES:
        yield Picture(path)
        return
    with open_source(path) as source:
        video = _reader(source, reader)
        if not len(video.timestamps):
            raise VideoError(
                f"{path} holds no frame; replace the file or remove it from the manifest"
            )
        yield video


def _reader(source: Source, reader: Reader) -> Video:
    names = (_preferred(), "planned", "whole") if reader == "auto" else (reader,)
    found = plan(source) if names != ("whole",) else None
    for name in names:
        if name == "planned" and found:
            return Planned(source, found)
        if name == "decord" and found and (video := others.decord_reader(source, found)):
            return video
        if name == "torchcodec" and found and (video := others.torchcodec_reader(source, found)):
            return video
        if name == "whole":
            return Whole(source.path, source.rate)
    raise VideoError(
        f"the reader {reader} does not give exactly the frames of {source.path}; let the reader be "
        "auto"
    )


def _preferred() -> str:
    """What the environment says: it reaches every process, whoever starts it."""
    name = os.environ.get(VARIABLE) or "auto"
    if name not in get_args(Reader):
        raise VideoclipError(
            f"{VARIABLE} is {name!r}; let it be one of {', '.join(get_args(Reader))}"
        )
    return name
