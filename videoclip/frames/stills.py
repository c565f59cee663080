"""Pictures -> frames: one picture is a video of one frame, a folder of numbered ones a video."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from videoclip.errors import VideoError
from videoclip.frames.container import reason
from videoclip.frames.numbered import numbered
from videoclip.frames.whole import scaled


class Picture:
    """A picture is a video of one frame."""

    def __init__(self, path: Path) -> None:
        self.timestamps, self.rate = np.zeros(1), 1.0
        self.pixels = _pixels(path)[None]

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The picture, as often as it is asked for."""
        return scaled(self.pixels[np.asarray(indices)], short_side)


class FrameFolder:
    """A folder of pictures whose names end in a number: frames that somebody has extracted.

    They are 25 a second, or so many as a file `rate.txt` in the folder says. A number that is
    missing between the first and the last is an error, for frames would move in time.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rate = path, _rate(path)
        self.paths = numbered(path)
        self.timestamps = np.arange(len(self.paths)) / self.rate

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices. Raises VideoError where one has another size."""
        found: dict[int, np.ndarray] = {}
        for index in np.unique(indices).tolist():
            found[index] = _pixels(self.paths[index])
            first = next(iter(found.values()))
            if found[index].shape != first.shape:
                (height, width), (high, wide) = found[index].shape[:2], first.shape[:2]
                raise VideoError(
                    f"{self.paths[index]} has {width} x {height} pixels, an earlier frame {wide} x "
                    f"{high}; extract the frames of this video again"
                )
        return scaled(np.stack([found[int(index)] for index in indices]), short_side)


def _rate(folder: Path) -> float:
    path = folder / "rate.txt"
    try:
        rate = float(path.read_text().strip()) if path.is_file() else 25.0
    except (OSError, ValueError) as error:
        raise VideoError(f"{path} is no number of frames a second: {reason(error)}") from error
    if not 0 < rate < 100_000:
        raise VideoError(f"{path} says {rate} frames a second; write a positive number")
    return rate


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{path} is not a picture that can be read ({reason(error)}); replace it"
        ) from error
