"""Augmentation: pure draws, ActionCLIP's cuts and strengths, and which draws frames share."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from videoclip.frames.augment import augment, multi_scale_boxes, tells_sides
from videoclip.frames.transforms import random_crop

RECIPES = ("none", "crop", "actionclip", "actionclip-randaugment")


def frames(count: int = 5, height: int = 40, width: int = 56) -> Tensor:
    """The same smooth picture in all frames, so that what differs later was drawn per frame."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack([40 + 150 * x, 60 + 120 * y, 200 - 140 * x * y])
    return picture.byte().expand(count, -1, -1, -1).clone()


def drawn(recipe: str, sample: str, pixels: Tensor | None = None, **key: object) -> Tensor:
    pixels = frames() if pixels is None else pixels
    return augment(pixels, 32, recipe, **({"seed": 0, "epoch": 1, "sample": sample} | key))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pure_function_of_its_key(recipe: str) -> None:
    before, pixels = torch.random.get_rng_state(), frames()
    first = drawn(recipe, "a", pixels)
    assert first.shape == (5, 3, 32, 32)
    assert first.dtype == torch.uint8
    torch.manual_seed(77)
    assert torch.equal(drawn(recipe, "a"), first)
    torch.random.set_rng_state(before)
    drawn(recipe, "b")
    assert torch.equal(torch.random.get_rng_state(), before), "the global state stays"
    assert torch.equal(pixels, frames()), "the frames that were given stay"
    others = [drawn(recipe, "b"), drawn(recipe, "a", epoch=2), drawn(recipe, "a", seed=1)]
    assert [torch.equal(other, first) for other in others] == [recipe == "none"] * 3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 37, 500), (2, 90, 36), (2, 32, 32), (4, 33, 9)])
def test_every_shape_of_clip(recipe: str, shape: tuple[int, int, int]) -> None:
    for sample in "abcdef":
        assert drawn(recipe, sample, frames(*shape)).shape == (shape[0], 3, 32, 32)


def test_the_crop_recipe_is_the_crop_of_before() -> None:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    key = {"seed": 0, "epoch": 1, "sample": "a"}
    expected = random_crop(pixels, 0.5, **key)
    assert torch.equal(augment(pixels, 32, "crop", smallest=0.5, **key), expected)
    assert torch.equal(augment(pixels, 32, "crop", smallest=1.0, **key), pixels)


def released_boxes(width: int, height: int, size: int) -> Counter:
    """The cuts of the released code, as a plain reading of its rule: (left, top, width, height)."""
    short = min(width, height)
    sides = [int(short * scale) for scale in (1, 0.875, 0.75, 0.66)]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    found: Counter = Counter()
    for i, tall in enumerate(sides):
        for j, wide in enumerate(sides):
            if abs(i - j) > 1:
                continue
            x, y = (width - wide) // 4, (height - tall) // 4
            for a, b in ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0),
                         (1, 1), (3, 1), (1, 3), (3, 3)):  # fmt: skip
                found[a * x, b * y, wide, tall] += 1
    return found


@pytest.mark.parametrize("shape", [(340, 256), (256, 340), (256, 256), (454, 256), (226, 300)])
def test_the_cuts_are_the_released_ones(shape: tuple[int, int]) -> None:
    width, height = shape
    boxes = multi_scale_boxes(height, width, 224)
    assert len(boxes) == 130
    found = Counter((left, top, w, h) for top, left, h, w in boxes)
    assert found == released_boxes(width, height, 224)


def test_a_side_that_is_nearly_the_towers_becomes_it_but_stays_inside() -> None:
    assert {h for _, _, h, _ in multi_scale_boxes(226, 226, 224)} == {224, 197, 169, 149}
    assert max(h for _, _, h, _ in multi_scale_boxes(222, 400, 224)) == 222
    for top, left, height, width in multi_scale_boxes(222, 400, 224):
        assert 0 <= top <= top + height <= 222
        assert 0 <= left <= left + width <= 400


def test_which_draws_frames_share() -> None:
    """Cut, mirror and gray are a clip's; colors are drawn for every frame, in 80 % of the clips."""
    count, colored, gray, mirrored = 300, 0, 0, 0
    for number in range(count):
        found = drawn("actionclip", str(number)).float()
        is_gray = torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 1], found[:, 2])
        gray += is_gray
        colored += not (found == found[0]).all()
        # Red rises from left to right in all frames; contrast and brightness do not turn that.
        slope = (found[:, :, :, -1] - found[:, :, :, 0]).sum((2, 1))
        if not is_gray:
            red = found[:, 0, :, -1].mean(1) - found[:, 0, :, 0].mean(1)
            assert (red > 0).all() or (red < 0).all(), "a clip is mirrored whole or not at all"
            mirrored += bool((red < 0).all())
        assert slope.isfinite().all()
    # Within four standard deviations.
    assert abs(colored / count - 0.8) < 0.1
    assert abs(gray / count - 0.2) < 0.1
    assert abs(mirrored / (count - gray) - 0.5) < 0.13


def test_colors_stay_within_their_strengths() -> None:
    """A gray picture knows brightness alone: 0.6 to 1.4 times (contrast keeps its mean)."""
    flat = torch.full((6, 3, 40, 40), 100, dtype=torch.uint8)
    values = torch.cat([drawn("actionclip", str(n), flat).flatten(1)[:, 0] for n in range(120)])
    assert 57 <= values.min() <= 66
    assert 134 <= values.max() <= 142
    assert len(values.unique()) > 50


def test_randaugment_is_drawn_for_every_frame() -> None:
    found = [drawn("actionclip-randaugment", str(n), frames(6)) for n in range(12)]
    plain = [drawn("actionclip", str(n), frames(6)) for n in range(12)]
    assert not any(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    different = [len({tuple(f.flatten().tolist()) for f in clip}) for clip in found]
    assert min(different) >= 4


def test_nothing_is_mirrored_where_sides_are_told() -> None:
    pixels = frames()
    turned = 0
    for number in range(40):
        kept = drawn("actionclip", str(number), pixels, mirror=False)
        free = drawn("actionclip", str(number), pixels)
        if not torch.equal(kept, free):
            turned += 1
        red = kept[:, 0].float()
        gray = torch.equal(kept[:, 0], kept[:, 1])
        assert gray or (red[..., -1].mean() > red[..., 0].mean())
    assert 10 <= turned <= 30


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("Pushing something from left to right", True),
        ("moves Left", True),
        ("turns clockwise", True),
        ("the right-hand side", True),
        ("brightness", False),
        ("leftover food", False),
        ("ApplyEyeMakeup", False),
    ],
)
def test_texts_that_tell_sides(text: str, tells: bool) -> None:
    assert tells_sides(["a dog", text]) == tells


def test_the_middle_is_what_the_tower_sees() -> None:
    pixels = frames(2, 32, 48)
    assert torch.equal(drawn("none", "a", pixels), transform.center_crop(pixels, [32, 32]))
