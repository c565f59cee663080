"""`videoclip train`: one row, trained in one go, in pieces and by two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_prep.moving_shapes import generate
from videoclip.__main__ import main
from videoclip.checkpoints.weights import load

SMALL = [
    "--pretrain.epochs", "1", "--finetune.epochs", "2", "--finetune.batch-size", "8",
    "--finetune.precision", "fp32", "--pretrain.precision", "fp32",
    "--frames", "4", "--data.takes", "2",
]  # fmt: skip
SIZES = ["--model.visual.layers", "1", "--model.text.layers", "1"]
"""Of towers that are new; a checkpoint has its own."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    return generate(
        folder, clips_per_caption=1, images=60, shapes=["square"], colors=["red", "blue"]
    )


@pytest.fixture(scope="module")
def base(shapes: Path, tmp_path_factory) -> Path:
    """A small CLIP, pre-trained for one epoch by a run without fine-tuning."""
    folder = tmp_path_factory.mktemp("base")
    train(shapes, folder, "moving_shapes.mean", "--finetune.epochs", "0")
    [home] = folder.glob("base/*")
    return home


def arguments(shapes: Path, output: Path, row: str, *more: str) -> list[str]:
    images = str(shapes.with_name("images.jsonl"))
    given = ["train", row, "--data", str(shapes), "--images", images, "--output", str(output)]
    return [*given, *SMALL, *([] if "--checkpoint" in more else SIZES), *more]


def train(shapes: Path, output: Path, row: str, *more: str) -> dict:
    assert main(arguments(shapes, output, row, *more)) == 0
    return json.loads((output / "results.json").read_text())


def weights(output: Path, results: dict, row: str) -> dict[str, torch.Tensor]:
    [model] = results["models"][row]
    return load(output / model).state_dict()


@pytest.mark.parametrize(
    ("row", "main_figure"), [("moving_shapes.lstm", "R@1"), ("moving_actions.shift", "top-1")]
)
def test_a_row_becomes_a_model_and_a_table(shapes, tmp_path, capsys, row, main_figure) -> None:
    results = train(shapes, tmp_path, row)
    printed = capsys.readouterr().out
    name = row.partition(".")[2]
    [line] = results["rows"]
    assert line["name"] == name
    assert main_figure in next(iter(line[results["measure"]["direction"]]))
    assert f"| {name}" in printed
    [model] = results["models"][name]
    assert f"The model, for videoclip.load: {tmp_path / model}" in printed
    config = load(tmp_path / model).config
    assert config.frames == 4
    assert config.templates == (("a shape {}",) if main_figure == "top-1" else ())
    assert (tmp_path / model / "metrics.jsonl").stat().st_size


def test_stopped_and_started_again_it_ends_with_the_same_weights(shapes, base, tmp_path) -> None:
    more = ("--checkpoint", str(base), "--finetune.epochs", "12")
    whole = train(shapes, tmp_path / "whole", "moving_shapes.lstm", *more)
    given = arguments(shapes, tmp_path / "parts", "moving_shapes.lstm", *more)
    command = [sys.executable, "-m", "videoclip", *given]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    log = tmp_path / "parts" / "cells"
    while process.poll() is None and not any(p.stat().st_size for p in log.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    told = process.communicate()[1].decode()
    assert process.returncode == 75, told
    assert "the same command goes on from there" in told
    assert not list(log.glob("*/cell.json"))
    parts = train(shapes, tmp_path / "parts", "moving_shapes.lstm", *more)
    one = weights(tmp_path / "whole", whole, "lstm")
    two = weights(tmp_path / "parts", parts, "lstm")
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
    assert whole["rows"][0]["text_to_video"] == parts["rows"][0]["text_to_video"]


def test_two_processes_train_what_one_trains(shapes: Path, base: Path, tmp_path: Path) -> None:
    more = ("--checkpoint", str(base), "--finetune.epochs", "2")
    one = train(shapes, tmp_path / "one", "moving_shapes.transformer", *more)
    given = arguments(shapes, tmp_path / "two", "moving_shapes.transformer", *more)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "videoclip", *given,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.count("# manifest, transformer") == 1, "one of them speaks"
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    first = weights(tmp_path / "one", one, "transformer")
    second = weights(tmp_path / "two", two, "transformer")
    for key, value in first.items():
        assert torch.allclose(value, second[key], rtol=1e-4, atol=1e-5), key
    history = [
        [epoch[1] for epoch in json.loads(path.read_text())["history"][1:]]
        for folder in ("one", "two")
        for path in (tmp_path / folder).glob("cells/*/cell.json")
    ]
    assert history[0] == pytest.approx(history[1], rel=1e-4)


def test_a_model_with_the_same_modules_is_trained_further(shapes, base, tmp_path) -> None:
    first = train(shapes, tmp_path / "a", "moving_shapes.lstm", "--checkpoint", str(base))
    [model] = first["models"]["lstm"]
    still = ("--checkpoint", str(tmp_path / "a" / model), "--finetune.epochs", "0")
    second = train(shapes, tmp_path / "b", "moving_shapes.lstm", *still)
    before = weights(tmp_path / "a", first, "lstm")
    for key, value in weights(tmp_path / "b", second, "lstm").items():
        assert torch.equal(value, before[key])
    third = train(shapes, tmp_path / "c", "moving_shapes.transformer", *still)
    after = weights(tmp_path / "c", third, "transformer")
    assert torch.equal(after["clip.visual.proj"], before["clip.visual.proj"])
    assert set(after) != set(before), "other modules start anew, from the towers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["moving_shapes"], "which row of moving_shapes is to be trained? moving_shapes.ROW"),
        (["moving_shape.mean"], "did you mean 'moving_shapes'"),
        (["moving_shapes.lstn"], "did you mean 'lstm'"),
        (["msrvtt.mean"], "msrvtt has no data of its own; use --data MANIFEST"),
        (["digits.mean"], "videoclip pretrain digits"),
    ],
)
def test_what_cannot_be_trained_gets_one_clear_message(given, message, tmp_path, capsys) -> None:
    assert main(["train", *given, "--output", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
