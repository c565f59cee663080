"""Which frames of a clip the model sees. Pure functions: the same arguments, the same frames."""

import math
from typing import Literal

import numpy as np

from videoclip.errors import VideoError
from videoclip.randomness import generator

FrameOrder = Literal["normal", "reversed", "shuffled"]
Rule = Literal["segments", "actionclip", "seconds"]
"""How frames are chosen. segments: from equal parts of the clip, each frame once. actionclip: the
same, but a clip that is too short repeats frames, as the released code has it. seconds: one a
second, then evenly chosen, as CLIP4Clip has it."""


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


def repeated_indices(frames: int, count: int) -> np.ndarray:
    """`uniform_indices` with ActionCLIP's rule for short clips: always int64 (count,).

    Its released test repeats frames, floor(i n / T), where n <= T, and takes frame n // 2 for
    T = 1; otherwise it is the same.
    """
    _require(frames, count)
    if count == 1:
        return np.array([frames // 2])
    return np.arange(count) * frames // count if frames <= count else uniform_indices(frames, count)


def repeated_random_indices(
    frames: int, count: int, *, seed: int, epoch: int, sample: int | str
) -> np.ndarray:
    """`random_indices` with ActionCLIP's rule for short clips: always int64 (count,), sorted.

    Its released training takes each frame once and random ones again.
    """
    chosen = random_indices(frames, count, seed=seed, epoch=epoch, sample=sample)
    again = generator(seed, epoch, sample, "frames again").integers(frames, size=count)
    return np.sort(np.concatenate([chosen, again[len(chosen) :]]))


def second_indices(
    frames: int,
    rate: float,
    count: int,
    *,
    start: float | None = None,
    end: float | None = None,
    keep: Literal["head", "tail", "uniform"] = "uniform",
) -> np.ndarray:
    """One frame a second, at most `count` of them: int64, (min(seconds, count),). CLIP4Clip's rule.

    A second is int(rate) frames there, so 29 of 29.97: second s shows frame s * int(rate), from
    `start` to `end`, both included. Where these are too many, the first, the last or evenly spread
    ones are kept (its slice_framepos 0, 1, 2; all its recipes have 2). A shorter clip gives fewer,
    as there, where the rest is masked.

    Raises VideoError where none is left.
    """
    _require(frames, count)
    step = max(1, int(rate))
    first, last = start or 0.0, math.ceil(frames / step)
    last = last if end is None else min(end, last)
    seconds = first + np.arange(math.floor(last - first) + 1)
    shown = (seconds * step).astype(np.int64)
    shown = shown[shown < frames]
    if not len(shown):
        raise VideoError(
            f"the segment {first} s to {'the end' if end is None else f'{end} s'} holds no second; "
            f"the video has {frames} frames at {rate:.2f} a second: correct start and end in the "
            "manifest"
        )
    if len(shown) <= count:
        return shown
    if keep == "head":
        return shown[:count]
    if keep == "tail":
        return shown[-count:]
    # Not rounded: numpy cuts what stands behind the point, and so does the reference.
    return shown[np.linspace(0, len(shown) - 1, num=count, dtype=int)]


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
