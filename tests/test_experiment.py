"""Rows and recipes: what fits together, and one clear message where it does not."""

from dataclasses import replace

import pytest

from videoclip.config import ConfigError
from videoclip.experiment import Experiment, Optim, Row
from videoclip.heads import LSTM
from videoclip.mixers import Shift
from videoclip.model import Model
from videoclip.towers import ResNet


def test_a_row_replaces_the_slots_that_it_names() -> None:
    base = Experiment()
    model = Row(head=LSTM(), mixer=Shift()).of(base).model
    assert model == replace(base.model, head=LSTM(), mixer=Shift())


def test_a_tower_without_a_place_for_a_mixer_says_so() -> None:
    base = Experiment(model=Model(visual=ResNet(), embedding=1024))
    with pytest.raises(ConfigError, match="a ResNet takes no mixer inside"):
        Row(mixer=Shift()).of(base)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", -1), ("batch_size", 0), ("chunk_size", 0), ("warmup", 1.5)]
)
def test_numbers_with_which_nothing_can_be_trained_are_refused(field, value) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        Optim(**{field: value})
