"""`videoclip pretrain`: pictures with captions -> a model, a curve, and counts that add up."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import tyro

from videoclip.checkpoints.named import architecture
from videoclip.commands.compare import argument_after, with_fields
from videoclip.config import ConfigError, from_json
from videoclip.distributed import main_process, on_main, start, stop
from videoclip.experiment import Pretraining, recipe_named
from videoclip.image_text.images import image_set
from videoclip.image_text.pretrain import BAD, MODEL, Watched, pretrain
from videoclip.prompts import PLAIN, templates_of
from videoclip.training.logbook import CURVE, EVENTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Pre-trains a CLIP on pictures with captions: contrastive image-text learning.

    The same command goes on where an earlier one was stopped, by Ctrl-C or by a kill, and ends with
    the same weights. The run folder gets model/, which videoclip.load opens, metrics.jsonl and
    tensorboard/, bad.jsonl with every pair that could not be used, curve.png and results.json.

    videoclip pretrain digits
        the whole story in minutes, without any data: a small CLIP from scratch
    videoclip pretrain --data pairs.csv --model ViT-B/32 --precision bf16
    videoclip pretrain --data 'shards-{000..010}.tar' --batch-size 4096 --chunk-size 256
        a batch larger than memory, with the gradients of the whole batch
    videoclip pretrain --data pairs.csv --checkpoint runs/mine/model --lock image --tower-rate 1e-4
    torchrun --nproc-per-node 8 -m videoclip pretrain --data 'shards-{000..010}.tar'
        eight processes share every batch, with the result of one; its size stays that of the whole
    """

    recipe: tyro.conf.Positional[str] = ""
    """A recipe of experiments/ that makes its own pairs (digits), or the run.json of a run to
    repeat; comes first. Default: none, the pairs are those of --data."""
    output: Path | None = None
    """The run folder. Default: runs/NAME, after the recipe or the data."""
    architecture: Annotated[str | None, tyro.conf.arg(name="model")] = None
    """One of OpenAI's models, new: RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32, ViT-B/16,
    ViT-L/14, ViT-L/14@336px; the options --model.* then change it. Default: ViT-B/32."""
    checkpoint: str | None = None
    """A CLIP to start from, in its sizes: whatever videoclip.load opens."""
    zero_shot: str | None = None
    """A folder of class folders, or torchvision:NAME:ROOT, on which zero-shot accuracy is measured
    after every epoch."""
    zero_shot_split: str | None = None
    """Which of its splits, where it has any."""
    templates: tuple[str, ...] = (PLAIN,)
    """Sentences with {} for the class name, a text file of them, or the name of a published set."""
    pictures: Path | None = None
    """For a recipe that writes captions from class names: a folder of class folders, with train/
    and test/ above them."""
    seed: int = 0
    """Of new weights, order and augmentation."""


class Source(NamedTuple):
    """What a pre-training starts from before options change it."""

    settings: Pretraining
    title: str | None = None
    recipe: ModuleType | None = None
    checkpoint: str | None = None


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, trains and prints the summary."""
    start()
    arguments = ["--data.source" if a == "--data" else a for a in arguments]
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    source = _source(name)
    settings = source.settings
    checkpoint = argument_after("--checkpoint", arguments) or source.checkpoint
    chosen = argument_after("--model", arguments)
    if checkpoint and any(a.startswith("--model") for a in arguments):
        raise ConfigError(f"{checkpoint} comes with its sizes; leave out --model or --checkpoint")
    if chosen:  # its fields decide which options there are, so it is built first
        settings = dataclasses.replace(settings, model=architecture(chosen))
    parts = {"": settings.optim, "data": settings.data, "model": settings.model}
    parts["run"] = settings.run
    kind = with_fields(Options, parts)
    options: Any = tyro.cli(
        kind,
        args=arguments,
        prog="videoclip pretrain",
        description=Options.__doc__,
        default=kind(recipe=name, checkpoint=checkpoint, seed=settings.seed),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    settings = dataclasses.replace(
        source.settings, optim=options.field_0, data=options.field_1, model=options.field_2,
        run=options.field_3, seed=options.seed,
    )  # fmt: skip
    title = source.title or _title(settings.data.source)
    title = options.pictures.resolve().name if options.pictures else title
    output = options.output or Path("runs") / title
    watched = _watched(options)
    if source.recipe and settings.data.source is None:
        settings, watched = on_main(
            source.recipe.prepare, settings, output / "data", options.pictures
        )
    elif options.pictures:
        raise ConfigError("--pictures is for a recipe, such as digits; use --data for pairs")
    results = pretrain(
        settings,
        output,
        checkpoint=options.checkpoint,
        watched=watched,
        command=" ".join(["videoclip pretrain", *arguments]),
    )
    writes = main_process()
    stop()
    if not writes:
        return
    print(summary(results, output))
    if source.recipe:
        source.recipe.report(settings, output, watched)


def summary(results: dict[str, Any], output: Path) -> str:
    """What a finished run says for itself."""
    counts = results["counts"]
    lines = [
        "",
        *results["notes"],
        f"pairs: found {counts['found']} = trained {counts['trained']} + bad {counts['bad']}",
        f"loss: {results['loss']:.3f} in the last of {results['epochs']} epochs, "
        f"{results['steps']} steps",
    ]
    if counts["bad"]:
        lines.append(f"the bad ones, with reasons: {output / BAD}")
    if results["zero_shot"]:
        found = ", ".join(f"{name} {value:.1f}" for name, value in results["zero_shot"].items())
        lines.append(f"zero-shot on {results['zero_shot_on']}, percent: {found}")
    lines += [
        f"the model, for videoclip.load: {output / MODEL}",
        f"the curve: {output / CURVE}; as it went: tensorboard --logdir {output / EVENTS}",
    ]
    return "\n".join(lines)


def _source(name: str) -> Source:
    """A recipe, the run.json of an earlier run, or nothing but the defaults."""
    if not name:
        return Source(Pretraining())
    if not name.endswith(".json"):
        recipe = recipe_named(name)
        if not isinstance(recipe.base, Pretraining):
            raise ConfigError(f"{name} is a recipe of clips: videoclip compare {name}")
        return Source(recipe.base, name, recipe)
    try:
        run = json.loads(Path(name).read_text())
        settings, title, checkpoint = run["settings"], run["title"], run["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name} is not the run.json of a pre-training: {error!r}") from error
    return Source(from_json(Pretraining, settings, "settings"), title, checkpoint=checkpoint)


def _title(source: str | None) -> str:
    """runs/NAME after what is trained on: the file, up to the numbers of shards."""
    if source is None:
        raise ConfigError("there is nothing to train on; use --data PAIRS, or a recipe: digits")
    return re.split(r"[^\w.]*\{", Path(source).stem)[0] or "pretrain"


def _watched(options: Any) -> Watched | None:
    if options.zero_shot is None:
        return None
    images = image_set(options.zero_shot, split=options.zero_shot_split)
    return Watched(images, templates_of(options.templates))
