"""`videoclip evaluate zero-shot`: labelled pictures, classified by the names of their classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from videoclip.checkpoints.weights import load
from videoclip.distributed import device
from videoclip.errors import VideoclipError
from videoclip.image_text.images import image_set
from videoclip.image_text.zero_shot import zero_shot
from videoclip.prompts import PLAIN, Name, prompts, templates_of
from videoclip.reports.class_report import FILES, summary, write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Classifies labelled pictures without training: each class is known by its name alone.

    Every picture is scored once; one that cannot be read is listed and counts as wrong. Features
    and class embeddings are kept in the output folder, so that other templates take seconds.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: str
    """A folder of class folders (or of train/val/test that hold them), or a data set of torchvision
    on disk: torchvision:CIFAR10:/data."""
    split: str = "test"
    """Which pictures, where the data has splits."""
    templates: tuple[str, ...] = (PLAIN,)
    """Sentences with {} for the class, a text file of them, or the name of a published set such as
    imagenet, imagenet-7, cifar10, food101 (videoclip/prompts). Several are averaged."""
    classes: str | None = None
    """Other class names: a JSON file {"folder": "name"}, a text file with one a line in the sorted
    order of the folders, or the name of a published set that has them in that order (imagenet)."""
    batch_size: int = 64
    """Pictures per forward pass."""
    download: bool = False
    """Let torchvision download the data set."""
    output: Path = Path("runs/zero-shot")
    """A folder for evaluation.json, predictions.parquet, per_class.csv and the pictures."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, evaluates and prints."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate zero-shot", description=Options.__doc__
    )
    templates = templates_of(options.templates)
    published = options.classes and not Path(options.classes).is_file()
    names = _published(options.classes) if published else ()
    images = image_set(
        options.data,
        split=options.split,
        classes=Path(options.classes) if options.classes and not published else None,
        download=options.download,
    )
    model = load(options.model).to(device())
    found = zero_shot(
        model,
        images,
        templates,
        classes=names,
        store=options.output / "features",
        batch_size=options.batch_size,
    )
    print(f"\n{images.name}, {len(images.classes)} classes, {len(templates)} templates\n")
    print(summary(found.result))
    if images.left_out:
        print(f"{images.left_out} files in the class folders are no pictures")
    for name, reason in found.images.unreadable.items():
        print(f"unreadable, counted as wrong: {name}: {reason}")
    write(
        found.result,
        images.names,
        found.images.unreadable,
        options.output,
        options=dataclasses.asdict(options),
        templates=templates,
    )
    print(f"{options.output}: {FILES}")


def _published(name: str) -> tuple[Name, ...]:
    found = prompts(name).classes
    if not found:
        raise VideoclipError(f"the prompts {name!r} name no classes; give a file of names")
    return found
