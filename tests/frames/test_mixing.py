"""Mixup and CutMix of clips: closed forms, torchvision's own transforms, and shared batches."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from videoclip.frames.mixing import mix, mixing
from videoclip.training.losses import LOSSES
from videoclip.types import Batch, Frames, Keys

KEY = {"seed": 0, "epoch": 1}


def batch(lengths: list[int], labels: list[str], size: int = 8) -> Batch:
    longest = max(lengths)
    pixels = torch.randint(0, 256, (len(lengths), longest, 3, size, size), dtype=torch.uint8)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    pixels[~mask] = 0
    keys = Keys.of(labels, labels)
    ids = torch.zeros(len(labels), 4, dtype=torch.long)
    names = tuple(f"v{n}" for n in range(len(labels)))
    return Batch(Frames(pixels, mask), ids, keys.matches(), names, keys)


def step_with(box: bool, smallest: float = 0.1) -> int:
    """The first step whose draw is of this kind, and mixes something."""
    for step in range(1000):
        found = mixing(8, 8, step=step, **KEY)
        if (found.box is not None) == box and smallest < found.own < 1 - smallest:
            return step
    raise AssertionError("no such step")


@pytest.mark.parametrize("box", [False, True])
def test_pixels_are_torchvisions(box: bool) -> None:
    given, step = batch([3, 3, 3, 3], ["a", "b", "c", "d"]), step_with(box)
    chosen = mixing(8, 8, step=step, **KEY)
    found = mix(given, step=step, **KEY)
    # torchvision mixes a clip with the one before it: so theirs is fed the other way round.
    video = tv_tensors.Video(given.frames.pixels.flip(0).float())
    if box:
        top, left, bottom, right = chosen.box
        params = {"box": (left, top, right, bottom), "lam_adjusted": chosen.own}
        theirs = v2.CutMix(num_classes=4)
    else:
        params, theirs = {"lam": chosen.own}, v2.MixUp(num_classes=4)
    params |= {"labels": torch.arange(4).flip(0), "batch_size": 4}
    expected = theirs.transform(video, params).flip(0)
    assert found.frames.pixels.dtype == torch.uint8
    assert (found.frames.pixels.float() - expected).abs().max() <= (0.0 if box else 0.501)
    shares = theirs.transform(params["labels"], params).flip(0)
    assert found.matches.dtype == torch.float32
    assert torch.allclose(found.matches.T, shares)


def test_matches_are_shares_by_hand() -> None:
    given, step = batch([2, 2, 2], ["run", "run", "jump"]), step_with(False)
    own = mixing(8, 8, step=step, **KEY).own
    found = mix(given, step=step, **KEY)
    # Clips: run + run, run + jump, jump + run. Texts: run, run, jump.
    run, jump = [1.0, own, 1 - own], [0.0, 1 - own, own]
    assert torch.allclose(found.matches, torch.tensor([run, run, jump]))
    assert torch.allclose(found.keys.matches(), found.matches)
    assert found.keys.clip.shape == (3, 2)
    assert torch.allclose(found.keys.weight.sum(1), torch.ones(3))


def test_matches_to_all_classes_add_up_per_clip() -> None:
    classes, labels = ["a", "b", "c", "d"], ["c", "a", "c"]
    given = batch([2, 2, 2], labels)
    keys = Keys.of(classes, labels, shared=True)
    given = given._replace(ids=torch.zeros(4, 4, dtype=torch.long), keys=keys,
                           matches=keys.matches())  # fmt: skip
    step = step_with(True)
    own = mixing(8, 8, step=step, **KEY).own
    found = mix(given, step=step, **KEY)
    # Clips: c + a, a + c, c + c.
    expected = torch.tensor([[1 - own, own, 0.0], [0, 0, 0], [own, 1 - own, 1.0], [0, 0, 0]])
    assert torch.allclose(found.matches, expected)
    assert torch.allclose(found.matches.sum(0), torch.ones(3))
    assert found.keys.shared


def test_the_losses_of_mixed_clips_in_closed_form() -> None:
    """Cross-entropy of shares is the shares' mean of cross-entropies; KL is zero at its target."""
    given, step = batch([2, 2, 2], ["a", "b", "c"]), step_with(False)
    own = mixing(8, 8, step=step, **KEY).own
    matches = mix(given, step=step, **KEY).matches
    scores = torch.randn(3, 3)
    log = scores.log_softmax(0)  # of each clip over the texts
    next_one = torch.tensor([1, 2, 0])
    expected = -(own * log.diag() + (1 - own) * log[next_one, torch.arange(3)]).mean()
    assert torch.allclose(LOSSES["ce"](scores, matches), expected)
    assert LOSSES["kl"](10 * matches, matches).abs() < 1e-6
    assert LOSSES["kl"](scores, matches) > 0


