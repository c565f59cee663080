"""`videoclip evaluate few-shot`: accuracy against labelled pictures per class, and the figure."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from videoclip.cells import device
from videoclip.charts import few_shot_chart
from videoclip.errors import VideoclipError
from videoclip.probe import SHOTS, few_shot_curve, linear_probe, read_splits
from videoclip.prompts import PLAIN, templates_of
from videoclip.weights import load
from videoclip.zero_shot import zero_shot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fits linear classifiers on K labelled pictures per class; beside them the zero-shot result.

    The figure is figure 6 of the CLIP paper. A draw is a function of the seed, the class and the
    names of its pictures; the draws of one seed hold each other. C is chosen on up to four further
    pictures per class.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: str
    """A folder with train and test (and val, if there is one) that hold class folders, or a data
    set of torchvision on disk: torchvision:CIFAR10:/data."""
    shots: str = ",".join(map(str, SHOTS))
    """Pictures per class."""
    seeds: str = "0,1,2"
    """Draws per number of shots."""
    templates: tuple[str, ...] = (PLAIN,)
    """Of the zero-shot point: sentences with {}, a text file of them, or a published set."""
    full: bool = True
    """Also fit on everything, as a line in the figure."""
    classes: Path | None = None
    """Other class names: a JSON file {"folder": "name"}, or one name a line."""
    batch_size: int = 64
    """Pictures per forward pass."""
    download: bool = False
    """Let torchvision download the data set."""
    output: Path = Path("runs/few-shot")
    """A folder for few_shot.png, few_shot.csv and evaluation.json."""


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
        classes=options.classes,
        store=store,
        batch_size=options.batch_size,
        download=options.download,
    )
    templates = templates_of(options.templates)
    named = zero_shot(model, splits.images, templates, store=store, batch_size=options.batch_size)
    curve = few_shot_curve(splits, shots, seeds)
    whole = linear_probe(splits) if options.full else None
    accuracies = {
        count: [result.metrics()["top-1"] for result in found] for count, found in curve.items()
    }
    base = named.result.metrics()["top-1"]
    full = whole.result.metrics()["top-1"] if whole else None
    rows = [{"shots": "zero-shot", "top-1": f"{base:.1f}", "seeds": ""}]
    rows += [
        {
            "shots": str(count),
            "top-1": f"{np.mean(values):.1f}",
            "seeds": f"{min(values):.1f} to {max(values):.1f} of {len(values)}",
        }
        for count, values in accuracies.items()
    ]
    rows += [{"shots": "all", "top-1": f"{full:.1f}", "seeds": ""}] if full is not None else []
    table = pd.DataFrame(rows)
    print(f"\n{splits.images.name}, linear probe on K pictures per class\n")
    print(table.to_markdown(index=False, disable_numparse=True))
    print("\n".join(["", named.result.counts(), *splits.notes]))
    few_shot_chart(accuracies, base, full, options.output / "few_shot.png")
    table.to_csv(options.output / "few_shot.csv", index=False)
    record = {
        "zero-shot": base,
        "few-shot": accuracies,
        "seeds": seeds,
        "all": full,
        "counts": named.result.counts(),
        "notes": splits.notes,
        "options": dataclasses.asdict(options),
    }
    text = json.dumps(record, indent=1, default=str, allow_nan=False)
    (options.output / "evaluation.json").write_text(text + "\n")
    print(f"{options.output}: few_shot.png, few_shot.csv, evaluation.json")


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
