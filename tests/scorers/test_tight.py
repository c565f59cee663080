"""Tight fusion without repeated work gives what pair-by-pair scoring gives."""

import pytest
import torch
from torch import Tensor

from videoclip.layers import positions, quick_gelu
from videoclip.scorers import Tight
from videoclip.scorers.tight import TightScorer
from videoclip.types import Embedding


def plainly(scorer: TightScorer, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Every pair by itself, as the reference scores it."""
    rows = []
    for one in text:
        row = []
        for clip, real in zip(frames, mask, strict=True):
            tokens = torch.cat([one[None], clip]) + positions(scorer.positions, 1 + len(clip))
            seen = torch.cat([torch.ones(1, dtype=torch.bool), real])
            tokens = scorer.transformer(tokens[None], seen[None])
            pooled = scorer.ln_pool(tokens[0, 0])
            row.append(scorer.similarity(quick_gelu(scorer.dense(pooled)))[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.fixture(params=[1, 2, 4])
def scorer(request) -> TightScorer:
    found = Tight(layers=request.param, pairs_at_once=6, dropout=0.0).build(128)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


@pytest.fixture
def pairs() -> tuple[Embedding, Embedding]:
    text, frames = torch.randn(5, 128), torch.randn(7, 4, 128)
    mask = torch.rand(7, 4) < 0.6
    mask[:, 1] = True
    one = torch.ones(5, 1, dtype=torch.bool)
    return Embedding(text, text[:, None], one), Embedding(frames[:, 0], frames, mask)


def test_scores_and_gradients_are_those_of_pairs_by_themselves(scorer, pairs) -> None:
    text, video = pairs
    inputs = [text.vector.requires_grad_(), video.tokens.requires_grad_(), *scorer.parameters()]
    wanted = plainly(scorer, text.vector, video.tokens, video.mask)
    found = scorer(text, video, torch.tensor(0.0))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weight = torch.randn(5, 7)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_chunks_change_nothing(scorer, pairs, monkeypatch) -> None:
    text, video = pairs
    wanted = plainly(scorer, text.vector, video.tokens, video.mask)
    for videos in (1, 3, 128):
        monkeypatch.setattr("videoclip.scorers.tight.VIDEOS_AT_ONCE", videos)
        found = scorer(text, video, torch.tensor(0.0))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_is_near(scorer, pairs) -> None:
    text, video = pairs
    wanted = scorer(text, video, torch.tensor(0.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = scorer(text, video, torch.tensor(0.0)).float()
    assert torch.isfinite(found).all()
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max().clamp(min=1)
