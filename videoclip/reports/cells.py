"""One cell of a comparison: a row and a seed -> a trained model and the ranks of its test queries.

A cell is a folder that is marked as finished last of all, so that a comparison can be killed at any
point and started again, and a new row trains only itself.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from videoclip.checkpoints.weights import load
from videoclip.config import SLOTS, to_json
from videoclip.distributed import device, main_process, on_main
from videoclip.evaluation.evaluate import FRAME_ORDERS
from videoclip.evaluation.measure import Measured, measure
from videoclip.experiment import Data, Experiment, Row, deciding
from videoclip.frames.store import FrameStore
from videoclip.heads import Mean
from videoclip.manifest import manifest_hash, read_manifest, with_splits
from videoclip.mixers import NoMixer
from videoclip.model import VideoCLIP, count_parameters
from videoclip.prompts import templates_of
from videoclip.reports.locked import locked
from videoclip.reports.material import Material
from videoclip.scorers import Cosine
from videoclip.tasks import Recognition, Retrieval, Task
from videoclip.tasks.action_protocols import spelled
from videoclip.towers import Labels
from videoclip.training.loop import Evaluated
from videoclip.training.pictures import score_map
from videoclip.training.states import STATES
from videoclip.training.train import train

CELL = "cell.json"
RANKS = "ranks.parquet"


class Cell(NamedTuple):
    """One finished model: what `results.py` needs of it."""

    name: str
    """The row."""
    seed: int
    """The seed of order, augmentation and new weights."""
    facts: dict[str, Any]
    """Parameters, speed, history and the gallery."""
    ranks: pd.DataFrame
    """One line per query, direction and frame order."""
    home: Path
    """Its folder, which videoclip.load opens."""


def pretrained(material: Material, folder: Path) -> tuple[VideoCLIP, str]:
    """The image-text CLIP that all rows start from, trained once on single frames, and its key.

    The images come from `data.images`, or are one frame of every training clip.
    """
    experiment = material.experiment
    plain = replace(experiment.model, mixer=NoMixer(), head=Mean(), scorer=Cosine())
    data = replace(experiment.data, frames=1, augment="crop")
    task = Retrieval() if data.images else experiment.task
    source = manifest_hash(data.images) if data.images else material.key
    decides = {
        "model": to_json(plain), "data": _of_result(data),
        "optim": deciding(to_json(experiment.pretrain), to_json(plain.visual)),
        "task": to_json(task), "manifest": source,
    }  # fmt: skip
    key = _hash(*decides.values())
    home = folder / "base" / key
    if (home / CELL).is_file():
        return load(home), key
    if data.images:
        by_split, _ = with_splits(read_manifest(data.images), data.images, needed=("train", "val"))
    else:
        by_split = material.splits
    store = FrameStore(
        material.folder, size=plain.visual.image_size, frames=1, fit=plain.pixels.fit
    )
    takes = 1 if data.images else data.takes
    pictures = on_main(store.fill, by_split["train"], takes, "images to pre-train on")
    held_out = on_main(store.fill, by_split["val"], 1, "images to validate on")
    torch.manual_seed(0)
    model = plain.build().to(device())
    trained = train(
        model, task, pictures, store,
        optim=experiment.pretrain, data=replace(data, takes=takes), classes=material.classes,
        seed=0, label="pre-training", folder=home, run=experiment.run, decides=decides,
        validate=lambda m: evaluated(
            measure(m, task, held_out, store, words=data.words, classes=material.classes), task
        ),
    )  # fmt: skip
    facts = {"history": trained.history, "unreadable": store.unreadable}
    on_main(_finish, home, trained.model, facts)
    return load(home), key


def built(experiment: Experiment, classes: Sequence[str]) -> VideoCLIP:
    """The experiment's model with random weights, which will know how it was trained.

    One without a text tower gets the classes.
    """
    model, task = replace(experiment.model, frames=experiment.data.frames), experiment.task
    if isinstance(task, Recognition):
        model = replace(model, templates=templates_of(task.templates))
        if isinstance(model.text, Labels):
            names = tuple(spelled(classes, task.names))
            model = replace(model, text=replace(model.text, classes=names))
    return model.build()


def _of_result(data: Data) -> dict[str, Any]:
    """What of the data's settings decides a result besides the manifest."""
    return {k: v for k, v in to_json(data).items() if k not in ("manifest", "images", "workers")}


