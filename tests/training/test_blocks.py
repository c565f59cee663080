"""Stochastic depth: how often, for whom, and with which gradients."""

from dataclasses import replace

import pytest
import torch
from models import build, captions, clips
from test_engine import OPTIM, batch, resnet
from torch import nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim
from videoclip.layers import Blocks
from videoclip.training.blocks import set_blocks
from videoclip.training.engine import Engine
from videoclip.training.losses import contrastive
from videoclip.types import Frames, joined


def deep(rate: float, **slots) -> nn.Module:
    model = build(**slots)
    set_blocks(model, Optim(stochastic_depth=rate))
    return model.train()


def test_rates_rise_in_a_straight_line_in_towers_and_head_but_not_in_the_scorer() -> None:
    model = deep(0.4, head="transformer", scorer="tight")
    parts = (model.clip.transformer, model.clip.visual.transformer, model.head.transformer)
    assert [[b.passed_by for b in part.resblocks] for part in parts] == [
        pytest.approx([0.2, 0.4]),
        pytest.approx([0.2, 0.4]),
        pytest.approx([0.1, 0.2, 0.3, 0.4]),
    ]
    assert {block.passed_by for block in model.scorer.transformer.resblocks} == {0.0}


def test_each_half_is_left_out_for_whole_samples_and_made_up_for_in_the_others() -> None:
    """A sample is a clip: all its frames pass by together."""
    [block] = Blocks(8, 1, 2).resblocks
    x = torch.randn(4000, 3, 5, 8)
    block.eval()
    whole = block.attend(x), block.think(x)
    block.train()
    block.passed_by = 0.25
    masks = []
    for half, full in zip((block.attend, block.think), whole, strict=True):
        found = half(x)
        out = (found == 0).flatten(1).all(1)
        torch.testing.assert_close(found[~out], full[~out] / 0.75)
        assert (found[~out] != 0).flatten(1).any(1).all()
        assert out.float().mean().item() == pytest.approx(0.25, abs=0.03)
        masks.append(out)
    assert not torch.equal(*masks)
    block.eval()
    assert torch.equal(block.attend(x), whole[0])


@pytest.mark.parametrize("mixer", ["none", "shift", "joint"])
def test_nothing_passes_by_in_evaluation_and_nothing_is_drawn_at_rate_zero(mixer: str) -> None:
    video, mask, ids = clips(3), torch.ones(3, 5, dtype=torch.bool), captions()
    plain, some, none = build(mixer), deep(0.5, mixer=mixer), deep(0.0, mixer=mixer)
    wanted = plain.similarity(ids, video, mask)
    assert torch.equal(some.eval().similarity(ids, video, mask), wanted)
    before = torch.get_rng_state()
    assert torch.equal(none.similarity(ids, video, mask), wanted)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(some.train().similarity(ids, video, mask), wanted)


def stepped(**changes) -> dict[str, torch.Tensor]:
    """The gradients of a step of the engine."""
    model = build(head="transformer")
    optim = replace(OPTIM, stochastic_depth=0.5, max_norm=None, **changes)
    engine = Engine(model, optim, steps=1)
    engine.train()
    torch.manual_seed(7)
    engine.step(batch())
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_hand(chunk_size: int) -> dict[str, torch.Tensor]:
    """The same of one graph, in which chunks draw one after the other."""
    model, made = deep(0.5, head="transformer"), batch()
    torch.manual_seed(7)
    text = joined([model.embed_text(ids) for ids in made.ids.split(chunk_size)])
    parts = zip(*(x.split(chunk_size) for x in made.frames), strict=True)
    video = joined([model.embed_video(Frames(*part)) for part in parts])
    contrastive(model.score(text, video), made.matches).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("checkpointing", ["off", "blocks"])
def test_what_is_computed_again_passes_by_again(checkpointing: str, chunk_size: int | None) -> None:
    found = stepped(chunk_size=chunk_size, checkpointing=checkpointing)
    for name, value in by_hand(chunk_size or 6).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_a_tower_without_transformer_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stochastic_depth is 0\.1, but samples pass by blocks"):
        Engine(resnet(), replace(OPTIM, stochastic_depth=0.1), steps=1)
