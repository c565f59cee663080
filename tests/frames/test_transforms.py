"""Pixels: to the bit what PIL gives in the exact mode, and how near the tensor mode is."""

import warnings

import numpy as np
import open_clip
import pytest
import torch
from pictures_on_disk import picture
from PIL import Image
from torch import Tensor
from torchvision import transforms as torchvision_v1

from videoclip.frames.transforms import Fit, Pixels, image_pixels, normalize, resize_and_crop

SIZES = [(640, 360), (360, 640), (224, 224), (31, 31), (900, 100), (225, 224), (333, 500)]
"""Width and height."""


def by_pil(image: Image.Image, size: int) -> Image.Image:
    """OpenAI's pipeline in PIL's own words: resize, crop, then RGB."""
    width, height = image.size
    if width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    if image.size != target:
        image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in target)
    return image.crop((left, top, left + size, top + size)).convert("RGB")


def with_alpha(mode: str) -> Image.Image:
    image = picture(100, 80, mode)
    image.putalpha(Image.fromarray(np.arange(8000, dtype=np.uint8).reshape(80, 100)))
    return image


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 224])
def test_the_exact_mode_is_pil_to_the_bit(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape)
    found = image_pixels(image, size)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(by_pil(image, size)))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "I;16"])
def test_pictures_are_resized_in_their_own_mode(mode: str) -> None:
    image = with_alpha(mode[:-1]) if mode in ("RGBA", "LA") else picture(100, 80, mode)
    found = image_pixels(image, 32)
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(by_pil(image, 32)))


def normalized(image: Image.Image, size: int) -> Tensor:
    constants = Pixels()
    mean, std = torch.tensor(constants.mean), torch.tensor(constants.std)
    return normalize(image_pixels(image, size), mean, std)


@pytest.mark.parametrize("shape", SIZES)
def test_normalized_pixels_equal_torchvision_and_open_clip_to_the_bit(shape) -> None:
    image = picture(*shape)
    found = normalized(image, 224)
    assert found.dtype == torch.float32
    pipeline = torchvision_v1.Compose([
        torchvision_v1.Resize(224, torchvision_v1.InterpolationMode.BICUBIC),
        torchvision_v1.CenterCrop(224),
        torchvision_v1.ToTensor(),
        torchvision_v1.Normalize(Pixels().mean, Pixels().std),
    ])  # fmt: skip
    assert torch.equal(found, pipeline(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(found, open_clip.image_transform(224, is_train=False)(image))


@pytest.mark.parametrize("shape", SIZES)
def test_squashed_pictures_equal_pil_and_open_clip_to_the_bit(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    found = image_pixels(image, 64, fit="squash")
    squashed = image.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(squashed))
    theirs = open_clip.image_transform(
        64, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(found / 255, theirs(image))


@pytest.mark.parametrize("std", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_pixels_are_not_divided_by_nothing(std) -> None:
    with pytest.raises(ValueError, match="it must be over 0"):
        Pixels(std=std)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_tensor_mode_is_near(shape: tuple[int, int], fit: Fit) -> None:
    """Nearly all values are equal; without antialiasing whole edges would differ.

    Pillow squashes pictures that are taller than wide in the other order, and rounds in between.
    """
    image = picture(*shape)
    exact = image_pixels(image, 112, fit=fit).int()
    fast = image_pixels(image, 112, fit=fit, resize="tensor").int()
    difference = (exact - fast).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < (0.2 if fit == "squash" else 0.01)
    frames = resize_and_crop(np.array(image)[None], 112, fit)
    assert torch.equal(frames[0].int(), fast)


def test_where_the_tensor_mode_is_further_off() -> None:
    """Transparency weighs the colors when PIL resizes."""
    image = with_alpha("RGB")
    exact, fast = image_pixels(image, 32), image_pixels(image, 32, resize="tensor")
    assert fast.shape == exact.shape == (3, 32, 32)
    assert (exact.int() - fast.int()).abs().max() > 2
