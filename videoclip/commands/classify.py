"""`videoclip classify`: pictures and labels -> probabilities, without training."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from videoclip.checkpoints.weights import load
from videoclip.distributed import device
from videoclip.errors import ImageError, VideoclipError
from videoclip.image_text.images import read_image
from videoclip.image_text.zero_shot import class_embeddings, class_matches, class_probabilities
from videoclip.model import VideoCLIP
from videoclip.prompts import PLAIN, lines_of, templates_of

PATIENCE = 2.0
"""Seconds without a progress bar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Says which of the given labels fits each picture: CLIP's zero-shot classification.

    Probabilities are the softmax over the given labels, so they sum to 1 also where none fits. A
    model trained with SigLIP's loss also says of each label by itself how probably it fits.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-l"])] = ()
    """What they may show: --labels cat dog "a red car"."""
    labels_file: Path | None = None
    """A text file with one label a line, instead."""
    model: str = "ViT-B/32"
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    templates: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--template"])] = (PLAIN,)
    """Sentences with {} for the label; several are averaged. Also a text file of them, or the name
    of a published set: imagenet, cifar10, ..."""
    top: int = 5
    """How many labels to show a picture."""
    batch_size: int = 32
    """Pictures per forward pass."""
    json: bool = False
    """Strict JSON instead of a table: a list of {"image", "labels": {label: probability}}, with
    "alone": {label: probability by itself} of a SigLIP model."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, classifies and prints; the exit status is 1 if a picture failed."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip classify", description=Options.__doc__
    )
    labels = _labels(options)
    if not options.images:
        raise VideoclipError("no picture is given; videoclip classify cat.jpg --labels cat dog")
    for name, value in {"--top": options.top, "--batch-size": options.batch_size}.items():
        if value < 1:
            raise VideoclipError(f"{name} is {value}; give at least 1")
    templates = templates_of(options.templates)
    model = load(options.model).to(device())
    classifier = class_embeddings(model, labels, templates, progress=len(labels) > 50)
    rows, failed = [], []
    pictures = tqdm(options.images, "classifying", unit="picture", delay=PATIENCE, leave=False)
    batch: list[tuple[Path, Tensor]] = []
    for number, path in enumerate(pictures, start=1):
        try:
            batch.append((path, model.preprocess(read_image(path, upright=True))))
        except ImageError as error:
            failed.append(str(error))
        if batch and (len(batch) == options.batch_size or number == len(options.images)):
            rows += _classify(model, batch, classifier, labels, options.top)
            batch = []
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False))
    elif rows:
        print(_table(rows))
    for message in failed:
        print(f"videoclip classify: {message}", file=sys.stderr)
    if failed:
        raise VideoclipError(f"{len(failed)} of {len(options.images)} pictures could not be read")


def _labels(options: Options) -> list[str]:
    """The labels, each once. Raises VideoclipError where there are none."""
    found = list(options.labels)
    if options.labels_file:
        found += lines_of(options.labels_file, "the labels")
    found = list(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not found:
        raise VideoclipError("no labels are given; say what there may be: --labels cat dog")
    return found


@torch.inference_mode()
def _classify(
    model: VideoCLIP,
    batch: Sequence[tuple[Path, Tensor]],
    classifier: Tensor,
    labels: Sequence[str],
    top: int,
) -> list[dict]:
    features = model.encode_image(torch.stack([pixels for _, pixels in batch]).to(model.device))
    best = class_probabilities(model, features, classifier).topk(min(top, len(labels)))
    columns = {"labels": best.values.tolist()}
    if model.clip.logit_bias is not None:
        matches = class_matches(model, features, classifier)
        columns["alone"] = matches.gather(1, best.indices).tolist()
    shown = [[labels[i] for i in places] for places in best.indices.tolist()]
    return [
        {"image": str(path)}
        | {key: dict(zip(names, rows[at], strict=True)) for key, rows in columns.items()}
        for at, ((path, _), names) in enumerate(zip(batch, shown, strict=True))
    ]


def _table(rows: Sequence[dict]) -> str:
    """Markdown: a line per picture and label; the name of a picture stands in its first line."""
    lines = []
    for row in rows:
        for place, (label, value) in enumerate(row["labels"].items()):
            line = {
                "picture": "" if place else row["image"].replace("|", r"\|"),
                "label": label.replace("|", r"\|"),
                "probability": f"{value:.1%}",
            }
            if "alone" in row:
                line["by itself"] = f"{row['alone'][label]:.1%}"
            lines.append(line)
    table = pd.DataFrame(lines)
    sides = ("left", "left", *["right"] * (len(table.columns) - 2))
    return table.to_markdown(index=False, disable_numparse=True, colalign=sides)
