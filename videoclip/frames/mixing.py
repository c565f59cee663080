"""Batch -> Batch: two clips in one, and their matches in proportion (Mixup and CutMix).

X-CLIP's strengths (Ni et al. 2022): half of the batches are faded into each other (Mixup, weights
of Beta(0.8, 0.8)), in the others a rectangle comes from the other clip (CutMix, its area of
Beta(1, 1)). torchvision's v2 transforms do the same for pictures; those pair neighbors too, but
know neither clips of ragged length nor processes that share a batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoclip.randomness import generator
from videoclip.types import Batch, Frames, Keys

MIXUP, CUTMIX, SWITCH = 0.8, 1.0, 0.5
"""Alphas of the two, and the share of batches that get the second one."""


class Mixing(NamedTuple):
    """How the clips of one batch are mixed, all of them alike."""

    own: float
    """The share of a clip that stays its own."""
    box: tuple[int, int, int, int] | None
    """Top, left, bottom and right of what comes from the other clip; None: all is faded."""


def mixing(height: int, width: int, *, seed: int, epoch: int, step: int) -> Mixing:
    """What is drawn for a batch: a pure function of (seed, epoch, step)."""
    numbers = generator(seed, epoch, step, "mix")
    if numbers.random() >= SWITCH:
        return Mixing(float(numbers.beta(MIXUP, MIXUP)), None)
    own = numbers.beta(CUTMIX, CUTMIX)
    row, column = numbers.integers(height), numbers.integers(width)
    half = (int(0.5 * side * np.sqrt(1 - own)) for side in (height, width))
    (top, bottom), (left, right) = (
        (max(center - reach, 0), min(center + reach, side))
        for center, reach, side in zip((row, column), half, (height, width), strict=True)
    )
    # What the border cuts off is not taken from the clip.
    area = (bottom - top) * (right - left)
    return Mixing(
        float(1 - area / (height * width)), (int(top), int(left), int(bottom), int(right))
    )


def mix(batch: Batch, *, seed: int, epoch: int, step: int, after: Batch | None = None) -> Batch:
    """Mixes every clip with the next one, and its keys and matches with it.

    The last clip is mixed with the first of `after`: of processes that share a batch, what the next
    one has first; None is the batch itself. A clip keeps its length: the frames of the other are
    shown at the same share of its time. Pixels stay uint8, rounded.
    """
    assert batch.keys is not None, "mixed clips need keys"
    after = after or batch
    height, width = batch.frames.pixels.shape[-2:]
    chosen = mixing(height, width, seed=seed, epoch=epoch, step=step)
    pixels = batch.frames.pixels.clone()
    for row in range(len(batch.names)):
        other = (batch, row + 1) if row + 1 < len(batch.names) else (after, 0)
        length = int(batch.frames.mask[row].sum())
        own = batch.frames.pixels[row, :length]
        pixels[row, :length] = _mixed(own, _as_long(other[0].frames, other[1], length), chosen)
    clip = torch.cat([batch.keys.clip[1:], after.keys.clip[:1]])[: len(batch.names)]
    keys = Keys(
        batch.keys.text,
        torch.cat([batch.keys.clip, clip], dim=1),
        torch.tensor([chosen.own, 1 - chosen.own]).repeat(len(batch.names), 1),
        batch.keys.shared,
    )
    frames = Frames(pixels, batch.frames.mask)
    return batch._replace(frames=frames, matches=keys.matches(), keys=keys)


def _as_long(frames: Frames, row: int, length: int) -> Tensor:
    """The real frames of a clip, evenly chosen or repeated: (length, 3, H, W)."""
    count = int(frames.mask[row].sum())
    return frames.pixels[row, torch.arange(length) * count // max(length, 1)]


def _mixed(own: Tensor, other: Tensor, chosen: Mixing) -> Tensor:
    if chosen.box is None:
        faded = chosen.own * own.float() + (1 - chosen.own) * other.float()
        return faded.round().to(own.dtype)
    top, left, bottom, right = chosen.box
    mixed = own.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed
