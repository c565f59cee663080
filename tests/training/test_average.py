"""The moving average of the weights: by hand, beside the training, restored, in the loop."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from processes import run
from test_distributed import CASES, SIZES, model_of, optim_of, part, whole
from test_engine import OPTIM, batch
from torch import Tensor, nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.training.deepspeed_engine import DeepSpeedEngine
from videoclip.training.engine import Engine

DECAY = 0.7


def engine_of(model: nn.Module, **changes: Any) -> Engine:
    engine = Engine(model, replace(OPTIM, **({"ema": DECAY} | changes)), steps=9)
    engine.train()
    return engine


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def by_hand(seen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average over the weights before the first step, after it, after the second, ..."""
    average = {name: value.double() for name, value in seen[0].items()}
    for weights in seen[1:]:
        for name, value in weights.items():
            average[name] = DECAY * average[name] + (1 - DECAY) * value.double()
    return average


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, atol=1e-6, rtol=1e-6, msg=name)


def test_it_is_the_one_computed_by_hand_and_changes_no_training() -> None:
    """With dropout in the scorer, whose draws must stay those of the run without an average."""
    torch.manual_seed(3)
    engine = engine_of(build(scorer="tight"))
    seen = [copied(engine.weights())]
    assert_close(engine.trained().state_dict(), by_hand(seen))
    for number in range(4):
        engine.step(batch(number))
        seen.append(copied(engine.weights()))
        assert_close(engine.trained().state_dict(), by_hand(seen))
    assert not torch.equal(seen[-1]["clip.visual.proj"], engine.trained().clip.visual.proj)
    torch.manual_seed(3)
    plain = engine_of(build(scorer="tight"), ema=None)
    for number in range(4):
        plain.step(batch(number))
    assert plain.trained() is plain.model
    for name, value in plain.weights().items():
        assert torch.equal(seen[-1][name], value), name


def test_what_is_locked_is_not_averaged() -> None:
    engine = engine_of(build(), lock="image")
    engine.step(batch(0))
    names = engine.average.weights().keys()
    assert "clip.text_projection" in names
    assert not any(name.startswith("clip.visual.") for name in names)
    visual = engine.trained().clip.visual.state_dict()
    assert all(torch.equal(visual[n], v) for n, v in engine.model.clip.visual.state_dict().items())


def test_a_restored_engine_averages_on_to_the_bit(tmp_path: Path) -> None:
    straight = engine_of(build())
    for number in range(4):
        if number == 2:
            torch.save(straight.state(), tmp_path / "state")
        straight.step(batch(number))
    again = engine_of(build(head="mean"))
    again.restore(torch.load(tmp_path / "state", weights_only=True))
    for number in range(2, 4):
        again.step(batch(number))
    for found, wanted in ((again.trained(), straight.trained()), (again.model, straight.model)):
        for name, value in wanted.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=rf"ema is {decay}; it must be at least 0 and below 1"):
        Optim(ema=decay)


def zero(stage: int) -> tuple[dict[str, Tensor], ...]:
    """Averages of ZeRO: by hand, as the engine has them, as its copy has, and taken over."""
    case = CASES["clips, tight"]

    def made() -> DeepSpeedEngine:
        optim = optim_of(case, ema=DECAY)
        return DeepSpeedEngine(
            model_of(case, torch.float32), optim, steps=9, run=Run(engine="deepspeed", zero=stage)
        )

    engine = made()
    engine.train()
    seen = [engine.weights()]
    for number in range(3):
        engine.step(part(whole(case, number, torch.float32, SIZES[1])))
        seen.append(engine.weights())
    averages = engine.average.weights()
    other = made()
    other.average.restore(averages)
    return by_hand(seen), averages, engine.trained().state_dict(), other.average.weights()


def every_stage(_: None) -> list[tuple[dict[str, Tensor], ...]]:
    """What the processes find; one start of them serves all stages."""
    # DeepSpeed calls collectives by names that this torch is about to give up.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="deepspeed")
    return [zero(stage) for stage in range(4)]


def test_every_stage_of_zero_has_the_whole_average(tmp_path: Path) -> None:
    for process in run(every_stage, None, tmp_path):
        for wanted, averages, shown, restored in process:
            assert_close(averages, wanted)
            assert averages["clip.logit_scale"].ndim == 0
            for name, value in averages.items():
                assert torch.equal(shown[name], value), name
                assert torch.equal(restored[name], value), name
