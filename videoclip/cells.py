"""One cell of a comparison: a row and a seed -> a trained model and the ranks of its test queries.

A cell is a folder that is marked as finished last of all, so that a comparison can be killed at any
point and started again, and a new row trains only itself.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from videoclip.config import to_json
from videoclip.data import FrameStore
from videoclip.errors import VideoclipError
from videoclip.evaluate import DIRECTIONS, FRAME_ORDERS, Evaluation, FrameOrder, evaluate
from videoclip.experiment import Experiment, Row
from videoclip.heads import Mean
from videoclip.manifest import Clip, manifest_hash, read_manifest, require_captions, with_splits
from videoclip.metrics import tie_note
from videoclip.mixers import NoMixer
from videoclip.model import VideoCLIP, count_parameters
from videoclip.scorers import Cosine
from videoclip.tokenizer import Tokenizer
from videoclip.train import train
from videoclip.weights import load

CELL = "cell.json"


class Material(NamedTuple):
    """What all cells of a comparison share."""

    experiment: Experiment
    """The base of all rows."""
    splits: Mapping[str, Sequence[Clip]]
    """train, val and test; test holds the unreadable clips too."""
    store: FrameStore
    """The decoded frames."""
    tokenizer: Tokenizer
    """Cuts captions to the experiment's number of words."""
    key: str
    """A hash of the manifest: another manifest, other cells."""
    notes: list[str]
    """What a reader of the table must know about the data."""


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


def gather(experiment: Experiment, folder: Path) -> Material:
    """Reads the manifest, splits it and decodes every clip once.

    Raises ManifestError or VideoclipError where there is nothing to train or to test on.
    """
    path = experiment.data.manifest
    if path is None:
        raise VideoclipError("no manifest is given; use --data MANIFEST")
    tokenizer = experiment.model.tokenizer(experiment.data.words)
    clips = read_manifest(path)
    require_captions(clips, path)
    by_split, note = with_splits(clips, path)
    store = FrameStore(
        folder / "frames",
        size=experiment.model.visual.image_size,
        frames=experiment.data.frames,
        fit=experiment.model.pixels.fit,
    )
    takes = experiment.data.takes
    readable = {
        split: store.fill(by_split[split], takes if split == "train" else 1, split)
        for split in ("train", "val", "test")
    }
    for video_id, reason in store.unreadable.items():
        tqdm.write(f"unreadable: {video_id}: {reason}")
    for split in ("train", "val", "test"):
        if not readable[split]:
            raise VideoclipError(
                f"none of the {len(by_split[split])} clips of split {split!r} can be read; "
                "the reasons are listed above"
            )
    lost = len(by_split["train"]) - len(readable["train"])
    notes = [note] if note else []
    if lost:
        notes.append(f"{lost} of {len(by_split['train'])} training clips cannot be read.")
    splits = {**by_split, "train": readable["train"], "val": readable["val"]}
    return Material(experiment, splits, store, tokenizer, manifest_hash(path), notes)


def pretrained(material: Material, folder: Path) -> tuple[VideoCLIP, str]:
    """The image-text CLIP that all rows start from, trained once on single frames, and its key.

    The images come from `data.images`, or are one frame of every training clip.
    """
    experiment = material.experiment
    plain = replace(experiment.model, mixer=NoMixer(), head=Mean(), scorer=Cosine())
    data = replace(experiment.data, frames=1)
    source = manifest_hash(data.images) if data.images else material.key
    key = _hash(to_json(plain), to_json(data), to_json(experiment.pretrain), source)
    home = folder / "base" / key
    if (home / CELL).is_file():
        return load(home), key
    if data.images:
        by_split, _ = with_splits(read_manifest(data.images), data.images, needed=("train", "val"))
    else:
        by_split = material.splits
    store = FrameStore(
        material.store.folder, size=plain.visual.image_size, frames=1, fit=plain.pixels.fit
    )
    takes = 1 if data.images else data.takes
    pictures = store.fill(by_split["train"], takes, "images to pre-train on")
    held_out = store.fill(by_split["val"], 1, "images to validate on")
    torch.manual_seed(0)
    model = plain.build().to(device())
    history = train(
        model, pictures, store, material.tokenizer,
        optim=experiment.pretrain, data=replace(data, takes=takes), seed=0, label="pre-training",
        validate=lambda m: _selection(evaluate(m, held_out, store, material.tokenizer)),
    )  # fmt: skip
    _finish(home, model, {"history": history, "unreadable": store.unreadable})
    return load(home), key


