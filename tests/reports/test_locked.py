"""Locked towers are passed once: what is learned from kept features is what frames teach."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import clips as files
import processes
import pytest
import torch
from action_clips import ACTIONS, action
from models import HEADS, SCORERS, SIZE

from videoclip.__main__ import main
from videoclip.checkpoints.weights import load
from videoclip.evaluation.measure import measure
from videoclip.experiment import Data, Experiment, Optim, Run
from videoclip.features.store import FeatureStore
from videoclip.frames.store import FrameStore
from videoclip.heads import LSTM, Mean, Transformer
from videoclip.manifest import Clip, write_manifest
from videoclip.mixers import Shift
from videoclip.model import Model, VideoCLIP
from videoclip.reports.locked import Locked, locked, needs_frames
from videoclip.reports.material import Material, gather
from videoclip.scorers import Tight
from videoclip.tasks import Recognition, Retrieval, Task
from videoclip.towers import TSM, ResNet, Text, ViT
from videoclip.training.engine import Engine
from videoclip.training.train import draw_of

STEPS = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Nine clips of three actions; the splits have five, two and two."""
    folder, clips = tmp_path_factory.mktemp("clips"), []
    for number in range(9):
        label = ACTIONS[number % 3]
        path = files.write_video(folder / f"{number}.mp4", action(label, number, 4 + number))
        split = "train" if number < 5 else "val" if number < 7 else "test"
        captions = (f"{label} number {number}", f"clip {number} of {label}")
        clips.append(Clip(f"clip{number}", path, captions, label=label, split=split))
    write_manifest(folder / "clips.jsonl", clips)
    return folder / "clips.jsonl"


def experiment(manifest: Path, task: Task | None = None, **changes: Any) -> Experiment:
    model = {
        "visual": ViT(width=64, layers=2, patch_size=8, image_size=SIZE),
        "text": Text(width=32, layers=1, context_length=24),
        "embedding": 32,
    }
    data = {"frames": 4, "words": 12, "takes": 2, "crop": 1.0, "workers": 0}
    optim = {
        "epochs": 2, "batch_size": 3, "module_rate": 1e-3, "tower_rate": 1e-3, "lock": "both",
        "precision": "fp32", "warmup": 0.0,
        "epsilon": 1e-4,  # else Adam makes a step of the rounding of gradients that are zero
    }  # fmt: skip
    for given in (model, data, optim):
        given |= {key: changes.pop(key) for key in list(changes) if key in given}
    return Experiment(
        task=task or Retrieval(),
        model=Model(**model, **changes),
        data=Data(manifest=manifest, **data),
        finetune=Optim(**optim, loss="clip" if task is None else task_loss(task)),
    )


def task_loss(task: Task) -> str:
    return "ce" if getattr(task, "targets", "") == "classes" else "kl"


def built(experiment: Experiment) -> VideoCLIP:
    torch.manual_seed(0)
    model = experiment.model.build()
    with torch.no_grad():  # what starts at zero would hide that it is never read
        for parameter in model.new_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def learned(
    model: VideoCLIP, experiment: Experiment, material: Material, found: Locked, **optim: Any
) -> tuple[list[float], VideoCLIP]:
    """The losses of some steps, and what the model is then."""
    model, settings = copy.deepcopy(model), replace(experiment.finetune, **optim)
    draw, per_epoch = draw_of(
        model, experiment.task, material.splits["train"], found.stores.training, optim=settings,
        data=experiment.data, classes=material.classes, seed=0, texts=found.texts,
        run=Run(),
    )  # fmt: skip
    torch.manual_seed(1)  # of dropout
    engine, losses = Engine(model, settings, steps=STEPS), []
    engine.train()
    for number in range(STEPS):
        epoch, start = divmod(number, per_epoch)
        losses.append(engine.step(next(draw(epoch + 1, start))).loss)
    return losses, model


def assert_same(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert len(set(expected[0])) > 1
    weights = expected[1].state_dict()
    for name, value in found[1].state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-4, msg=name)