def test_clips_of_other_lengths_keep_theirs() -> None:
    given, step = batch([5, 2, 3], ["a", "b", "c"]), step_with(True)
    chosen = mixing(8, 8, step=step, **KEY)
    found = mix(given, step=step, **KEY)
    assert torch.equal(found.frames.mask, given.frames.mask)
    assert (found.frames.pixels[~given.frames.mask] == 0).all()
    top, left, bottom, right = chosen.box
    sources = {0: (1, [0, 0, 0, 1, 1]), 1: (2, [0, 1]), 2: (0, [0, 1, 3])}
    for row, (other, places) in sources.items():
        for at, place in enumerate(places):
            expected = given.frames.pixels[row, at].clone()
            part = given.frames.pixels[other, place][:, top:bottom, left:right]
            expected[:, top:bottom, left:right] = part
            assert torch.equal(found.frames.pixels[row, at], expected)


def test_draws_are_xclips_and_pure() -> None:
    draws = [mixing(64, 48, step=step, **KEY) for step in range(4000)]
    assert draws[7] == mixing(64, 48, step=7, **KEY)
    assert draws[7] != mixing(64, 48, seed=0, epoch=2, step=7)
    faded = np.array([d.own for d in draws if d.box is None])
    cut = [d for d in draws if d.box is not None]
    assert abs(len(faded) / 4000 - 0.5) < 0.04
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 (2 * 0.8 + 1)).
    assert abs(faded.mean() - 0.5) < 0.03
    assert abs(faded.var() - 1 / (4 * 2.6)) < 0.01
    for draw in cut:
        top, left, bottom, right = draw.box
        assert 0 <= top <= bottom <= 64
        assert 0 <= left <= right <= 48
        assert draw.own == 1 - (bottom - top) * (right - left) / (64 * 48)


def test_one_clip_is_mixed_with_itself() -> None:
    given = batch([3], ["a"])
    for box in (False, True):
        found = mix(given, step=step_with(box), **KEY)
        assert torch.equal(found.frames.pixels, given.frames.pixels)
        assert torch.allclose(found.matches, torch.ones(1, 1))


def test_parts_of_a_batch_are_mixed_like_the_whole() -> None:
    given, step = batch([3, 3, 2, 3, 1], ["a", "b", "a", "c", "d"]), step_with(False)
    whole = mix(given, step=step, **KEY)

    def part(rows: slice) -> Batch:
        text, clip, weight = (x[rows] for x in given.keys[:3])
        keys = Keys(text, clip, weight)
        frames = Frames(*(x[rows] for x in given.frames))
        return Batch(frames, given.ids[rows], keys.matches(), given.names[rows], keys)

    ranges = [slice(0, 3), slice(3, 5)]
    parts = [
        mix(part(own), step=step, **KEY, after=part(slice(first, first + 1)))
        for own, first in zip(ranges, (3, 0), strict=True)
    ]
    assert torch.equal(torch.cat([p.frames.pixels for p in parts]), whole.frames.pixels)
    text, clip, weight = (torch.cat([p.keys[n] for p in parts]) for n in range(3))
    assert torch.equal(Keys(text, clip, weight).matches(), whole.matches)
    nothing = mix(part(slice(0, 0)), step=step, **KEY, after=part(slice(0, 1)))
    assert nothing.matches.shape == (0, 0)
    assert nothing.keys.clip.shape == (0, 2)
