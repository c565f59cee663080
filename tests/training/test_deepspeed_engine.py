"""DeepSpeed's ZeRO in all stages ends with the weights of the plain engine."""

import io
import json
import math
import re
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from processes import run
from test_distributed import CASES, SIZES, model_of, optim_of, part, trained, whole
from test_engine import everything, poisoned, same
from torch import Tensor

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.training import engines
from videoclip.training.deepspeed_engine import DeepSpeedEngine
from videoclip.training.engine import Engine
from videoclip.training.faults import LossScale
from videoclip.types import Batch

STAGES = (0, 1, 2, 3)
RUNS = [
    ("pictures, siglip", 1, None),
    ("actions, kl", 1, 3),
    ("actions, ce", 3, None),
    ("clips, tight", 3, 3),
    ("clips, loose", 2, None),
    ("clips, tight", 2, 3),
    ("pictures, clip", 0, 3),
]
"""Kinds of training with ZeRO's stage and the size of chunks. Stage 3 leaves a linear layer of its
own to all that comes after it, whose gradients come in another order where clips are longer."""


OTHER_WAYS = {
    "optimizer offloaded": ("clips, loose", 2, {"offload": "optimizer"}, {"chunk_size": 3}),
    "all offloaded": ("clips, tight", 3, {"offload": "all"}, {"chunk_size": 3}),
    "layers frozen": (
        "clips, loose", 2, {},
        {"freeze_layers": 1, "layer_decay": 0.5, "visual_ratio": 2.0, "max_norm": 0.1},
    ),
    "tower locked": (
        "clips, loose", 3, {}, {"lock": "image", "checkpointing": "blocks", "chunk_size": 3},
    ),
    "both towers locked": ("clips, tight", 1, {}, {"lock": "both", "ema": 0.5}),
    "sgd": ("actions, kl", 2, {}, {"optimizer": "sgd"}),
    "with a file": ("clips, loose", 3, {"deepspeed_config": "deepspeed.json"}, {}),
    "in float16": ("pictures, clip", 3, {}, {"precision": "fp16", "max_norm": 0.5}),
}  # fmt: skip
"""A kind of training, ZeRO's stage, settings of the run and of the training."""
FILE = {
    "train_batch_size": "auto",
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 1000,
        "sub_group_size": 20_000,
        "reduce_bucket_size": 10_000,
    },
}
"""Small weights stay whole in every process, and there are many buckets."""


def batch(number: int, name: str) -> Batch:
    """This process's part of a batch; the third is empty."""
    return part(whole(CASES[name], number, torch.float32, 0 if number == 2 else SIZES[0]))


def engine_of(
    name: str, stage: int | str, ways: dict[str, Any] | None = None, **changes: Any
) -> Engine:
    """DeepSpeed's engine at a stage, or the plain one."""
    case = CASES[name]
    run = Run() if stage == "plain" else Run(engine="deepspeed", zero=stage, **(ways or {}))
    optim = optim_of(case, **changes)
    engine = engines.engine_of(model_of(case, torch.float32), optim, run, steps=10)
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


def steps(engine: Engine, name: str, numbers: Iterable[int]) -> dict[str, Tensor]:
    """The weights after these batches."""
    for number in numbers:
        engine.step(batch(number, name))
    return engine.weights()