def run_cell(
    name: str,
    row: Row,
    seed: int,
    material: Material,
    base: VideoCLIP,
    base_key: str,
    folder: Path,
    *,
    whole: bool = False,
) -> Cell:
    """Trains and evaluates one row with one seed, or takes it as an earlier run finished it.

    It starts from the towers of `base`; with `whole` from its temporal modules too, where they are
    the row's.
    """
    experiment = row.of(material.experiment)
    model_json, data, task = to_json(experiment.model), experiment.data, experiment.task
    decides = {
        "model": model_json, "data": _of_result(data),
        "optim": deciding(to_json(experiment.finetune), model_json["visual"]),
        "task": to_json(task), "seed": seed, "manifest": material.key, "base": base_key,
        "whole": whole,
    }  # fmt: skip
    key = _hash(*decides.values())
    home = folder / "cells" / f"{name}-seed{seed}-{key[:8]}"
    if not (home / CELL).is_file():
        torch.manual_seed(seed)
        model = built(experiment, material.classes)
        if experiment.model.visual.pretrained:
            start(model, base, whole=whole)
        model.to(device())
        stores, texts, note = locked(model, experiment, material)
        measured = partial(
            measure, task=task, store=stores.evaluation, words=data.words,
            classes=material.classes, views=stores.views, texts=texts,
        )  # fmt: skip
        trained = train(
            model, task, material.splits["train"], stores.training,
            optim=experiment.finetune, data=data, classes=material.classes, seed=seed,
            label=f"{name}, seed {seed}", folder=home, run=experiment.run, decides=decides,
            texts=texts,
            validate=(lambda m: evaluated(measured(m, clips=material.splits["val"]), task))
            if experiment.selection == "best"
            else None,
        )  # fmt: skip
        model, test = trained.model, material.splits["test"]
        found = [measured(model, clips=test, order=order) for order in FRAME_ORDERS]
        normal = found[FRAME_ORDERS.index("normal")]
        facts = {
            "row": name,
            "seed": seed,
            "model": model_json,
            "history": trained.history,
            "parameters": count_parameters(list(model.parameters())),
            "new_parameters": count_parameters(model.new_parameters()),
            "ms_per_clip": normal.ms_per_clip,
            "note": note,
            "counts": normal.counts,
            "tie_notes": [
                f"{direction.replace('_', ' ')}, seed {seed}: {note}"
                for direction, note in normal.tie_notes.items()
            ],
            "gallery": normal.gallery,
        }
        ranks = pd.concat([each.ranks for each in found], ignore_index=True)
        on_main(_finish, home, model, facts, ranks)
    facts = json.loads((home / CELL).read_text())
    return Cell(name, seed, facts, pd.read_parquet(home / RANKS), home)


def evaluated(found: Measured, task: Task) -> Evaluated:
    """What the loop is told of a validation split."""
    lines = ["| rank | query | what came first |", "|--:|---|---|"]
    for item in found.worst:
        first = item.get("retrieved") or item["answers"]
        names = ", ".join(str(answer.get("video_id") or answer["label"]) for answer in first)
        query = item["query"].replace("|", "\\|")
        lines.append(f"| {item['rank']:g} | {query} ({item['truth']}) | {names} |")
    answers = "classes" if isinstance(task, Recognition) else "videos"
    picture = score_map(found.scores, answers) if main_process() else None
    values = {"validation": found.selection}
    return Evaluated(values, found.selection, picture, "\n".join(lines))


def start(model: VideoCLIP, base: VideoCLIP, *, whole: bool) -> None:
    """Gives a model the weights of another one: its towers, or all where that is meant and fits."""
    if whole and all(getattr(model.config, slot) == getattr(base.config, slot) for slot in SLOTS):
        model.load_state_dict(base.state_dict())
    else:
        model.start_from(base.clip)


def _finish(
    home: Path, model: VideoCLIP, facts: dict[str, Any], ranks: pd.DataFrame | None = None
) -> None:
    """Saves a model with its facts; the facts come last and mark the folder as finished."""
    model.save_pretrained(home)
    if ranks is not None:
        ranks.to_parquet(home / RANKS)
    partial = home / (CELL + ".part")
    partial.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    partial.replace(home / CELL)
    shutil.rmtree(home / STATES, ignore_errors=True)  # nothing goes on from there any more


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed comparison left half done and cannot go on with."""
    for home in [*folder.glob("cells/*"), *folder.glob("base/*")]:
        if not (home / CELL).is_file() and not (home / STATES).is_dir():
            shutil.rmtree(home)
