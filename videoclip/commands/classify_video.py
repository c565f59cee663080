"""`videoclip classify-video`: clips and labels -> probabilities, without training."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from videoclip.checkpoints.weights import load
from videoclip.distributed import device
from videoclip.errors import VideoclipError
from videoclip.evaluation.predict import classify_clips
from videoclip.evaluation.recognition import Ensemble, Temperature
from videoclip.manifest import Clip
from videoclip.prompts import lines_of, names, prompts
from videoclip.reports.class_report import markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Says which of the given labels fits each video: recognition without training.

    Probabilities are the softmax over the given labels, so they sum to 1 also where none fits.
    Whole videos are meant to be short; of a long one name a part with --start and --end.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Video files."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-l"])] = ()
    """What they may show: --labels juggling "playing the piano", or --labels "a, b, c" in one."""
    labels_file: str | None = None
    """A text file with one label a line, or a published set of class names: kinetics400, ucf101."""
    model: str = "ViT-B/32"
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    templates: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--template"])] = ()
    """Sentences with {} for the label, a text file of them, or the name of a published set:
    actionclip, kinetics400, ucf101, ... Default: the weights' own, else actionclip."""
    ensemble: Ensemble = "mean"
    """mean: the mean of the templates' probabilities; embeddings: of their embeddings."""
    temperature: Temperature = "reference"
    """What cosines are multiplied with. reference: 100; model: the weights' own."""
    frames: int | None = None
    """Frames per clip. Default: what the weights were trained with, else 8."""
    views: str = "none"
    """Clips in time x crops in space whose probabilities are averaged, such as 4x3. none: one."""
    start: float | None = None
    """Seconds from the beginning, of every video; default: its beginning."""
    end: float | None = None
    """Seconds from the beginning, of every video; default: its end."""
    top: int = 5
    """How many labels to show a video."""
    batch_size: int = 32
    """Views per forward pass."""
    json: bool = False
    """Strict JSON instead of a table: a list of {"video", "labels": {label: probability}}."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, classifies and prints; the exit status is 1 if a video failed."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip classify-video", description=Options.__doc__
    )
    labels = _labels(options)
    if not options.videos:
        raise VideoclipError(
            'no video is given; videoclip classify-video clip.mp4 --labels juggling "a handstand"'
        )
    for name in ("top", "batch_size", "frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise VideoclipError(f"--{name.replace('_', '-')} is {value}; give at least 1")
    if options.end is not None and options.end <= (options.start or 0):
        raise VideoclipError(
            f"--start is {options.start or 0} and --end {options.end}; the end must come later"
        )
    model = load(options.model).to(device())
    paths = dict.fromkeys(options.videos)
    clips = [Clip(str(p), p.absolute(), start=options.start, end=options.end) for p in paths]
    scores, unreadable = classify_clips(
        model, clips, labels, templates=options.templates, frames=options.frames,
        views=options.views, probabilities=options.ensemble, temperature=options.temperature,
        batch_size=options.batch_size,
    )  # fmt: skip
    rows = []
    for clip, row in zip(clips, scores, strict=True):
        if clip.video_id not in unreadable:
            best = (-row).argsort(kind="stable")[: options.top]
            rows.append(
                {"video": clip.video_id, "labels": {labels[at]: float(row[at]) for at in best}}
            )
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False))
    elif rows:
        print(_table(rows))
    for reason in unreadable.values():
        print(f"videoclip classify-video: {reason}", file=sys.stderr)
    if unreadable:
        raise VideoclipError(f"{len(unreadable)} of {len(clips)} videos could not be read")


def _labels(options: Options) -> list[str]:
    """The labels, each once. Raises VideoclipError where there are none."""
    found = list(options.labels)
    if len(found) == 1:
        found = found[0].split(",")
    if options.labels_file and options.labels_file.lower() in names():
        published = prompts(options.labels_file).classes
        found += [name if isinstance(name, str) else name[0] for name in published]
    elif options.labels_file:
        found += lines_of(Path(options.labels_file), "the labels")
    found = list(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not found:
        raise VideoclipError(
            "no labels are given; say what there may be: --labels juggling bowling"
        )
    return found


def _table(rows: Sequence[dict]) -> str:
    """Markdown: a line per video and label; the name of a video stands in its first line."""
    lines = [
        {"video": "" if place else row["video"], "label": label, "probability": f"{value:.1%}"}
        for row in rows
        for place, (label, value) in enumerate(row["labels"].items())
    ]
    return markdown(pd.DataFrame(lines), left=("video", "label"))