TASKS = {
    "retrieval": Retrieval(captions="every"),
    "texts": Recognition(templates=("a {}", "it shows {}")),
    "classes": Recognition(templates=("a {}",), targets="classes"),
}


@pytest.mark.parametrize("scorer", [s for s in SCORERS if s != "dot"])
@pytest.mark.parametrize("head", HEADS)
def test_all_heads_and_scorers_learn_the_same_from_features(
    head: str, scorer: str, manifest: Path, tmp_path: Path
) -> None:
    tried = experiment(manifest, head=HEADS[head](), scorer=SCORERS[scorer]())
    material = gather([tried], tmp_path)
    model = built(tried)
    found = locked(model, tried, material)
    assert isinstance(found.stores.training, FeatureStore)
    pixels = Locked(material.stores(tried), None, None)
    for options in ({}, {"chunk_size": 2}):
        ours = learned(model, tried, material, found, **options)
        assert_same(ours, learned(model, tried, material, pixels, **options))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lock", ["image", "text", "both"])
def test_all_tasks_learn_and_measure_the_same_under_every_lock(
    lock: str, task: str, manifest: Path, tmp_path: Path
) -> None:
    tried = experiment(manifest, TASKS[task], head=LSTM(), lock=lock)
    if isinstance(tried.task, Recognition):
        tried = replace(tried, task=replace(tried.task, views="2x3"))
    material = gather([tried], tmp_path)
    model = built(tried)
    found = locked(model, tried, material)
    pixels = Locked(material.stores(tried), None, None)
    assert isinstance(found.stores.training, FeatureStore) == (lock != "text")
    assert (found.texts is None) == (lock == "image")
    ours = learned(model, tried, material, found)
    assert_same(ours, learned(model, tried, material, pixels))
    for order in ("normal", "shuffled"):
        asked = partial(
            measure, ours[1], tried.task, material.splits["test"], words=tried.data.words,
            classes=material.classes, order=order, views=pixels.stores.views,
        )  # fmt: skip
        plain = asked(store=pixels.stores.evaluation)
        kept = asked(store=found.stores.evaluation, texts=found.texts)
        assert kept.ranks.equals(plain.ranks)
        assert kept.counts == plain.counts


class Redrawn(FrameStore):
    """The frames that a feature store shows its tower, as a frame store."""

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store.frames.folder, size=SIZE, frames=store.frames.frames)
        self.store = store

    def read(self, clip: Clip, takes: int, take: int = 0) -> torch.Tensor:
        return self.store.shown(clip, takes)[take]


def test_a_crop_is_drawn_once_per_take(manifest: Path, tmp_path: Path) -> None:
    tried = experiment(manifest, head=Transformer(layers=1), crop=0.4)
    material = gather([tried], tmp_path)
    model = built(tried)
    found = locked(model, tried, material)
    stores = found.stores._replace(training=Redrawn(found.stores.training))
    uncut = replace(tried, data=replace(tried.data, crop=1.0))
    expected = learned(model, uncut, material, Locked(stores, None, None))
    assert_same(learned(model, tried, material, found), expected)
    anew = learned(model, tried, material, Locked(material.stores(tried), None, None))
    assert anew[0] != pytest.approx(expected[0], abs=1e-5)


def test_rounded_towers_are_those_that_are_kept(manifest: Path, tmp_path: Path) -> None:
    """With reference-fp16 the engine rounds the towers' weights, also the locked ones."""
    tried = experiment(manifest, head=LSTM(), precision="reference-fp16")
    material = gather([tried], tmp_path)
    model = built(tried)
    pixels = Locked(material.stores(tried), None, None)
    expected = learned(model, tried, material, pixels)
    assert_same(learned(model, tried, material, locked(model, tried, material)), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixer": Shift()}, "the mixer Shift works inside it"),
        ({"visual": ViT(width=64, layers=1, patch_size=8, image_size=SIZE, patch_frames=3)},
         "ViT looks at several frames at once"),
        ({"visual": TSM(), "embedding": 2048}, "TSM looks at several frames at once"),
        ({"task": Recognition(mix="mixup-cutmix")}, "mixup-cutmix mixes the pixels"),
        ({"visual": ResNet(width=8, layers=(1, 1, 1, 1), image_size=32)}, None),
        ({"head": Mean(), "scorer": Tight(layers=1)}, None),
    ],
)  # fmt: skip
def test_what_needs_frames_says_why(changes: dict, reason: str | None, manifest: Path) -> None:
    tried = experiment(manifest, **changes)
    found = needs_frames(tried.model.build(), tried.task.mix)
    assert (reason is None and found is None) or reason in found


