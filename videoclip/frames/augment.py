"""Frames of a training clip -> other frames: what a recipe changes in them.

Every draw is a pure function of (seed, epoch, sample): neither workers nor the order of clips play
a part. Pixels stay uint8.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transform

from videoclip.frames.transforms import random_crop
from videoclip.randomness import generator

Recipe = Literal["crop", "actionclip", "actionclip-randaugment", "none"]
SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of ActionCLIP's cuts, as shares of the short side."""
SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise)\b", re.IGNORECASE)
"""Words that are wrong in a mirror."""


def augment(
    pixels: Tensor,
    size: int,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    sample: str,
    smallest: float = 0.8,
    mirror: bool = True,
) -> Tensor:
    """Frames (T, 3, h, w) uint8 -> (T, 3, size, size) uint8.

    none: the middle. crop: a random part of at least `smallest` of its area, the same in all
    frames. actionclip, as its released code: a cut out of 13 places in one of 10 shapes, mirrored
    for every second clip, the same in all frames; for 80 % of the clips other colors, drawn again
    for every frame; 20 % of the clips in gray. With -randaugment two operations of strength 9 of
    30 before that, other ones for every frame (torchvision's set of operations). Without `mirror`
    left and right stay, as ActionCLIP has it for Something-Something.
    """
    key = {"seed": seed, "epoch": epoch, "sample": sample}
    if recipe == "none":
        return _middle(pixels, size)
    if recipe == "crop":
        return random_crop(_middle(pixels, size), smallest, **key)
    numbers = generator(seed, epoch, sample, "augment")
    with _drawn_from(int(numbers.integers(2**62))):
        if recipe == "actionclip-randaugment":
            # 31 bins, so that a strength of 9 is 9 / 30 of the strongest, as there.
            change = v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31)
            pixels = torch.stack([change(frame) for frame in pixels])
        boxes = multi_scale_boxes(*pixels.shape[-2:], size)
        pixels = transform.resized_crop(
            pixels, *boxes[numbers.integers(len(boxes))], size=[size, size], antialias=True
        )
        if numbers.random() < 0.5 and mirror:
            pixels = transform.horizontal_flip(pixels)
        if numbers.random() < 0.8:
            jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
            pixels = torch.stack([jitter(frame) for frame in pixels])
        if numbers.random() < 0.2:
            pixels = transform.rgb_to_grayscale(pixels, num_output_channels=3)
    return pixels


def multi_scale_boxes(height: int, width: int, size: int) -> list[tuple[int, int, int, int]]:
    """TSN's and ActionCLIP's cuts, (top, left, height, width): 10 shapes at 13 places each.

    Sides are shares of the short side, neighbors in `SCALES` at most, and become `size` where they
    are less than 3 pixels from it.
    """
    short = min(height, width)
    sides = [int(short * scale) for scale in SCALES]
    sides = [min(size, short) if abs(side - size) < 3 else side for side in sides]
    shapes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    places = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(1, 1), (1, 3), (3, 1), (3, 3)]
    return [
        (y * ((height - h) // 4), x * ((width - w) // 4), h, w)
        for h, w in shapes
        for y, x in places
    ]


def tells_sides(texts: Iterable[str]) -> bool:
    """Whether a text says left or right: then nothing may be mirrored."""
    return any(SIDES.search(text) for text in texts)


def _middle(pixels: Tensor, size: int) -> Tensor:
    """(T, 3, h, w) -> (T, 3, size, size): what the tower would see without augmentation."""
    if pixels.shape[-2:] != (size, size):
        pixels = transform.resize(
            pixels, [size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        )
        pixels = transform.center_crop(pixels, [size, size])
    return pixels


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """torchvision draws from torch's global state: it is set, and put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