def device() -> torch.device:
    """The first GPU, or the processor where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_cell(
    name: str, row: Row, seed: int, material: Material, base: VideoCLIP, base_key: str, folder: Path
) -> Cell:
    """Trains and evaluates one row with one seed, or takes it as an earlier run finished it."""
    experiment = row.of(material.experiment)
    model_json, data = to_json(experiment.model), experiment.data
    key = _hash(
        model_json, data.frames, data.words, data.takes, data.crop, to_json(experiment.finetune),
        seed, material.key, base_key,
    )  # fmt: skip
    home = folder / "cells" / f"{name}-seed{seed}-{key[:8]}"
    if not (home / CELL).is_file():
        torch.manual_seed(seed)
        model = experiment.model.build()
        model.start_from(base.clip)
        model.to(device())
        store, tokenizer = material.store, material.tokenizer
        history = train(
            model, material.splits["train"], store, tokenizer,
            optim=experiment.finetune, data=data, seed=seed, label=f"{name}, seed {seed}",
            validate=lambda m: _selection(evaluate(m, material.splits["val"], store, tokenizer)),
        )  # fmt: skip
        found = {
            order: evaluate(model, material.splits["test"], store, tokenizer, order=order)
            for order in FRAME_ORDERS
        }
        normal = found["normal"]
        facts = {
            "row": name,
            "seed": seed,
            "model": model_json,
            "history": history,
            "parameters": count_parameters(list(model.parameters())),
            "new_parameters": count_parameters(model.new_parameters()),
            "ms_per_clip": normal.ms_per_clip,
            "counts": normal.counts,
            "tie_notes": [
                f"{direction.replace('_', ' ')}, seed {seed}: {note}"
                for direction, ranks in normal.ranks.items()
                if (note := tie_note(ranks))
            ],
            "gallery": _gallery(normal),
        }
        home.mkdir(parents=True, exist_ok=True)
        rank_table(found).to_parquet(home / "ranks.parquet")
        _finish(home, model, facts)
    facts = json.loads((home / CELL).read_text())
    return Cell(name, seed, facts, pd.read_parquet(home / "ranks.parquet"))


def rank_table(found: Mapping[FrameOrder, Evaluation]) -> pd.DataFrame:
    """One line per frame order, direction and query: its rank and the clip that it is about."""
    parts = []
    for order, evaluation in found.items():
        for direction in DIRECTIONS:
            ranks = evaluation.ranks[direction]
            by_text = direction == "text_to_video"
            owners = evaluation.video_of_caption if by_text else np.arange(len(evaluation.clips))
            owned = [evaluation.clips[i] for i in owners]
            parts.append(
                pd.DataFrame(
                    {
                        "frame_order": order,
                        "direction": direction,
                        "query": evaluation.captions if by_text else [c.video_id for c in owned],
                        "video": owners,
                        "video_id": [clip.video_id for clip in owned],
                        "group": [clip.group or "" for clip in owned],
                        "rank": ranks.rank,
                        "optimistic": ranks.optimistic,
                        "pessimistic": ranks.pessimistic,
                        "missing": ranks.missing,
                        "candidates": ranks.candidates,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _selection(evaluation: Evaluation) -> float:
    """What a model is chosen by on validation: the mean of all recalls, both directions."""
    recalls = [
        value
        for metrics in evaluation.metrics().values()
        for name, value in metrics.items()
        if name.startswith("R@")
    ]
    return float(np.mean(recalls))


def _gallery(evaluation: Evaluation, count: int = 6, shown: int = 3) -> dict[str, list[dict]]:
    """Some queries that were right and some that were wrong, spread evenly over all of them."""
    ranks = evaluation.ranks["text_to_video"]
    right = (ranks.rank <= 1) & ~ranks.missing
    gallery: dict[str, list[dict]] = {}
    for name, chosen in (("right", np.flatnonzero(right)), ("wrong", np.flatnonzero(~right))):
        spread = np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int))
        gallery[name] = []
        for query in chosen[spread] if len(chosen) else []:
            scores = evaluation.scores[query]
            truth = int(evaluation.video_of_caption[query])
            best = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:shown]
            gallery[name].append(
                {
                    "query": evaluation.captions[query],
                    "truth": evaluation.clips[truth].video_id,
                    "rank": float(ranks.rank[query]),
                    "retrieved": [
                        {
                            "video_id": evaluation.clips[v].video_id,
                            "score": round(float(scores[v]), 3),
                            "correct": bool(v == truth),
                        }
                        for v in best
                        if not np.isnan(scores[v])
                    ],
                }
            )
    return gallery


def _finish(home: Path, model: VideoCLIP, facts: dict[str, Any]) -> None:
    """Saves a model with its facts; the facts come last and mark the folder as finished."""
    model.save_pretrained(home)
    partial = home / (CELL + ".part")
    partial.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    partial.replace(home / CELL)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed comparison left half done."""
    for home in [*folder.glob("cells/*"), *folder.glob("base/*")]:
        if not (home / CELL).is_file():
            shutil.rmtree(home)
