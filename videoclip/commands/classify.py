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

from videoclip.cells import device
from videoclip.errors import ImageError, VideoclipError
from videoclip.images import read_image
from videoclip.model import VideoCLIP
from videoclip.prompts import PLAIN, templates_of
from videoclip.weights import load
from videoclip.zero_shot import class_embeddings, class_probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Says which of the given labels fits each picture: CLIP's zero-shot classification.

    Probabilities are the softmax over the given labels, so they sum to 1 also where none fits.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-l"])] = ()
    """What they may show: --labels cat dog "a red car"."""
    labels_file: Path | None = None
    """A text file with one label a line, instead."""
    model: str = "ViT-B/32"
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    templates: tuple[str, ...] = (PLAIN,)
    """Sentences with {} for the label; several are averaged. Also a text file of them, or the name
    of a published set: imagenet, cifar10, ..."""
    top: int = 5
    """How many labels to show a picture."""
    batch_size: int = 32
    """Pictures per forward pass."""
    json: bool = False
    """Strict JSON instead of a table: a list of {"image", "labels": {label: probability}}."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, classifies and prints; the exit status is 1 if a picture failed."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip classify", description=Options.__doc__
    )
    labels = _labels(options)
    if not options.images:
        raise VideoclipError("no picture is given; videoclip classify cat.jpg --labels cat dog")
    templates = templates_of(options.templates)
    model = load(options.model).to(device())
    classifier = class_embeddings(model, labels, templates, progress=len(labels) > 50)
    rows, failed = [], []
    pictures = tqdm(options.images, "classifying", unit="picture", disable=len(options.images) < 50)
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
        lines = [
            {"picture": row["image"], "label": label, "probability": f"{value:.1%}"}
            for row in rows
            for label, value in row["labels"].items()
        ]
        table = pd.DataFrame(lines)
        table.loc[table["picture"].duplicated(), "picture"] = ""
        print(
            table.to_markdown(
                index=False, disable_numparse=True, colalign=("left", "left", "right")
            )
        )
    for message in failed:
        print(f"videoclip classify: {message}", file=sys.stderr)
    if failed:
        raise VideoclipError(f"{len(failed)} of {len(options.images)} pictures could not be read")


def _labels(options: Options) -> list[str]:
    """The labels, each once. Raises VideoclipError where there are none."""
    found = list(options.labels)
    if options.labels_file:
        try:
            found += options.labels_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VideoclipError(f"the labels cannot be read: {error}") from error
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
    pixels = torch.stack([pixels for _, pixels in batch]).to(model.device)
    probabilities = class_probabilities(model, model.encode_image(pixels), classifier).cpu()
    best = probabilities.topk(min(top, len(labels)))
    return [
        {
            "image": str(path),
            "labels": {labels[i]: float(v) for i, v in zip(places, values, strict=True)},
        }
        for (path, _), places, values in zip(
            batch, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
