"""Which frames of a clip the model sees. Pure functions: the same arguments, the same frames."""

from typing import Literal

import numpy as np

from videoclip.errors import VideoError
from videoclip.randomness import generator

FrameOrder = Literal["normal", "reversed", "shuffled"]


def uniform_indices(frames: int, count: int) -> np.ndarray:
    """The middle frame of each of `count` equal segments of a clip: int64, (min(frames, count),).

    floor(i n / T + (n / T - 1) / 2), the deterministic sampling of TSN and ActionCLIP. A clip with
    fewer frames than asked for gives each of them once; nothing is repeated.
    """
    _require(frames, count)
    if frames <= count:
        return np.arange(frames)
    # In halves, so that integers decide and not rounding: (2 i n + n - T) // (2 T).
    return (2 * np.arange(count) * frames + frames - count) // (2 * count)


def random_indices(
    frames: int, count: int, *, seed: int, epoch: int, sample: int | str
) -> np.ndarray:
    """One random frame of each of `count` equal segments: int64, (min(frames, count),), sorted.

    A pure function of (seed, epoch, sample). Segment i is [floor(i n / T), floor((i + 1) n / T)).
    """
    _require(frames, count)
    if frames <= count:
        return np.arange(frames)
    edges = np.arange(count + 1) * frames // count
    return generator(seed, epoch, sample, "frames").integers(edges[:-1], edges[1:])


def frame_range(timestamps: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last + 1 index of the frames shown at start <= t < end (seconds; None is open).

    `timestamps` (F,) are seconds from the first frame. Raises VideoError where none is left.
    """
    low = 0 if start is None else int(np.searchsorted(timestamps, start, side="left"))
    high = len(timestamps) if end is None else int(np.searchsorted(timestamps, end, side="left"))
    if high <= low:
        last = timestamps[-1] if len(timestamps) else 0.0
        raise VideoError(
            f"the segment {start if start is not None else 0} s to "
            f"{end if end is not None else 'the end'} s holds no frame; the last frame of the "
            f"video is shown at {last:.3f} s: correct start and end in the manifest"
        )
    return low, high


def frame_order(count: int, order: FrameOrder, *, sample: str, seed: int = 0) -> np.ndarray:
    """The order in which an evaluation shows `count` frames: a permutation, int64, (count,).

    "shuffled" is a pure function of (seed, sample) and never the identity for two frames or more,
    so that it takes the order away from every clip.
    """
    if order == "normal":
        return np.arange(count)
    if order == "reversed":
        return np.arange(count)[::-1].copy()
    numbers = generator(seed, sample, "frame order")
    while True:
        shuffled = numbers.permutation(count)
        if count < 2 or (shuffled != np.arange(count)).any():
            return shuffled


def _require(frames: int, count: int) -> None:
    if frames < 1 or count < 1:
        raise ValueError(f"cannot take {count} frames of {frames}; both must be at least 1")
