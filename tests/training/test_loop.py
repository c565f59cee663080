"""The loop: bad steps, bad samples, memory that runs out, and what a run leaves for its readers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, captions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard_events import events

import videoclip
from videoclip.errors import OutOfMemoryError, VideoclipError
from videoclip.experiment import Optim, Run
from videoclip.training.engine import Engine
from videoclip.training.logbook import BAD_SAMPLES, BAD_STEPS, EVENTS, read_bad_steps, read_metrics
from videoclip.training.loop import Evaluated, Plan, Trained, train_through
from videoclip.training.pictures import score_map
from videoclip.training.snapshots import newest
from videoclip.training.states import STATES
from videoclip.types import Bad, Batch, Frames, Keys

EPOCHS, PER_EPOCH, CLIPS = 3, 4, 3


def batch_of(epoch: int, number: int) -> Batch:
    """A batch that is a function of its place."""
    with torch.random.fork_rng():
        torch.manual_seed(100 * epoch + number)
        pixels, ids = torch.randn(CLIPS, 4, 3, 16, 16), captions(CLIPS)
    names = tuple(f"e{epoch}b{number}c{clip}" for clip in range(CLIPS))
    keys = Keys.of(names, names)
    frames = Frames(pixels, torch.ones(CLIPS, 4, dtype=torch.bool))
    return Batch(frames, ids, keys.matches(), names, keys)


def nan(batch: Batch) -> Batch:
    """One pixel is not a number."""
    batch.frames.pixels[1, 0, 0, 0, 0] = torch.nan
    return batch


def endless(batch: Batch) -> Batch:
    """Clips that no memory holds."""
    pixels = torch.zeros(1, 1, 1, 1, 1).expand(CLIPS, 10**12, 3, 16, 16)
    return batch._replace(frames=Frames(pixels, torch.ones(1, 1).bool().expand(CLIPS, 10**12)))


def train(
    folder: Path,
    changes: dict[int, Any] | None = None,
    *,
    decides: dict[str, Any] | None = None,
    best_at: int = EPOCHS * PER_EPOCH,
    **run: Any,
) -> Trained:
    """A run whose batches some functions change, by the step; it is best after `best_at` steps."""
    torch.manual_seed(0)
    model = build(head="lstm", scorer="tight")
    optim = Optim(
        epochs=EPOCHS, tower_rate=1e-3, module_rate=2e-3, precision="fp32", stochastic_depth=0.5
    )  # fmt: skip
    engine = Engine(model, optim, steps=EPOCHS * PER_EPOCH, steps_per_epoch=PER_EPOCH)

    def draw(epoch: int, start: int) -> Iterator[Batch]:
        for number in range(start, PER_EPOCH):
            batch = batch_of(epoch, number)
            change = (changes or {}).get((epoch - 1) * PER_EPOCH + number + 1)
            yield change(batch) if change else batch

    def evaluate(model, at) -> Evaluated:
        values = {"validation": -abs(at.done - best_at), "zero_shot": weight(model)}
        picture = score_map(torch.randn(5, 7, generator=torch.Generator()).numpy(), "videos")
        return Evaluated(values, values["validation"], picture, f"after {at.done} steps")

    plan = Plan(
        folder=folder, run=Run(log_every=1, **run), epochs=EPOCHS, per_epoch=PER_EPOCH, draw=draw,
        evaluate=evaluate, decides=decides or {"optim": {"rate": 1e-3}, "head": "lstm", "no": None},
        unreadable={}, captions=lambda batch: list(batch.names), label="test",
    )  # fmt: skip
    return train_through(engine, plan)


def weight(model) -> float:
    """A number that every step changes."""
    return float(model.clip.visual.proj.detach().double().sum())


def same(first: Trained, second: Trained) -> bool:
    mine, theirs = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


# What goes wrong.


def test_bad_steps_are_listed_and_change_nothing(tmp_path, capsys) -> None:
    trained = train(tmp_path, {3: nan, 4: nan, 10: nan})
    assert trained.at.bad == 3
    assert trained.at.seen == (EPOCHS * PER_EPOCH - 3) * CLIPS
    assert read_bad_steps(tmp_path) == [
        {"step": step, "epoch": epoch, "reason": "the loss is nan", "samples": names}
        for step, epoch, names in [
            (3, 1, ["e1b2c0", "e1b2c1", "e1b2c2"]),
            (4, 1, ["e1b3c0", "e1b3c1", "e1b3c2"]),
            (10, 3, ["e3b1c0", "e3b1c1", "e3b1c2"]),
        ]
    ]
    lines = read_metrics(tmp_path)
    assert [line.get("bad_steps") for line in lines] == [None, 0, 0, 1, 2, *[2] * 5, 3, 3, 3]
    assert ["loss" in line for line in lines].count(False) == 4  # those, and before the first step
    good = [line["loss"] for line in lines[1:5] if "loss" in line]
    assert lines[4]["epoch_loss"] == pytest.approx(sum(good) / 2)
    assert "3 bad steps" in capsys.readouterr().err


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path) -> None:
    changes = {2: nan, **dict.fromkeys(range(4, 13), nan)}
    with pytest.raises(VideoclipError, match=r"3 steps in a row changed nothing.*bad_steps\.jsonl"):
        train(tmp_path, changes, bad_steps=3)
    assert [line["step"] for line in read_bad_steps(tmp_path)] == [2, 4, 5, 6]
    assert not (tmp_path / STATES).exists(), "what it came to is no state to go on from"


def test_what_is_trained_again_is_not_listed_twice(tmp_path) -> None:
    changes = {2: nan, 6: nan, 8: endless}
    with pytest.raises(OutOfMemoryError):
        train(tmp_path, changes)
    with (tmp_path / BAD_STEPS).open("a") as file:
        file.write('{"step": 9, "epoch": 3, "reason": "", "samples": []}\n')
    trained = train(tmp_path, {2: nan, 6: nan})
    assert [line["step"] for line in read_bad_steps(tmp_path)] == [2, 6]
    assert trained.at.bad == 2


def test_samples_that_cannot_be_read_are_listed_and_counted(tmp_path) -> None:
    def bad(batch: Batch) -> Batch:
        return batch._replace(bad=(Bad("lost", "it is gone", "e1b1c0"),))

    def empty(batch: Batch) -> Batch:
        nothing = Frames(batch.frames.pixels[:0], batch.frames.mask[:0])
        keys = Keys.of((), ())
        bads = (Bad("other", "it is gone too"),)
        return Batch(nothing, batch.ids[:0], keys.matches(), (), keys, bads)

    trained = train(tmp_path, {2: bad, 5: bad, 6: empty})
    assert trained.at.seen == (EPOCHS * PER_EPOCH - 1) * CLIPS
    lines = [json.loads(line) for line in (tmp_path / BAD_SAMPLES).read_text().splitlines()]
    assert [(line["step"], line["name"], line["instead"]) for line in lines] == [
        (2, "lost", "e1b1c0"), (5, "lost", "e1b1c0"), (6, "other", None),
    ]  # fmt: skip
    assert [line.get("skipped") for line in read_metrics(tmp_path)] == [
        None, 0, 1, 1, 1, 1, *[2] * 6,
    ]  # fmt: skip


def test_memory_that_runs_out_costs_nothing(tmp_path, capsys) -> None:
    """The state of before is saved, with the random numbers that the step had begun to draw."""
    whole = train(tmp_path / "whole")
    with pytest.raises(OutOfMemoryError, match=r"memory ran out at step 7.*chunk_size"):
        train(tmp_path / "run", {7: endless})
    assert "saved after step 6" in capsys.readouterr().err
    assert same(train(tmp_path / "run"), whole)


# Where a run goes on.


def test_a_state_of_other_settings_is_refused_and_the_difference_named(tmp_path) -> None:
    with pytest.raises(OutOfMemoryError):
        train(tmp_path, {3: endless}, decides={"optim": {"rate": 0.1, "epochs": 3}, "clips": "a"})
    with pytest.raises(VideoclipError) as refused:
        train(tmp_path, decides={"optim": {"rate": 0.2, "epochs": 3}, "clips": "b"})
    assert "optim.rate: 0.1 there, 0.2 now" in str(refused.value)
    assert "clips: 'a' there, 'b' now" in str(refused.value)
    assert "epochs" not in str(refused.value)


def test_resume_never_says_what_it_deletes(tmp_path, capsys, monkeypatch) -> None:
    with pytest.raises(OutOfMemoryError):
        train(tmp_path, {3: endless}, resume="never")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # a launcher's second try goes on
    with pytest.raises(OutOfMemoryError):
        train(tmp_path, {4: endless}, resume="never")
    assert "going on after step 2" in capsys.readouterr().err
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    whole = train(tmp_path / "whole")
    capsys.readouterr()
    assert same(train(tmp_path, resume="never"), whole)
    said = capsys.readouterr()
    assert f"the states in {tmp_path / STATES} are deleted" in said.out
    assert "going on" not in said.err
    assert len(read_metrics(tmp_path)) == 1 + EPOCHS * PER_EPOCH


def test_every_state_holds_models_that_open(tmp_path) -> None:
    with pytest.raises(OutOfMemoryError):
        train(tmp_path, {11: endless}, save_minutes=0, keep_last=3, best_at=4)
    names = sorted(path.name for path in (tmp_path / STATES).glob("step-*"))
    assert names == ["step-000000008", "step-000000009", "step-000000010"]
    found = newest(tmp_path / STATES)
    state = torch.load(found / "state.pt", weights_only=True)
    now, best = (videoclip.load(found / name) for name in ("model", "best"))
    for name, value in now.state_dict().items():
        assert torch.equal(value, state["engine"]["model"][name]), name
    about = json.loads((found / "run.json").read_text())
    assert (about["done"], about["seen"], about["epochs"]) == (10, 10 * CLIPS, 2)
    assert about["decides"]["head"] == "lstm"
    assert about["best"] == 0
    weights = {line["step"]: line["zero_shot"] for line in read_metrics(tmp_path) if "best" in line}
    assert weights.keys() == {0, 4, 8}
    assert weight(best) == weights[4] != weights[8]
    assert weight(train(tmp_path, best_at=4).model) == weights[4]


# What people watch.


def test_tensorboard_holds_what_the_table_says(tmp_path) -> None:
    trained = train(tmp_path, {5: nan})
    lines, shown = read_metrics(tmp_path), events(tmp_path)
    names = {name for line in lines for name in line} - {"step", "epoch"}
    assert {
        "loss", "epoch_loss", "validation", "best", "gradient_norm", "learning_rate",
        "module_rate", "samples_per_second", "waiting_for_data", "memory", "skipped", "bad_steps",
    } <= names  # fmt: skip
    assert shown.keys() == names
    for name in names:
        written = {line["step"]: line[name] for line in lines if name in line}
        assert shown[name] == pytest.approx(written, rel=1e-6), name
    assert lines[3]["module_rate"] == pytest.approx(2 * lines[3]["learning_rate"])

    found = EventAccumulator(str(tmp_path / EVENTS), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    assert [image.step for image in found.Images("batch")] == [1]
    assert [image.step for image in found.Images("scores")] == [0, 4, 8, 12]
    texts = {t.step: t.tensor_proto.string_val[0] for t in found.Tensors("worst/text_summary")}
    assert texts == {step: f"after {step} steps".encode() for step in (0, 4, 8, 12)}
    plugin = found.SummaryMetadata("_hparams_/session_start_info").plugin_data
    settings = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert settings["optim.rate"].number_value == pytest.approx(1e-3)
    assert settings["head"].string_value == "lstm"
    plugin = found.SummaryMetadata("_hparams_/experiment").plugin_data
    told = HParamsPluginData.FromString(plugin.content).experiment.metric_infos
    metrics = {metric.name.tag for metric in told}
    assert metrics == {"epoch_loss", "validation", "zero_shot", "best"}
    assert metrics <= shown.keys(), "the tab shows the last values of these"
    assert [path.name for path in (tmp_path / EVENTS).iterdir() if path.is_dir()] == []
    assert trained.history[-1].validation == lines[-1]["validation"]


def test_weights_and_biases_only_where_it_is_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(VideoclipError, match="pip install wandb"):
        train(tmp_path, report="wandb")
