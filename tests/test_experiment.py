"""Rows and recipes: what fits together, and one clear message where it does not."""

from dataclasses import replace

import pytest

from videoclip.config import ConfigError
from videoclip.experiment import Experiment, Optim, Row
from videoclip.heads import LSTM
from videoclip.mixers import Joint, Shift
from videoclip.model import Model
from videoclip.tasks import Recognition
from videoclip.towers import Labels, Network, ResNet


def test_a_row_replaces_the_slots_that_it_names() -> None:
    base = Experiment()
    model = Row(head=LSTM(), mixer=Shift()).of(base).model
    assert model == replace(base.model, head=LSTM(), mixer=Shift())


def test_a_tower_without_a_place_for_a_mixer_says_so() -> None:
    base = Experiment(model=Model(visual=ResNet(), embedding=1024))
    with pytest.raises(ConfigError, match="a ResNet has no tokens for the mixer Joint"):
        Row(mixer=Joint()).of(base)
    assert Row(mixer=Shift()).of(base).model.mixer == Shift()


def test_a_row_without_a_text_tower_is_for_recognition() -> None:
    row = Row(visual=Network(), text=Labels())
    with pytest.raises(ConfigError, match="can recognize, but not retrieve"):
        row.of(Experiment())
    assert row.of(Experiment(task=Recognition())).task.templates == ("{}",)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", -1), ("batch_size", 0), ("chunk_size", 0), ("warmup", 1.5)]
)
def test_numbers_with_which_nothing_can_be_trained_are_refused(field, value) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        Optim(**{field: value})
