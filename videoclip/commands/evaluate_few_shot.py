"""`videoclip evaluate few-shot`: accuracy against labelled pictures per class, and the figure."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from videoclip.checkpoints.weights import load
from videoclip.distributed import device
from videoclip.errors import VideoclipError
from videoclip.figures.charts import few_shot_chart
from videoclip.figures.classification import Classification
from videoclip.figures.intervals import Interval
from videoclip.image_text.probe import (
    SHOTS,
    FewShot,
    Probe,
    few_shot_curve,
    linear_probe,
    read_splits,
)
from videoclip.image_text.zero_shot import zero_shot
from videoclip.prompts import PLAIN, templates_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fits linear classifiers on K labelled pictures per class; beside them the zero-shot result.

    The figure is figure 6 of the CLIP paper. A draw is a function of the seed, the class and the
    names of its pictures; the draws of one seed hold each other. C is chosen on up to four further
    pictures per class. Every picture of the test split is classified by every probe.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: str
    """A folder with train and test (and val, if there is one) that hold class folders, a folder of
    class folders, or a data set of torchvision on disk: torchvision:CIFAR10:/data."""
    shots: str = ",".join(map(str, SHOTS))
    """Pictures per class."""
    seeds: str = "0,1,2"
    """Draws per number of shots."""
    templates: tuple[str, ...] = (PLAIN,)
    """Of the zero-shot point: sentences with {}, a text file of them, or a published set."""
    full: bool = True
    """Also fit on everything, as a line in the figure."""
    train: str = "train"
    """What the data calls the split to draw from; torchvision's OxfordIIITPet says trainval."""
    val: str = "val"
    """A split to draw from as well, if the data has it; on it C of the full probe is chosen."""
    test: str = "test"
    """The split to be right on; of torchvision's ImageNet it is val."""
    classes: Path | None = None
    """Other class names: a JSON file {"folder": "name"}, or one name a line."""
    batch_size: int = 64
    """Pictures per forward pass."""
    download: bool = False
    """Let torchvision download the data set."""
    output: Path = Path("runs/few-shot")
    """A folder for few_shot.png, few_shot.csv, predictions.parquet and evaluation.json."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, fits, evaluates and prints."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate few-shot", description=Options.__doc__
    )
    shots, seeds = _numbers(options.shots, "--shots"), _numbers(options.seeds, "--seeds")
    model = load(options.model).to(device())
    store = options.output / "features"
    splits = read_splits(
        model,
        options.data,
        splits=(options.train, options.val, options.test),
        classes=options.classes,
        store=store,
        batch_size=options.batch_size,
        download=options.download,
    )
    templates = templates_of(options.templates)
    named = zero_shot(model, splits.images, templates, store=store, batch_size=options.batch_size)
    curve = few_shot_curve(splits, shots, seeds)
    whole = linear_probe(splits) if options.full else None
    notes = [*splits.notes, *(whole.notes if whole else []), *curve.notes]
    table = _table(named.result, curve, whole)
    name = splits.images.name
    print(f"\n{name}, linear probe on K pictures per class, top-1 in percent\n")
    print(table.to_markdown(index=False, disable_numparse=True, colalign=("left", *["right"] * 3)))
    print("\n".join(["", named.result.counts(), *notes]))
    for picture, reason in splits.test.unreadable.items():
        print(f"unreadable, counted as wrong: {picture}: {reason}")
    options.output.mkdir(parents=True, exist_ok=True)
    accuracies = {
        count: [result.metrics()["top-1"] for result in found]
        for count, found in curve.results.items()
    }
    base = named.result.metrics()["top-1"]
    full = whole.result.metrics()["top-1"] if whole else None
    few_shot_chart(accuracies, base, full, options.output / "few_shot.png", title=name)
    table.to_csv(options.output / "few_shot.csv", index=False)
    predictions = _predictions(splits.images.names, named.result, curve, seeds, whole)
    predictions.to_parquet(options.output / "predictions.parquet")
    record = {
        "zero-shot": base,
        "few-shot": accuracies,
        "intervals": {count: _ends(curve.accuracy(count)) for count in shots},
        "seeds": seeds,
        "C": curve.strengths,
        "all": full,
        "C of all": whole.sweep.strength if whole else None,
        "counts": named.result.counts(),
        "unreadable": splits.test.unreadable,
        "notes": notes,
        "options": dataclasses.asdict(options),
    }
    text = json.dumps(record, indent=1, default=str, ensure_ascii=False, allow_nan=False)
    (options.output / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(f"{options.output}: few_shot.png, few_shot.csv, predictions.parquet, evaluation.json")


def _table(named: Classification, curve: FewShot, whole: Probe | None) -> pd.DataFrame:
    """A row for zero-shot, for every K and for the probe on all of train."""

    def row(title: str, accuracy: Interval, seeds: str = "") -> dict[str, str]:
        ends = _ends(accuracy)
        return {
            "pictures per class": title,
            "top-1": f"{accuracy.mean:.1f}",
            "95 % interval": f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else "",
            "seeds": seeds,
        }

    rows = [row("zero-shot", named.intervals()["top-1"])]
    for count, found in curve.results.items():
        values = [100 * float(result.hits(1).mean()) for result in found]
        seeds = f"{min(values):.1f} to {max(values):.1f} of {len(values)}"
        rows.append(row(str(count), curve.accuracy(count), seeds))
    if whole:
        rows.append(row("all", whole.result.intervals()["top-1"]))
    return pd.DataFrame(rows)


def _predictions(
    names: Sequence[str],
    named: Classification,
    curve: FewShot,
    seeds: Sequence[int],
    whole: Probe | None,
) -> pd.DataFrame:
    """A line per test picture and probe; `predicted` is empty where it could not be read."""
    results = [("zero-shot", None, named)]
    for count, found in curve.results.items():
        results += [(str(count), seed, r) for seed, r in zip(seeds, found, strict=True)]
    results += [("all", None, whole.result)] if whole else []
    parts = []
    for shots, seed, result in results:
        spelled = np.array([*result.classes, None], dtype=object)  # -1, nothing predicted, is None
        part = {
            "name": list(names),
            "label": spelled[result.labels],
            "shots": shots,
            "seed": pd.array([seed] * len(names), dtype="Int64"),
            "predicted": spelled[result.predicted],
            "confidence": result.confidence,
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _ends(interval: Interval) -> list[float] | None:
    """The ends of an interval; None where a single picture leaves them undefined."""
    return None if np.isnan(interval.low) else [interval.low, interval.high]


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise VideoclipError(
            f"{option} takes numbers with commas, as in 1,2,4; got {text!r}"
        ) from error
    if option == "--shots" and min(found) < 1:
        raise VideoclipError(f"{option} takes numbers from 1; zero shots are always shown")
    return sorted(set(found))
