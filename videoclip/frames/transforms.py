"""uint8 frames -> what the tower expects: the one place that resizes, crops and normalizes.

Frames stay uint8 until they are on the tower's device, so that a batch is an eighth of what
float64 frames (CLIP4Clip's loader) would be.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop as _RandomResizedCrop
from torchvision.transforms.v2 import functional as transform

from videoclip.randomness import generator

Fit = Literal["crop", "squash"]
StoredFit = Literal["crop", "squash", "whole"]
"""How frames are kept: as the tower takes them, or whole, for what cuts them later."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How pixels are prepared; it belongs to the weights and travels with them."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, of values in 0..1; the default is OpenAI's."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per channel, of values in 0..1; the default is OpenAI's."""
    fit: Fit = "crop"
    """How a picture becomes a square: its middle is kept, as OpenAI does, or it is squashed, as for
    SigLIP and some of open_clip's models (resize_mode squash)."""

    def __post_init__(self) -> None:
        """Raises ValueError where the pixels would be divided by nothing."""
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"the pixel standard deviation is {self.std}; it must be over 0")


def resize_and_crop(frames: np.ndarray, size: int, fit: StoredFit = "crop") -> Tensor:
    """Frames (T, H, W, 3) uint8 -> (T, 3, size, size) uint8; fit "whole": (T, 3, h, w).

    The short side becomes `size` (bicubic with antialiasing) and the middle is kept; to fit by
    squash both sides become `size`, and of whole frames nothing is cut off. Of the values that
    OpenAI's PIL pipeline gives 0.2 % are 1/255 off and one in a million 2/255 (measured on 84 real
    pictures); without antialiasing they would be up to 26/255 off.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if fit == "crop" and min(pixels.shape[-2:]) == size:  # as packed: cut before it is copied
        return transform.center_crop(pixels, [size, size]).contiguous()
    pixels = pixels.contiguous()
    pixels = transform.resize(
        pixels, _sides(size, fit), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return pixels if fit == "whole" else transform.center_crop(pixels, [size, size])


def image_pixels(
    image: Image.Image,
    size: int,
    *,
    fit: Fit = "crop",
    resize: Literal["exact", "tensor"] = "exact",
) -> Tensor:
    """A picture -> (3, size, size) uint8: resized (bicubic) and cut to `fit`, in RGB.

    exact: to the bit what OpenAI's pipeline gives with the same Pillow; it resizes in the picture's
    own mode and converts to RGB last. (Pillow 13 begins with the height where a picture is far
    taller than wide, older ones never do: up to 14/255 apart, on noise.) tensor: what
    `resize_and_crop` gives for frames; further off where a palette or transparency is converted
    before it is resized.
    """
    if resize == "tensor":
        return resize_and_crop(np.array(image.convert("RGB"))[None], size, fit)[0]
    resized = transform.resize(image, _sides(size, fit), interpolation=InterpolationMode.BICUBIC)
    cropped = transform.center_crop(resized, [size, size]).convert("RGB")
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()


def _sides(size: int, fit: StoredFit) -> list[int]:
    """What torchvision takes: one number is the short side, two are both."""
    return [size, size] if fit == "squash" else [size]


def random_crop(pixels: Tensor, smallest: float, *, seed: int, epoch: int, sample: str) -> Tensor:
    """Cuts the same random part out of all frames (T, 3, H, W) of a clip and resizes it back.

    The part covers `smallest`..1 of the area, and is a pure function of (seed, epoch, sample).
    Nothing is mirrored: captions say left and right.
    """
    if smallest >= 1:
        return pixels
    numbers = generator(seed, epoch, sample, "crop")
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global state
        torch.manual_seed(int(numbers.integers(2**62)))
        box = _RandomResizedCrop(1, scale=(smallest, 1.0), ratio=(0.95, 1.05)).make_params([pixels])
    return transform.resized_crop(
        pixels,
        **box,
        size=list(pixels.shape[-2:]),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )


def random_resized_crop(
    image: Image.Image, size: int, smallest: float, *, seed: int, epoch: int, sample: str
) -> Tensor:
    """Cuts a random part out of a picture and resizes it -> (3, size, size) uint8, in RGB.

    The part covers `smallest`..1 of the area, with sides of 3:4 to 4:3, and is a pure function of
    (seed, epoch, sample); open_clip trains so, with 0.9. Nothing is mirrored: captions say left
    and right.
    """
    numbers = generator(seed, epoch, sample, "crop")
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global state
        torch.manual_seed(int(numbers.integers(2**62)))
        box = _RandomResizedCrop(1, scale=(smallest, 1.0)).make_params([image])
    cut = transform.resized_crop(
        image, **box, size=[size, size], interpolation=InterpolationMode.BICUBIC
    )
    return torch.from_numpy(np.array(cut.convert("RGB"))).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) uint8 -> float32, per channel (value / 255 - mean) / std."""
    shape = (3, 1, 1)
    return (pixels.float() / 255 - mean.view(shape)) / std.view(shape)
