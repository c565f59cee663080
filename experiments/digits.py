"""The whole CLIP story in minutes: pre-train from scratch, then zero-shot, linear probe, few-shot.

Run: videoclip pretrain digits                       Expect: docs/pretraining.md
     videoclip pretrain digits --pictures FOLDER     the same on pictures of yours

A story, not a benchmark. The pictures are scikit-learn's digits (real handwriting, 8 x 8 pixels),
and each caption is a template around the name of its class: "a photo of the digit three." So the
captions are labels in the form of sentences, and "zero-shot" says that no classifier was fitted,
not that the classes are new to the model. What CLIP's zero-shot transfer is about, classes and
pictures that nobody chose for the test, takes millions of pairs from the web.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data_prep.digits import DIGIT_TEMPLATES, PICTURE_TEMPLATES, generate_digits, generate_pictures
from videoclip.commands import evaluate_few_shot
from videoclip.config import ConfigError
from videoclip.experiment import ImageText, Optim, Pretraining
from videoclip.image_text.images import image_set
from videoclip.image_text.pretrain import MODEL, Watched
from videoclip.model import Model
from videoclip.towers import Text, ViT

base = Pretraining(
    model=Model(
        visual=ViT(width=64, layers=3, patch_size=8, image_size=32),
        text=Text(width=64, layers=2, context_length=16),
        embedding=64,
    ),
    data=ImageText(crop=0.8, workers=0),  # pictures so small are read faster than handed over
    optim=Optim(
        epochs=40, batch_size=128, tower_rate=1e-3, weight_decay=0.1, warmup=0.1, precision="fp32"
    ),
)  # fmt: skip


def prepare(
    settings: Pretraining, folder: Path, pictures: Path | None
) -> tuple[Pretraining, Watched]:
    """Writes the pictures and their captions into a folder, once.

    Raises ConfigError where there are none.
    """
    torch.set_num_threads(1)  # more gain nothing here, and on busy cores take ten times as long
    if pictures is None:
        generate_digits(folder)
    else:
        folder = folder.with_name(f"data-{pictures.resolve().name}")
        try:
            generate_pictures(pictures, folder)
        except ValueError as error:
            raise ConfigError(f"--pictures: {error}") from error
    source = str(folder / "pairs.csv")
    watched = Watched(image_set(str(folder), split="test"), templates(pictures))
    return replace(settings, data=replace(settings.data, source=source)), watched


def templates(pictures: Path | None) -> Sequence[str]:
    """The sentences of the captions."""
    return DIGIT_TEMPLATES if pictures is None else PICTURE_TEMPLATES


def report(settings: Pretraining, output: Path, watched: Watched) -> None:
    """Zero-shot beside probes on 1 to 16 pictures per class and on all of them, with the figure."""
    evaluate_few_shot.main(
        [str(output / MODEL), "--data", str(Path(settings.data.source).parent),
         "--output", str(output / "few-shot"), "--templates", *watched.templates]
    )  # fmt: skip
