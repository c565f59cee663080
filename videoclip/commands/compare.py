"""`videoclip compare`: one model per temporal module and seed; a table, a chart and a page."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import tyro

from videoclip.config import ConfigError, from_json
from videoclip.distributed import main_process, on_main, start
from videoclip.errors import VideoclipError
from videoclip.experiment import Experiment, Row, recipe_named, row_named
from videoclip.reports.compare import compare
from videoclip.reports.report import markdown

SHORT = {"--data": "--data.manifest", "--frames": "--data.frames", "--images": "--data.images"}
"""Options that are typed often."""
FIRST = "moving_shapes"
"""The recipe that runs where none is named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares temporal modules: trains, evaluates, writes a table, a chart, a page.

    Finished models are kept and reused: an interrupted comparison goes on where it was, and a new
    module trains only itself.

    Short forms: --data MANIFEST, --images MANIFEST and --frames N stand for --data.manifest,
    --data.images and --data.frames. Every field of the experiment has an option, such as
    --finetune.epochs 10; so has every row's module, such as --lstm.head.layers 2.
    """

    recipe: tyro.conf.Positional[str] = FIRST
    """A recipe of experiments/, or the run.json of a run to repeat; comes first."""
    modules: str = ""
    """Rows, separated by commas: rows of the recipe or modules, combined with a plus, such as
    mean,lstm,shift+transformer. Default: all rows of the recipe."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas."""
    output: Path | None = None
    """The run folder. Default: runs/RECIPE, or runs/MANIFEST for data of your own."""
    checkpoint: str | None = None
    """A pretrained CLIP to start from, whatever videoclip.load opens: a folder, a file, ViT-B/32, a
    name on the Hugging Face hub. Default: one is pre-trained on images."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, runs the comparison and prints its table."""
    start()
    arguments = [SHORT.get(argument, argument) for argument in arguments]
    name = arguments[0] if arguments and not arguments[0].startswith("-") else FIRST
    source = source_named(name)
    # The rows decide which options there are, so their names are read first.
    first = argument_after("--modules", arguments) or ",".join(source.rows)
    rows = {row: row_named(row, source.rows) for row in words(first, "--modules")}
    kind = with_fields(Options, {"": source.base, **rows})
    options = tyro.cli(
        kind,
        args=arguments,
        prog="videoclip compare",
        description=Options.__doc__,
        default=kind(recipe=name, seeds=source.seeds, checkpoint=source.checkpoint),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    experiment: Experiment = options.field_0
    seeds = [_integer(seed) for seed in words(options.seeds, "--seeds")]
    title, ceiling = source.title, source.ceiling
    if experiment.data.manifest != source.base.data.manifest:
        title, ceiling = experiment.data.manifest.stem, None
    output = options.output or Path("runs") / title
    if experiment.data.manifest is None:
        if source.recipe is None or not hasattr(source.recipe, "prepare"):
            raise VideoclipError(f"{name} has no data of its own; use --data MANIFEST")
        experiment = on_main(source.recipe.prepare, experiment, output / "data")
        ceiling = source.recipe.ceiling(experiment)
    results = compare(
        experiment=experiment,
        rows={row: getattr(options, f"field_{i}") for i, row in enumerate(rows, start=1)},
        seeds=seeds,
        folder=output,
        checkpoint=options.checkpoint,
        title=title,
        ceiling=ceiling,
        command=" ".join(["videoclip compare", *arguments]),
    )
    if main_process():
        print(markdown(results))
        page = output / "index.html"
        print(f"The page with the chart and with what every module got wrong: {page}")
    if results["unfinished"]:
        sys.exit(1)


def argument_after(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option on the command line, if it is there."""
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def words(text: str, option: str) -> list[str]:
    """The parts of a list that is separated by commas; raises ConfigError for none or a repeat."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{option} is {text!r}; expected different names separated by commas")
    return found


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--seeds holds {text!r}; expected whole numbers, such as 0,1,2")
    return int(text)


class Source(NamedTuple):
    """What a comparison starts from before options change it."""

    base: Experiment
    rows: dict[str, Row]
    title: str
    seeds: str = Options.seeds
    checkpoint: str | None = None
    ceiling: dict[str, Any] | None = None
    recipe: ModuleType | None = None


def source_named(name: str) -> Source:
    """A recipe, or the run.json of an earlier run. Raises ConfigError where it is neither."""
    if not name.endswith(".json"):
        recipe = recipe_named(name)
        if not isinstance(recipe.base, Experiment):
            raise ConfigError(f"{name} is a recipe of pictures: videoclip pretrain {name}")
        return Source(recipe.base, recipe.rows, title=name, recipe=recipe)
    try:
        run = json.loads(Path(name).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{name} is not the run.json of a run: {error}") from error
    return Source(
        base=from_json(Experiment, run["experiment"], "experiment"),
        rows={row: from_json(Row, value, row) for row, value in run["rows"].items()},
        title=run["title"],
        seeds=",".join(map(str, run["seeds"])),
        checkpoint=run["checkpoint"],
        ceiling=run["ceiling"],
    )


def with_fields(options: type, values: dict[str, Any]) -> type:
    """The options plus a group of options for every value; "" stands for no prefix."""
    fields = [
        (
            f"field_{number}",
            Annotated[type(value), tyro.conf.arg(name=name)],
            dataclasses.field(default=value),
        )
        for number, (name, value) in enumerate(values.items())
    ]
    return dataclasses.make_dataclass(
        "Options", fields, bases=(options,), frozen=True, kw_only=True
    )