def state_of(engine: Engine) -> dict[str, Any]:
    """The state of an engine, in every process, as it comes back from a file."""
    [state] = [one for one in distributed.gather_objects(engine.state()) if one]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def straight(stage: int) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A state after three steps; the weights after five in one go, and when it was taken over."""
    name = "clips, loose"
    first = engine_of(name, stage)
    steps(first, name, range(3))
    state = state_of(first)
    again = engine_of(name, stage)
    steps(again, name, range(2))  # of which nothing may stay
    again.restore(state)
    assert again.steps_done == 2
    return state, steps(first, name, range(3, 5)), steps(again, name, range(3, 5))


def crossed(states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Tensor]]:
    """The weights that other engines lead to from a state: from plain to any stage and back."""
    found = {}
    for stage in STAGES:
        for there, here in (("plain", stage), (stage, "plain"), (stage, 3 - stage)):
            other = engine_of("clips, loose", here)
            other.restore(states[there])
            found[there, here] = steps(other, "clips, loose", range(3, 5))
    return found


def bounded(stage: int) -> tuple[float, float]:
    """The temperature after two steps that began above its bound: as told, and as it is."""
    engine = engine_of("pictures, clip", stage, tower_rate=1e-9, warmup=0.0)
    weights = engine.weights()
    weights["clip.logit_scale"].fill_(math.log(150.0))
    engine._set_weights(weights)
    for number in range(2):
        told = engine.step(batch(number, "pictures, clip"))
    return told.logit_scale, engine.weights()["clip.logit_scale"].exp().item()


def refused(stage: int, **changes: Any) -> list[tuple[str | None, bool]]:
    """Why steps were refused, and whether all was as before then.

    The gradients of one module are no number, or a sample of one process is none.
    """
    name = "clips, loose"
    engine = engine_of(name, stage, **changes)
    steps(engine, name, range(1))
    told = []
    for place, value in (("clip.visual.ln_post", math.nan), ("head.transformer", math.inf)):
        before = everything(state_of(engine))
        alone = place.startswith("clip") and distributed.rank() == 0
        with nullcontext() if alone else poisoned(engine.model, place, value):
            fault = engine.step(batch(1, name)).fault
        told.append((fault, same(everything(state_of(engine)), before)))
    bad = whole(CASES[name], 1, torch.float32)
    bad.frames.pixels[0] = math.nan
    fault = engine.step(part(bad)).fault
    told.append((fault, same(everything(state_of(engine)), before)))
    good = engine.step(batch(3, name)).fault
    told.append((good, not same(everything(state_of(engine)), before)))
    return told


def another(name: str, stage: int, ways: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Weights after four steps, of which the third is refused: in one go, taken over, and plain."""

    def made(stage: int | str) -> Engine:
        return engine_of(name, stage, ways, epsilon=None if "optimizer" in changes else 1e-4,
                         **changes)  # fmt: skip

    found = {}
    for kind in (stage, "plain"):
        engine = found[kind] = made(kind)
        if engine.scale:
            engine.scale = LossScale(2.0**10)
        assert not any(engine.step(batch(number, name)).fault for number in (0, 1))
        with poisoned(engine.model, "clip.ln_final" if changes.get("lock") != "both" else "scorer"):
            assert engine.step(batch(1, name)).fault
    again = made(stage)
    again.restore(state_of(found[stage]))
    engines = {"one go": found[stage], "taken over": again, "plain": found["plain"]}
    return {kind: steps(engine, name, (3,)) for kind, engine in engines.items()} | {
        "averages": [e.average.weights() if e.average else {} for e in engines.values()]
    }


def low(stage: int) -> dict[str, Tensor]:
    """The weights after three steps in bfloat16 arithmetic."""
    engine = engine_of("pictures, clip", stage, precision="bf16")
    for number in range(3):
        engine.step(batch(number, "pictures, clip"))
    return engine.weights()


