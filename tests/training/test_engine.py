"""One step of training: what is trained, how, and what a run must keep to go on."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import build, captions, clips
from torch import nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim
from videoclip.towers import ResNet
from videoclip.training.engine import Engine
from videoclip.training.faults import LossScale
from videoclip.training.losses import LOSSES, contrastive
from videoclip.training.optim import locked_modules, parameter_groups
from videoclip.types import Batch, Embedding, Frames

OPTIM = Optim(tower_rate=1e-3, module_rate=1e-3, warmup=0.0, precision="fp32")


def batch(number: int = 0, size: int = 6, frames: int = 2, side: int = 16) -> Batch:
    random = torch.random.get_rng_state()
    torch.manual_seed(100 + number)
    pixels = clips(size, frames)
    pixels = nn.functional.interpolate(pixels.flatten(0, 1), (side, side)).unflatten(
        0, pixels.shape[:2]
    )
    made = Batch(
        Frames(pixels, torch.ones(size, frames, dtype=torch.bool)),
        captions(size),
        torch.eye(size, dtype=torch.bool),
        tuple(f"v{number}-{i}" for i in range(size)),
    )
    torch.random.set_rng_state(random)
    return made


def resnet(head: str = "mean") -> nn.Module:
    return build(head=head, visual=ResNet(width=16, layers=(1, 1, 1, 1), image_size=32))


def trained(model: nn.Module, optim: Optim, steps: int = 3, side: int = 16) -> nn.Module:
    engine = Engine(model, optim, steps=steps)
    engine.train()
    for number in range(steps):
        engine.step(batch(number, side=side))
    return model


def test_groups_have_their_rates_and_only_matrices_decay() -> None:
    model = build(head="transformer")
    groups = parameter_groups(model, Optim(tower_rate=1.0, module_rate=2.0, weight_decay=3.0))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.clip.visual.proj)] == (1.0, 3.0)
    assert found[id(model.clip.visual.ln_post.weight)] == (1.0, 0.0)
    assert found[id(model.clip.logit_scale)] == (1.0, 0.0)
    assert found[id(model.clip.token_embedding.weight)] == (1.0, 0.0)
    assert found[id(model.head.positions)] == (2.0, 0.0)
    assert found[id(model.head.transformer.resblocks[0].attn.in_proj_weight)] == (2.0, 3.0)


def test_steps_lower_the_loss() -> None:
    model = build()
    engine = Engine(model, OPTIM, steps=30)
    engine.train()
    losses = [engine.step(batch()).loss for _ in range(30)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("changes", [{"chunk_size": 2}, {"checkpointing": "blocks"}])
def test_what_saves_memory_changes_no_weight(changes: dict) -> None:
    plain, other = build(head="transformer"), build(head="transformer")
    optim = replace(OPTIM, tower_rate=1e-5, module_rate=1e-5, max_norm=1e9)
    trained(plain, optim)
    trained(other, replace(optim, **changes))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_bfloat16_keeps_float32_weights() -> None:
    plain, low = trained(build(), OPTIM), trained(build(), replace(OPTIM, precision="bf16"))
    changed = False
    for name, value in plain.state_dict().items():
        assert low.state_dict()[name].dtype == torch.float32
        changed |= not torch.equal(low.state_dict()[name], value)
    assert changed


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("scorer", ["cosine", "tight"])
def test_under_bfloat16_the_loss_is_taken_in_float32(
    scorer: str, chunk_size: int | None, monkeypatch
) -> None:
    seen = []

    def spy(scores: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        seen.append((scores.dtype, torch.is_autocast_enabled("cpu")))
        return contrastive(scores, matches)

    monkeypatch.setitem(LOSSES, "clip", spy)
    trained(build(scorer=scorer), replace(OPTIM, precision="bf16", chunk_size=chunk_size), steps=1)
    assert seen == [(torch.float32, False)]


def test_logits_are_not_rounded_to_bfloat16() -> None:
    """Near 100 its steps are 0.5, which would tie what differs."""
    model = build()
    model.clip.logit_scale.data.fill_(math.log(100.0))
    vector = torch.randn(4, 32)
    one = Embedding(vector, vector[:, None], torch.ones(4, 1, dtype=torch.bool))
    expected = model.score(one, one)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.score(one, one)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_the_step_says_what_it_did() -> None:
    engine = Engine(build(), replace(OPTIM, warmup=0.5, max_norm=1e-3), steps=4)
    engine.train()
    steps = [engine.step(batch(number)) for number in range(4)]
    assert [step.learning_rate for step in steps] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])
    assert all(step.gradient_norm > 1e-2 for step in steps)
    assert steps[-1].logit_scale == pytest.approx(engine.model.clip.logit_scale.exp().item())
    assert engine.steps_done == 4


@pytest.mark.parametrize(
    ("make", "betas", "side"), [(build, (0.9, 0.98), 16), (resnet, (0.9, 0.999), 32)]
)
def test_adam_has_the_papers_constants(make, betas: tuple[float, float], side: int) -> None:
    engine = Engine(make(), OPTIM, steps=1)
    assert {group["betas"] for group in engine.optimizer.param_groups} == {betas}
    assert {group["eps"] for group in engine.optimizer.param_groups} == {
        1e-6 if betas[1] == 0.98 else 1e-8
    }


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("make", [build, resnet])
@pytest.mark.parametrize("lock", ["image", "text", "both"])
def test_a_locked_tower_stays_to_the_bit(lock: str, make, chunk_size: int | None) -> None:
    model = make(head="transformer")
    side = model.config.visual.image_size
    before = copy.deepcopy(model.state_dict())
    trained(model, replace(OPTIM, lock=lock, chunk_size=chunk_size), side=side)
    after = model.state_dict()
    for name, value in before.items():
        side = "image" if name.startswith("clip.visual.") else "text"
        if lock in (side, "both") and name.startswith("clip.") and "logit" not in name:
            assert torch.equal(after[name], value), name
    learned = ["clip.logit_scale", "head.transformer.resblocks.0.ln_1.weight"]
    others = {"image": ["clip.text_projection"], "text": ["clip.visual.conv1.weight"], "both": []}
    for name in learned + others[lock]:
        assert not torch.equal(after[name], before[name]), name
    assert not any(module.training for module in locked_modules(model, Optim(lock=lock)))
    assert model.clip.training


def test_the_temperature_is_clamped_for_the_clip_loss_only() -> None:
    for loss, largest in (("clip", 100.0), ("siglip", 150.0)):
        model = build(logit_bias=-10.0)
        model.clip.logit_scale.data.fill_(math.log(150.0))
        trained(model, replace(OPTIM, loss=loss, tower_rate=1e-9), steps=1)
        assert model.clip.logit_scale.exp().item() == pytest.approx(largest, rel=1e-4)


def test_siglip_needs_a_bias() -> None:
    with pytest.raises(ConfigError, match=r"--model.logit-bias -10"):
        Engine(build(), replace(OPTIM, loss="siglip"), steps=1)


def everything(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights, running averages and moments of a state."""
    moments = {f"{n}.{k}": v for n, kept in state["optimizer"].items() for k, v in kept.items()}
    return state["model"] | moments


