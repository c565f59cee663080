"""The numbers of a run: the same in both files, no step twice, and a picture of them."""

import json

import pytest
from PIL import Image
from tensorboard_events import events

from videoclip.training.logbook import CURVE, METRICS, Logbook, curve, read_metrics


def test_both_files_hold_the_same_numbers(tmp_path) -> None:
    logbook = Logbook(tmp_path, last=-1)
    logbook.write(0, 0, zero_shot=10.0)
    logbook.write(5, 1, loss=2.5, learning_rate=0.125)
    logbook.write(10, 2, loss=1.5, learning_rate=0.0625, zero_shot=60.0)
    logbook.close()
    assert read_metrics(tmp_path) == [
        {"step": 0, "epoch": 0, "zero_shot": 10.0},
        {"step": 5, "epoch": 1, "loss": 2.5, "learning_rate": 0.125},
        {"step": 10, "epoch": 2, "loss": 1.5, "learning_rate": 0.0625, "zero_shot": 60.0},
    ]
    assert events(tmp_path) == {
        "zero_shot": {0: 10.0, 10: 60.0},
        "loss": {5: 2.5, 10: 1.5},
        "learning_rate": {5: 0.125, 10: 0.0625},
    }


def test_a_run_that_goes_on_takes_back_what_lies_after_its_state(tmp_path) -> None:
    first = Logbook(tmp_path, last=-1)
    for step in (1, 2, 3, 4):
        first.write(step, 1, loss=float(step))
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "ep')  # a kill cut the line off
    second = Logbook(tmp_path, last=2)
    second.write(3, 1, loss=30.0)
    second.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 30.0),
    ]  # fmt: skip
    assert events(tmp_path) == {"loss": {1: 1.0, 2: 2.0, 3: 30.0}}


def test_numbers_are_strict_json(tmp_path) -> None:
    logbook = Logbook(tmp_path, last=-1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        logbook.write(1, 1, loss=float("nan"))
    logbook.close()
    assert (tmp_path / METRICS).read_text() == ""


@pytest.mark.parametrize("watched", [True, False])
def test_the_curve_is_a_picture(tmp_path, watched: bool) -> None:
    lines = [{"step": step, "epoch": 1, "loss": 3.0 / (step + 1)} for step in range(8)]
    if watched:
        lines[4]["zero_shot"] = 50.0
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve(tmp_path, "a $run", 4)
    with Image.open(tmp_path / CURVE) as picture:
        assert picture.size[0] > 600
        assert len(picture.convert("RGB").getcolors(2**20)) > 20
