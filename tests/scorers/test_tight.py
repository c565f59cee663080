"""Tight fusion without repeated work gives what pair-by-pair scoring gives."""

import pytest
import torch
from torch import Tensor

from videoclip.layers import quick_gelu
from videoclip.scorers import Tight, tight
from videoclip.scorers.tight import TightScorer
from videoclip.types import Embedding

NONE = torch.tensor(0.0)
"""Tight fusion reads no temperature."""


def plainly(scorer: TightScorer, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Every pair by itself, as the reference scores it."""
    rows = []
    for one in text:
        row = []
        for clip, real in zip(frames, mask, strict=True):
            tokens = torch.cat([one[None], clip]) + scorer.positions[: 1 + len(clip)]
            seen = torch.cat([torch.ones(1, dtype=torch.bool), real])
            tokens = scorer.transformer(tokens[None], seen[None])
            pooled = scorer.ln_pool(tokens[0, 0])
            row.append(scorer.similarity(quick_gelu(scorer.dense(pooled)))[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def build(layers: int = 2, **fields) -> TightScorer:
    found = Tight(layers=layers, **({"dropout": 0.0} | fields)).build(128)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


@pytest.fixture
def pairs() -> tuple[Embedding, Embedding]:
    """5 texts and 7 clips with holes in their masks; the first one is padded but for one frame."""
    text, frames = torch.randn(5, 128), torch.randn(7, 4, 128)
    mask = torch.rand(7, 4) < 0.6
    mask[:, 1] = True
    mask[0] = torch.tensor([True, False, False, False])
    one = torch.ones(5, 1, dtype=torch.bool)
    return Embedding(text, text[:, None], one), Embedding(frames[:, 0], frames, mask)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("at_once", [None, 1, 6, 16])
def test_scores_and_gradients_are_those_of_pairs_by_themselves(layers, at_once, pairs) -> None:
    """Texts and clips differ in number, as one process's texts and all processes' clips do."""
    scorer, (text, video) = build(layers, pairs_at_once=at_once), pairs
    inputs = [text.vector.requires_grad_(), video.tokens.requires_grad_(), *scorer.parameters()]
    wanted = plainly(scorer, text.vector, video.tokens, video.mask)
    found = scorer(text, video, NONE)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weight = torch.randn(5, 7)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(scorer(text, video, NONE), wanted, atol=1e-5, rtol=1e-5)


def test_parts_of_the_scores_are_scores_of_parts(pairs) -> None:
    """What re-ranking needs: a few texts with one clip."""
    scorer, (text, video) = build(), pairs
    whole = scorer(text, video, NONE)
    some, one = [Embedding(*(part[[1, 4]] for part in text)), Embedding(*(p[2:3] for p in video))]
    torch.testing.assert_close(scorer(some, one, NONE), whole[[1, 4], 2:3], atol=1e-5, rtol=1e-5)
    none = Embedding(*(part[:0] for part in text))
    assert scorer(none, video, NONE).shape == (0, 7)


def test_tiles_hold_no_more_pairs_than_they_may(pairs, monkeypatch) -> None:
    """And with gradients they keep none of their activations."""
    sizes, saved, meet = [], [], tight.meet

    def counted(texts, videos, bias):
        sizes.append(len(texts.tokens) * len(videos.tokens))
        return meet(texts, videos, bias)

    monkeypatch.setattr(tight, "meet", counted)
    text, video = pairs
    for at_once in (1, 6, 35):
        sizes.clear(), saved.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(tuple(x.shape)) or x, lambda x: x
        )
        with hooks:
            build(pairs_at_once=at_once)(text, video, NONE)
        assert max(sizes) <= at_once
        assert sum(sizes) == 35
        # What the perceptrons activate: 512 channels of every token of a tile.
        assert any(shape[2:] in ((1, 512), (5, 512)) for shape in saved) == (at_once == 35)
    scorer = build()
    with torch.no_grad():
        texts, mask = torch.zeros(1000, 512), torch.ones(1000, 12, dtype=torch.bool)
        rows, columns, _ = scorer._tiles(texts, mask)
        assert 64 <= rows * columns <= 256
        wide, few, _ = scorer._tiles(texts, mask[:3])
        assert few == 3
        assert 64 <= wide * few <= 256


def test_frames_behind_the_last_real_one_cost_nothing(monkeypatch) -> None:
    lengths, videos_of = [], tight.videos_of
    monkeypatch.setattr(
        tight, "videos_of", lambda b, t, m: lengths.append(t.shape[1]) or videos_of(b, t, m)
    )
    text, frames = torch.randn(2, 128), torch.randn(6, 9, 128)
    mask = torch.arange(9) < torch.tensor([9, 2, 3, 2, 9, 1])[:, None]
    scorer = build(pairs_at_once=4)
    one = Embedding(text, text[:, None], torch.ones(2, 1, dtype=torch.bool))
    with torch.no_grad():
        found = scorer(one, Embedding(frames[:, 0], frames, mask), NONE)
    assert lengths == [2, 3, 9]
    torch.testing.assert_close(found, plainly(scorer, text, frames, mask), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_without_frames_is_scored_by_its_text_alone(pairs) -> None:
    """Nan would spread to the whole batch."""
    text, video = pairs
    video.mask[3] = False
    scorer = build()
    wanted = plainly(scorer, text.vector, video.tokens, video.mask)
    found = scorer(text, video, NONE)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert found.isfinite().all()


@torch.no_grad()
def test_bfloat16_is_near_and_never_rounds_the_scores(pairs) -> None:
    text, video = pairs
    scorer = build()
    wanted = scorer(text, video, NONE)
    with torch.autocast("cpu", torch.bfloat16):
        found = scorer(text, video, NONE)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.02 * wanted.std()
    assert len(found.unique()) == 35
    assert (found != found.bfloat16().float()).any()


def test_dropout_is_drawn_per_text_and_per_clip_and_stays_in_every_tile(pairs) -> None:
    text, video = pairs
    small, large = build(dropout=0.5, pairs_at_once=6), build(dropout=0.5)
    small.load_state_dict(large.state_dict())
    drawn = []
    for scorer in (small, large):
        torch.manual_seed(0)
        scores = scorer(text, video, NONE)
        drawn.append(torch.autograd.grad(scores.sin().sum(), [*scorer.parameters()]))
    for ours, theirs in zip(*drawn, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(small(text, video, NONE), small(text, video, NONE))


@torch.no_grad()
def test_attention_heads_may_be_given(pairs) -> None:
    text, video = pairs
    eight = build(attention_heads=8)
    assert eight.transformer.resblocks[0].attn.heads == 8
    wanted = plainly(eight, text.vector, video.tokens, video.mask)
    torch.testing.assert_close(eight(text, video, NONE), wanted, atol=1e-5, rtol=1e-5)
