"""Stochastic depth: how often, for whom, and with which gradients. Compiled blocks are blocks."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from models import HEADS, MIXERS, SCORERS, build, captions, clips
from test_engine import OPTIM, batch, resnet
from torch import nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.heads import ClassToken
from videoclip.layers import Blocks
from videoclip.towers import Text, ViT
from videoclip.training.blocks import compile_blocks, set_blocks
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


# torch.compile.

SLOTS = [{"mixer": name} for name in MIXERS] + [{"head": name} for name in HEADS]
SLOTS += [{"scorer": name} for name in SCORERS]
COMPILED = Run(compile="blocks")
# torch looks for gradients where it warns others not to look.
tracing = pytest.mark.filterwarnings(r"ignore:The \.grad attribute")


@pytest.fixture(scope="module")
def fresh():
    """Graphs of one test serve the others, and are forgotten in the end."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    yield
    torch._dynamo.config.fail_on_recompile_limit_hit = False
    torch._dynamo.reset()


def stepped_on(
    model: nn.Module, sizes: tuple[int, ...], **changes
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of batches of these sizes, and the gradients of the last step."""
    engine = Engine(model, replace(OPTIM, max_norm=None, **changes), steps=2)
    engine.train()
    torch.manual_seed(7)
    losses = [engine.step(batch(number, size)).loss for number, size in enumerate(sizes)]
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_compiled_is_plain(
    slots: dict, backend: str, sizes: tuple[int, ...] = (6,), **changes
) -> None:
    plain, compiled = build(**slots), build(**slots)
    compile_blocks(compiled, COMPILED, backend)
    losses, gradients = stepped_on(plain, sizes, **changes)
    found, others = stepped_on(compiled, sizes, **changes)
    assert found == pytest.approx(losses, rel=1e-5)
    assert others.keys() == gradients.keys()
    largest = max(value.abs().max().item() for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(
            others[name], value, atol=1e-5 * largest, rtol=1e-5, msg=f"{slots}, {name}"
        )
    assert [*compiled.state_dict()] == [*plain.state_dict()]


@tracing
@pytest.mark.parametrize("slots", SLOTS, ids=lambda slots: "-".join(slots.values()))
def test_compiled_blocks_compute_what_plain_ones_do(fresh, slots: dict) -> None:
    """What is traced and differentiated; the code that is made of it is the next test's."""
    assert_compiled_is_plain(slots, "aot_eager")


@tracing
@pytest.mark.parametrize(
    ("sizes", "changes"),
    [((6, 4), {"chunk_size": 2}), ((6,), {"checkpointing": "blocks", "stochastic_depth": 0.5})],
    ids=str,
)
def test_compiled_blocks_do_what_is_asked_of_plain_ones(fresh, sizes, changes: dict) -> None:
    assert_compiled_is_plain({}, "aot_eager", sizes, **changes)


@tracing
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler")
def test_code_that_inductor_makes_computes_the_same(fresh) -> None:
    """The class token drops activations, with the same random numbers."""
    small = {"visual": ViT(width=64, layers=1, patch_size=8, image_size=16)}
    small["text"] = Text(width=32, layers=1, context_length=12, vocabulary=100)
    assert_compiled_is_plain({**small, "head": ClassToken(layers=1)}, "inductor")


def test_where_it_cannot_work_it_says_so(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="ZeRO stage 3 cannot run"):
        compile_blocks(build(), replace(COMPILED, engine="deepspeed", zero=3))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not there"):
        compile_blocks(build(), COMPILED)