def test_a_head_that_reads_layers_needs_frames(manifest: Path) -> None:
    tried = experiment(manifest)
    model = tried.model.build()
    model.head.reads_layers = 2
    assert needs_frames(model) == "the head Mean reads its layers"


def test_no_lock_changes_nothing(manifest: Path, tmp_path: Path) -> None:
    tried = experiment(manifest, lock="none")
    material = gather([tried], tmp_path)
    found = locked(built(tried), tried, material)
    assert isinstance(found.stores.training, FrameStore)
    assert (found.texts, found.note) == (None, None)
    assert not (tmp_path / "features").exists()


def test_rows_and_seeds_of_a_comparison_pass_the_towers_once(
    manifest: Path, tmp_path: Path, monkeypatch
) -> None:
    from videoclip.features import store

    made, embed = [], store.embed
    monkeypatch.setattr(store, "embed", lambda m, p: made.append(1) or embed(m, p))
    sizes = [
        "--model.visual.layers", "1", "--model.text.layers", "1", "--frames", "4",
        "--data.takes", "2", "--pretrain.epochs", "1", "--finetune.epochs", "1",
        "--data.workers", "0", "--finetune.lock", "both", "--data", str(manifest),
    ]  # fmt: skip
    command = ["compare", "moving_shapes", "--output", str(tmp_path / "run"), *sizes]
    assert main([*command, "--modules", "mean,lstm,shift", "--seeds", "0,1"]) == 0
    assert len(made) == 9  # 5 clips to train on, 2 of val and 2 of test
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    notes = "\n".join(results["protocol"]["notes"])
    assert "lstm: trained on features that the locked vision tower made once" in notes
    assert "shift: the vision tower is locked, but sees every epoch: the mixer Shift" in notes
    [base] = (tmp_path / "run" / "base").iterdir()
    towers = load(base).clip.state_dict()
    for cell in (tmp_path / "run" / "cells").iterdir():
        for name, value in load(cell).clip.state_dict().items():
            assert torch.equal(value, towers[name]) == (name != "logit_scale"), (cell, name)
    shared = ["--output", str(tmp_path / "other"), "--run.features", str(tmp_path / "run/features")]
    again = ["compare", "moving_shapes", *shared, *sizes, "--checkpoint", str(base)]
    assert main([*again, "--modules", "lstm", "--seeds", "7"]) == 0
    assert len(made) == 9


def two_processes(arguments: tuple[Path, Path]) -> tuple[list[float], dict[str, torch.Tensor]]:
    manifest, folder = arguments
    tried = experiment(manifest, head=LSTM())
    material = gather([tried], folder)
    model = built(tried)
    found = locked(model, tried, material)
    losses, model = learned(model, tried, material, found, chunk_size=2)
    return losses, model.state_dict()


def test_two_processes_are_one(manifest: Path, tmp_path: Path) -> None:
    tried = experiment(manifest, head=LSTM())
    material = gather([tried], tmp_path / "one")  # and the frames of both runs
    model = built(tried)
    expected = learned(model, tried, material, locked(model, tried, material))
    material = gather([tried], tmp_path / "two")
    for losses, weights in processes.run(
        two_processes, (manifest, tmp_path / "two"), tmp_path / "answers"
    ):
        torch.testing.assert_close(losses, expected[0], atol=1e-5, rtol=1e-5)
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[1].state_dict()[name], atol=1e-5, rtol=1e-4)
    kept = tmp_path / "two" / "features"
    assert len(list(kept.glob("clips-*/*.safetensors"))) == 2 * 3  # by each, of each split
    assert len(list(kept.glob("texts-*/*.safetensors"))) == 2