def all_found(folder: Path) -> dict[Any, Any]:
    """What the processes find; one start of them serves all tests."""
    # DeepSpeed calls collectives by names that this torch is about to give up.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="deepspeed")
    found: dict[Any, Any] = {each: ten_steps(*each) for each in RUNS}
    states = {}
    for stage in (*STAGES, "plain"):
        states[stage], *found["resumed", stage] = straight(stage)
        found["refused", stage] = refused(stage, chunk_size=3 if stage == 2 else None)
    for stage in STAGES:
        found["bounded", stage] = bounded(stage)
    found["crossed"] = crossed(states)
    if distributed.main_process():
        torch.save(states, folder / "states.pt")
        (folder / "deepspeed.json").write_text(json.dumps(FILE))
    distributed.gather_objects("written")
    for way, (name, stage, ways, changes) in OTHER_WAYS.items():
        ways = {key: folder / value if key == "deepspeed_config" else value
                for key, value in ways.items()}  # fmt: skip
        found[way] = another(name, stage, ways, changes)
    return found | {"low": (low(1), low(3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[Any, Any]]:
    return run(all_found, folder, folder)


@pytest.mark.parametrize(("name", "stage", "chunk_size"), RUNS)
def test_ten_steps_lead_to_the_plain_engines_weights(found, name, stage, chunk_size) -> None:
    expected = trained(CASES[name], torch.float32)
    size = norm(expected)
    for two in found:
        weights = two[name, stage, chunk_size]
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            assert weights[key].shape == value.shape
            torch.testing.assert_close(weights[key], value, atol=1e-5, rtol=1e-5, msg=key)
        assert norm({key: weights[key] - value for key, value in expected.items()}) <= 1e-6 * size


def norm(weights: dict[str, Tensor]) -> float:
    return math.sqrt(sum(value.square().sum().item() for value in weights.values()))


@pytest.mark.parametrize("stage", [*STAGES, "plain"])
def test_an_engine_that_takes_over_goes_on_to_the_bit(found, stage: int) -> None:
    for two in found:
        assert same(*two["resumed", stage])


def test_every_engine_takes_over_from_every_other(found) -> None:
    for two in found:
        expected, _ = two["resumed", "plain"]
        size = norm(expected)
        for way, weights in two["crossed"].items():
            apart = {name: weights[name] - value for name, value in expected.items()}
            assert norm(apart) <= 1e-6 * size, way


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_end_with_the_plain_engines_weights(found, way: str) -> None:
    for two in found:
        weights = two[way]
        averages = weights.pop("averages")
        assert same(weights["one go"], weights["taken over"])
        assert same(*averages[:2])
        expected = weights["plain"]
        apart = {name: weights["one go"][name] - value for name, value in expected.items()}
        assert norm(apart) <= (1e-4 if way == "in float16" else 1e-6) * norm(expected)


def elsewhere(given: tuple[Path, list[tuple[Any, Any]]]) -> dict[Any, dict[str, Tensor]]:
    """The weights that other engines lead to from the states of two processes."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="deepspeed")
    states, found = torch.load(given[0], weights_only=True), {}
    for there, here in given[1]:
        engine = engine_of("clips, loose", here)
        engine.restore(states[there])
        found[there, here] = steps(engine, "clips, loose", range(3, 5))
    return found


@pytest.mark.parametrize(
    ("count", "ways"),
    [(1, [(2, 3), (3, 1), (3, "plain")]), (4, [(3, "plain")])],
)
def test_what_two_processes_saved_goes_on_in_one_or_four(
    found, folder: Path, tmp_path, count: int, ways: list[tuple[Any, Any]]
) -> None:
    expected, _ = found[0]["resumed", "plain"]
    for one in run(elsewhere, (folder / "states.pt", ways), tmp_path, count=count):
        assert one.keys() == set(ways)
        for way, weights in one.items():
            apart = {name: weights[name] - value for name, value in expected.items()}
            assert norm(apart) <= 1e-6 * norm(expected), way


@pytest.mark.parametrize("stage", STAGES)
def test_the_temperature_is_clamped_for_good(found, stage: int) -> None:
    for two in found:
        assert two["bounded", stage] == pytest.approx((100.0, 100.0), rel=1e-4)


@pytest.mark.parametrize("stage", [*STAGES, "plain"])
def test_bad_steps_change_nothing_in_any_process(found, stage: int) -> None:
    for two in found:
        faults, fine = zip(*two["refused", stage], strict=True)
        assert all(fine)
        assert re.fullmatch("the gradient norm is (inf|nan)", faults[0])
        assert re.fullmatch("the gradient norm is (inf|nan)", faults[1])
        assert faults[2:] == ("the loss is nan", None)


def test_under_bfloat16_all_stages_agree(found) -> None:
    first, third = found[0]["low"]
    for name, value in first.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(third[name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("changes", [{"optimizer": "bertadam"}, {"precision": "reference-fp16"}])
def test_what_looks_at_whole_weights_is_refused(changes: dict) -> None:
    optim = replace(Optim(), **changes)
    with pytest.raises(ConfigError, match="ZeRO stage 2 cuts"):
        DeepSpeedEngine(build(), optim, steps=1, run=Run(engine="deepspeed", zero=2))
