"""Several looks at one clip: clips in time x crops in space, whose probabilities are averaged.

File -> Frames of an evaluation. pytorchvideo's sampler says where in time a clip begins.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from videoclip.errors import VideoclipError
from videoclip.frames.sampling import Rule, repeated_indices, uniform_indices

NAMED = ("1x1", "3x1", "4x3", "10x3")
"""The protocols that are published; any number of clips x 1 or 3 crops has a name of this form."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which parts of a clip are shown, in time and in space."""

    clips: int = 1
    """In time."""
    crops: Literal[1, 3] = 1
    """In space. 1: the middle. 3: both ends of the longer side and its middle, which together show
    the whole frame."""
    size: int = 224
    """Height and width of a crop in pixels."""
    resize: int | None = None
    """The short side of the frames before they are cropped. None: ActionCLIP's size * 256 // 224
    for one crop, and `size` for three (TSM's full resolution, X-CLIP, pytorchvideo)."""
    seconds: float | None = None
    """How long a clip is, as in dense sampling (TSM, SlowFast). None: every clip spans the whole
    video, each with other frames (X-CLIP, Text4Vis)."""

    def __post_init__(self) -> None:
        """Raises VideoclipError for views that show nothing."""
        if self.clips < 1 or self.crops not in (1, 3):
            raise VideoclipError(
                f"there are no views {self.clips}x{self.crops}; take at least one clip, and 1 or 3 "
                "crops"
            )
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise VideoclipError(f"a clip of {self.seconds} seconds shows nothing; take more")
        if self.short_side < self.size:
            raise VideoclipError(
                f"frames with a short side of {self.resize} hold no crop of {self.size}; "
                "resize them to more"
            )

    @property
    def short_side(self) -> int:
        """Of the frames before they are cropped, in pixels."""
        if self.resize is not None:
            return self.resize
        return self.size * 256 // 224 if self.crops == 1 else self.size


def views_named(name: str, *, size: int = 224, seconds: float | None = None) -> Views:
    """The views of a name such as 4x3: 4 clips in time, 3 crops of each.

    Raises VideoclipError for a name of another form.
    """
    found = re.fullmatch(r"(\d{1,3})x([13])", name)
    if not found:
        raise VideoclipError(
            f"no views are named {name!r}; known: {', '.join(NAMED)}, or another number of clips x "
            "1 or 3 crops"
        )
    return Views(clips=int(found[1]), crops=int(found[2]), size=size, seconds=seconds)


def view_indices(
    timestamps: np.ndarray, count: int, views: Views, rule: Rule = "segments"
) -> np.ndarray:
    """Which frames each clip of a video shows: int64 (clips, T), T = min(F, count).

    `timestamps` (F,) are the seconds at which the video's frames are shown. One clip without a
    length is the deterministic sample of `rule`. Several without a length have their frames F / T
    apart: pytorchvideo's sampler moves a window of T - 1 such steps over the video. Clips with a
    length have the middle frames of their equal parts; where one holds fewer than the longest it
    repeats some, floor(i n / T). With the rule "actionclip" T is always `count`.
    """
    frames = len(timestamps)
    if views.seconds is not None:
        return _windows(timestamps, count, views, rule)
    length = count if rule == "actionclip" else min(frames, count)
    if views.clips == 1 or frames <= length:
        return np.tile(_middles(frames, length), (views.clips, 1))
    step = Fraction(frames, length)
    starts = _starts(step * (length - 1), Fraction(frames), views.clips)
    return np.array([[math.floor(start + i * step) for i in range(length)] for start in starts])


def _windows(timestamps: np.ndarray, count: int, views: Views, rule: Rule) -> np.ndarray:
    """The frames of clips with a length in seconds."""
    shown = timestamps - timestamps[0]
    # The last frame is shown as long as the others are on average.
    duration = shown[-1] * len(shown) / max(len(shown) - 1, 1)
    starts = [float(s) for s in _starts(Fraction(views.seconds), Fraction(duration), views.clips)]
    # The frame that is being shown when a clip begins belongs to it: so none is ever empty.
    first = np.searchsorted(shown, starts, side="right") - 1
    last = np.searchsorted(shown, np.add(starts, views.seconds), side="left")
    held = np.maximum(last - first, 1)
    length = count if rule == "actionclip" else min(held.max(), count)
    return np.stack([f + _middles(n, length) for f, n in zip(first, held, strict=True)])


def _starts(length: Fraction, duration: Fraction, clips: int) -> list[Fraction]:
    """Where pytorchvideo lets so many clips of one length begin in a video."""
    sampler = ConstantClipsPerVideoSampler(length, clips)
    return [sampler(0, duration, {}).clip_start_sec for _ in range(clips)]


def _middles(frames: int, count: int) -> np.ndarray:
    """Exactly `count` of these frames: the middles of equal parts, or repeated ones."""
    if frames < count:
        return repeated_indices(frames, count)
    return uniform_indices(frames, count)


def crops_of(pixels: Tensor, views: Views) -> Tensor:
    """Frames (..., h, w) whose short side is `views.short_side` -> crops (crops, ..., size, size).

    Three crops stand where pytorchvideo's `uniform_crop` has them: left, middle and right, or top,
    middle and bottom. (Its transforms cannot be imported with a torchvision after 0.16.)
    """
    if views.crops == 1:
        return transform.center_crop(pixels, [views.size, views.size])[None]
    height, width = pixels.shape[-2:]
    top, left = math.ceil((height - views.size) / 2), math.ceil((width - views.size) / 2)
    corners = [(top, 0), (top, left), (top, width - views.size)]
    if height > width:
        corners = [(0, left), (top, left), (height - views.size, left)]
    parts = [pixels[..., y : y + views.size, x : x + views.size] for y, x in corners]
    return torch.stack(parts)