class Poison(torch.autograd.Function):
    """Nothing forward; backward one number of the gradient becomes another one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone()
        gradient[(0,) * gradient.ndim] = ctx.value
        return gradient, None


@contextmanager
def poisoned(model: nn.Module, where: str, value: float = math.nan) -> Iterator[None]:
    """What a module gives has a gradient with one number that is none."""
    hook = model.get_submodule(where).register_forward_hook(
        lambda _, __, out: Poison.apply(out, value)
    )
    try:
        yield
    finally:
        hook.remove()


PLACES = (
    "clip.visual.conv1", "clip.visual.ln_pre", "clip.visual.ln_post", "clip.ln_final",
    "clip.token_embedding", "clip.transformer.resblocks.0", "clip.transformer.resblocks.1",
    "clip.visual.transformer.resblocks.0", "clip.visual.transformer.resblocks.1",
    "head.transformer.resblocks.0",
)  # fmt: skip
"""Modules of a model with a transformer over time."""


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(chunk_size: int | None, value: float) -> None:
    engine = Engine(build(), replace(OPTIM, chunk_size=chunk_size), steps=9)
    engine.train()
    engine.step(batch(0))
    before = everything(engine.state())
    bad = batch(1)
    bad.frames.pixels[2] = value
    step = engine.step(bad)
    assert step.fault == "the loss is nan"
    assert same(everything(engine.state()), before)
    assert engine.steps_done == 2
    assert engine.step(batch(2)).fault is None
    assert not same(everything(engine.state()), before)


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("place", PLACES)
def test_a_gradient_that_is_not_finite_changes_nothing(place: str, number: int) -> None:
    """In the very first step too, when there are no moments."""
    value = math.nan if number else math.inf
    engine = Engine(build(head="transformer"), OPTIM, steps=9)
    engine.train()
    for one in range(number):
        engine.step(batch(one))
    before = everything(engine.state())
    with poisoned(engine.model, place, value):
        step = engine.step(batch(number))
    assert re.fullmatch("the gradient norm is (nan|inf)", step.fault)
    assert math.isfinite(step.loss)
    assert same(everything(engine.state()), before)
    assert engine.step(batch(number + 1)).fault is None
    assert not same(everything(engine.state()), before)


def test_a_refused_step_leaves_running_averages_and_the_temperature_alone() -> None:
    model = resnet()
    model.clip.logit_scale.data.fill_(math.log(150.0))
    engine = Engine(model, OPTIM, steps=9)
    engine.train()
    before = everything(engine.state())
    with poisoned(model, "clip.visual.bn1"):
        assert engine.step(batch(0, side=32)).fault
    assert same(everything(engine.state()), before)
    engine.step(batch(0, side=32))
    name = "clip.visual.bn1.running_mean"
    assert not torch.equal(everything(engine.state())[name], before[name])


def test_the_rate_goes_on_when_a_step_is_refused() -> None:
    optim = replace(OPTIM, warmup=0.5)
    engine = Engine(build(), optim, steps=4)
    engine.train()
    rates = []
    for number in range(4):
        with poisoned(engine.model, PLACES[0]) if number in (0, 2) else nullcontext():
            rates.append(engine.step(batch(number)).learning_rate)
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(x, two[name]) for name, x in one.items())


def test_a_restored_engine_goes_on_to_the_bit(tmp_path) -> None:
    """Dropout in the tight scorer: the random numbers go on too."""
    optim = replace(OPTIM, warmup=0.5)
    torch.manual_seed(5)
    straight = Engine(build(scorer="tight"), optim, steps=6)
    straight.train()
    for number in range(6):
        if number == 3:
            torch.save(straight.state(), tmp_path / "state")
        straight.step(batch(number))
    torch.manual_seed(99)
    again = Engine(build(scorer="tight"), optim, steps=6)
    again.restore(torch.load(tmp_path / "state", weights_only=True))
    again.train()
    assert again.steps_done == 3
    for number in range(3, 6):
        again.step(batch(number))
    for name, value in straight.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_fp16_trains_float32_weights_by_half_precision(chunk_size: int | None) -> None:
    """Near the float32 way, nearer than bfloat16; its scale makes small gradients survive."""
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        optim = replace(OPTIM, precision=precision, chunk_size=chunk_size, epsilon=1e-3)
        engine = Engine(build(head="transformer"), optim, steps=3)
        engine.scale = engine.scale and LossScale(2.0**12)
        engine.train()
        assert not any(engine.step(batch(number)).fault for number in range(3))
        found[precision] = engine.weights()
    apart = {
        precision: sum((found[precision][n] - x).square().sum() for n, x in found["fp32"].items())
        for precision in ("fp16", "bf16")
    }
    assert 0 < apart["fp16"] < apart["bf16"] / 4
    assert all(x.dtype == torch.float32 for x in found["fp16"].values())


def test_an_overflow_halves_the_scale_and_changes_nothing_else() -> None:
    engine = Engine(build(), replace(OPTIM, precision="fp16"), steps=9)
    engine.scale = LossScale(2.0**40)
    engine.train()
    before = everything(engine.state())
    step = engine.step(batch(0))
    assert re.fullmatch(
        "the gradient norm is (nan|inf) at a loss scale of 1099511627776", step.fault
    )
    assert same(everything(engine.state()), before)
    assert engine.scale.factor == 2.0**39
    engine.scale = LossScale(2.0**10, good=5)
    assert engine.step(batch(1)).fault is None
    assert engine.state()["scale"] == (2.0**10, 6)
    again = Engine(build(), replace(OPTIM, precision="fp16"), steps=9)
    again.restore(engine.state())
    assert again.scale == LossScale(2.0**10, good=6)
