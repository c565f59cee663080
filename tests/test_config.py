"""Configurations survive JSON, and what does not fit is refused by name."""

import json
from pathlib import Path

import pytest

from experiments import moving_shapes
from videoclip.config import ConfigError, from_json, to_json
from videoclip.experiment import Data, Experiment, Row, row_named
from videoclip.heads import LSTM, Mean
from videoclip.mixers import Shift
from videoclip.model import Model
from videoclip.scorers import Tight
from videoclip.towers import ViT


def test_an_experiment_survives_json() -> None:
    model = Model(mixer=Shift(divisor=4), head=LSTM(layers=2), scorer=Tight(dropout=0.5))
    experiment = Experiment(model=model, data=Data(manifest=Path("a/b.jsonl"), crop=1))
    text = json.dumps(to_json(experiment), allow_nan=False)
    assert from_json(Experiment, json.loads(text)) == experiment


def test_every_row_of_every_recipe_survives_json() -> None:
    for row in moving_shapes.rows.values():
        assert from_json(Row, json.loads(json.dumps(to_json(row)))) == row
        assert row.of(moving_shapes.base).model.build()


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Model, {"embeding": 3}, "did you mean 'embedding'"),
        (Model, {"head": {"kind": "lstmm"}}, "did you mean 'lstm'"),
        (Model, {"head": {"layers": 3}}, "expected an object with a 'kind'"),
        (Model, {"head": {"kind": "lstm", "layers": "3"}}, "head.layers is '3'"),
        (Model, {"visual": {"activation": "relu"}}, "visual.activation is 'relu'"),
        (Model, {"visual": 3}, "visual is 3"),
        (Model, {"pixels": {"mean": [0.5]}}, "pixels.mean"),
        (Data, {"frames": True}, "frames is True"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(annotation, value, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_json(annotation, value)
    assert message in str(error.value)


def test_rows_are_named_by_recipe_or_by_modules() -> None:
    rows = {"best": Row(head=LSTM(layers=3))}
    assert row_named("best", rows).head == LSTM(layers=3)
    assert row_named("shift+lstm+tight", rows) == Row(mixer=Shift(), head=LSTM(), scorer=Tight())
    base = Experiment(model=Model(head=LSTM()))
    assert row_named("mean", {}).of(base).model.head == Mean()
    assert row_named("shift", {}).of(base).model.head == LSTM()
    with pytest.raises(ConfigError, match="did you mean 'best'"):
        row_named("bets", rows)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="32 pixels do not tile a frame of 100"):
        ViT(image_size=100)
    with pytest.raises(ValueError, match="divisor is 1"):
        Shift(divisor=1)
