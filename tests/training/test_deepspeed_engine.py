"""DeepSpeed's ZeRO in all stages ends with the weights of the plain engine."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from processes import run
from test_distributed import CASES, SIZES, model_of, optim_of, outcome, part, trained, whole
from torch import Tensor

from videoclip.config import ConfigError
from videoclip.errors import OtherProcessError, VideoclipError
from videoclip.experiment import Optim
from videoclip.training.deepspeed_engine import DeepSpeedEngine
from videoclip.types import Batch

STAGES = (0, 1, 2, 3)
RUNS = [
    ("pictures, siglip", 1, None),
    ("actions, kl", 1, 3),
    ("clips, loose", 2, None),
    ("clips, tight", 2, 3),
    ("actions, ce", 3, None),
    ("clips, tight", 3, 3),
    ("pictures, clip", 0, 3),
]
"""Kinds of training with ZeRO's stage and the size of chunks."""


def batch(number: int, name: str) -> Batch:
    """This process's part of a batch; the third is empty."""
    return part(whole(CASES[name], number, torch.float32, 0 if number == 2 else SIZES[0]))


def engine_of(name: str, stage: int, **changes: Any) -> DeepSpeedEngine:
    case = CASES[name]
    model = model_of(case, torch.float32)
    engine = DeepSpeedEngine(model, optim_of(case, **changes), steps=10, stage=stage)
    engine.train()
    return engine


def ten_steps(name: str, stage: int, chunk_size: int | None) -> dict[str, Tensor]:
    engine = engine_of(name, stage, chunk_size=chunk_size, max_norm=1.0)
    for number in range(10):
        engine.step(batch(number, name))
    weights, copied = engine.weights(), engine.trained().state_dict()
    assert all(torch.equal(copied[key], value) for key, value in weights.items())
    assert engine.steps_done == 9
    return weights


def resumed(stage: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights after five steps in one go, and after a new engine took over in between."""
    straight = engine_of("clips, loose", stage)
    for number in range(5):
        if number == 3:
            straight.save(folder / str(stage))
        straight.step(batch(number, "clips, loose"))
    again = engine_of("clips, loose", stage)
    again.load(folder / str(stage))
    for number in range(3, 5):
        again.step(batch(number, "clips, loose"))
    return straight.weights(), again.weights()


def bounded(stage: int) -> tuple[float, float]:
    """The temperature after two steps that began above its bound: as told, and as it is."""
    engine = engine_of("pictures, clip", stage, tower_rate=1e-9, warmup=0.0)
    if stage == 0:
        engine.model.clip.logit_scale.data.fill_(math.log(150.0))
    else:
        engine._set_temperature(torch.tensor([math.log(150.0)]))
    for number in range(2):
        told = engine.step(batch(number, "pictures, clip"))
    return told.logit_scale, engine.weights()["clip.logit_scale"].exp().item()


def refused() -> tuple[tuple[type, str], bool]:
    """What a sample that is no number ends with, and whether the weights are as before."""
    engine = engine_of("pictures, clip", 1)
    engine.step(batch(0, "pictures, clip"))
    before = copy.deepcopy(engine.weights())
    bad = whole(CASES["pictures, clip"], 1, torch.float32)
    bad.frames.pixels[0] = math.nan
    error = outcome(engine.step, part(bad))
    return error, all(torch.equal(v, before[n]) for n, v in engine.weights().items())


def low(stage: int) -> dict[str, Tensor]:
    """The weights after three steps in bfloat16 arithmetic."""
    engine = engine_of("pictures, clip", stage, precision="bf16")
    for number in range(3):
        engine.step(batch(number, "pictures, clip"))
    return engine.weights()


def everything(folder: Path) -> dict[Any, Any]:
    """What the processes find; one start of them serves all tests."""
    import warnings

    # DeepSpeed calls collectives by names that this torch is about to give up.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="deepspeed")
    found: dict[Any, Any] = {each: ten_steps(*each) for each in RUNS}
    for stage in STAGES:
        found["resumed", stage] = resumed(stage, folder)
        found["bounded", stage] = bounded(stage)
    return found | {"refused": refused(), "low": (low(1), low(3))}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    return run(everything, folder, folder)


@pytest.mark.parametrize(("name", "stage", "chunk_size"), RUNS)
def test_ten_steps_lead_to_the_plain_engines_weights(found, name, stage, chunk_size) -> None:
    expected = trained(CASES[name], torch.float32)
    size = math.sqrt(sum(value.square().sum().item() for value in expected.values()))
    for two in found:
        weights = two[name, stage, chunk_size]
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            assert weights[key].shape == value.shape
            torch.testing.assert_close(weights[key], value, atol=1e-5, rtol=1e-5, msg=key)
        apart = sum((weights[key] - value).square().sum().item() for key, value in expected.items())
        assert math.sqrt(apart) <= 1e-6 * size


@pytest.mark.parametrize("stage", STAGES)
def test_a_saved_engine_goes_on_to_the_bit(found, stage: int) -> None:
    for two in found:
        straight, again = two["resumed", stage]
        for name, value in straight.items():
            assert torch.equal(again[name], value), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_temperature_is_clamped_for_good(found, stage: int) -> None:
    for two in found:
        assert two["bounded", stage] == pytest.approx((100.0, 100.0), rel=1e-4)


def test_a_loss_that_is_not_finite_changes_no_weight(found) -> None:
    errors, unchanged = zip(*(two["refused"] for two in found), strict=True)
    assert all(unchanged)
    assert [kind for kind, _ in errors] == [VideoclipError, OtherProcessError]
    assert "loss is nan at step 2 with the samples v1-0" in errors[0][1]


def test_under_bfloat16_all_stages_agree(found) -> None:
    first, third = found[0]["low"]
    for name, value in first.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(third[name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("changes", [{"optimizer": "bertadam"}, {"precision": "reference-fp16"}])
def test_what_looks_at_whole_weights_is_refused(changes: dict) -> None:
    optim = replace(Optim(), **changes)
    with pytest.raises(ConfigError, match="ZeRO stage 2 cuts"):
        DeepSpeedEngine(build(), optim, steps=1, stage=2)


def test_without_a_launcher_it_says_how_to_start() -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 1"):
        DeepSpeedEngine(build(), Optim(), steps=1)
