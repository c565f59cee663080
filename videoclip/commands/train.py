"""`videoclip train`: one row of a recipe, trained, evaluated and ready for videoclip.load."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from videoclip.commands.compare import SHORT, Source, source_named, with_fields
from videoclip.config import ConfigError
from videoclip.distributed import main_process, on_main, start
from videoclip.errors import VideoclipError
from videoclip.experiment import row_named
from videoclip.reports.compare import compare
from videoclip.reports.report import markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains one row of a recipe for retrieval or recognition and evaluates it on the test split.

    The same command goes on where an earlier one was stopped, by Ctrl-C or by a kill, and ends with
    the same weights. Several processes share every batch, with the result of one:

    videoclip train moving_shapes.lstm
    videoclip train msrvtt.mean --data msrvtt.jsonl --checkpoint ViT-B/32
    torchrun --nproc-per-node 8 -m videoclip train kinetics400.b32_8 --data kinetics400.jsonl

    The model goes on from whatever videoclip.load opens. Where those weights have the same temporal
    modules as the row, these are taken over too: so a model that was trained on a larger set is
    trained further on the target.

    Short forms: --data MANIFEST, --images MANIFEST and --frames N stand for --data.manifest,
    --data.images and --data.frames. Every field of the experiment has an option, such as
    --finetune.epochs 10 or --task.views 4x3.
    """

    recipe: tyro.conf.Positional[str]
    """RECIPE.ROW, such as moving_shapes.lstm or msrvtt.shift+transformer; comes first."""
    checkpoint: str | None = None
    """Weights to start from, whatever videoclip.load opens: a folder, a file, ViT-B/32, a name on
    the Hugging Face hub. Default: a CLIP is pre-trained on images."""
    seed: int = 0
    """Of new weights, order and augmentation."""
    output: Path | None = None
    """The run folder. Default: runs/RECIPE.ROW, or runs/MANIFEST.ROW for data of your own."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, trains the row and prints its line of the table."""
    start()
    arguments = [SHORT.get(argument, argument) for argument in arguments]
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    source, row_name = _chosen(name) if name else (None, "")
    parts: dict[str, Any] = {}
    if source:
        parts = {"": source.base, "row": row_named(row_name, source.rows)}
    kind = with_fields(Options, parts)
    options: Any = tyro.cli(
        kind,
        args=arguments,
        prog="videoclip train",
        description=Options.__doc__,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    assert source is not None
    experiment, row = options.field_0, options.field_1
    title, ceiling = source.title, source.ceiling
    if experiment.data.manifest != source.base.data.manifest:
        title, ceiling = experiment.data.manifest.stem, None
    folder = options.output or Path("runs") / f"{title}.{row_name}"
    if experiment.data.manifest is None:
        if not hasattr(source.recipe, "prepare"):
            raise VideoclipError(f"{source.title} has no data of its own; use --data MANIFEST")
        experiment = on_main(source.recipe.prepare, experiment, folder / "data")
        ceiling = source.recipe.ceiling(experiment)
    results = compare(
        experiment=experiment,
        rows={row_name: row},
        seeds=[options.seed],
        folder=folder,
        checkpoint=options.checkpoint,
        title=f"{title}, {row_name}",
        ceiling=ceiling,
        command=" ".join(["videoclip train", *arguments]),
        whole=True,
    )
    if main_process():
        [model] = results["models"][row_name]
        print(markdown(results))
        print(f"The page with the chart and with what it got wrong: {folder / 'index.html'}")
        print(f"The model, for videoclip.load: {folder / model}")


def _chosen(name: str) -> tuple[Source, str]:
    """A recipe and the name of its row. Raises ConfigError where one of them is not named."""
    recipe, dot, row = name.partition(".")
    source = source_named(recipe)
    if not dot or not row:
        rows = ", ".join(source.rows)
        raise ConfigError(f"which row of {recipe} is to be trained? {recipe}.ROW, one of: {rows}")
    return source, row
