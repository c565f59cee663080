"""`videoclip evaluate linear-probe`: a linear classifier on the features of labelled pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from videoclip.checkpoints.weights import load
from videoclip.distributed import device
from videoclip.image_text.probe import linear_probe, read_splits
from videoclip.reports.class_report import FILES, summary, write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Fits a linear classifier on the image features of a model, as in the CLIP paper.

    Logistic regression (scikit-learn, L-BFGS); its strength C is chosen on the validation split,
    or on a fifth of train where there is none, then train and validation are fitted together. Data
    without any splits is dealt out, a fifth for test, which is said. The features are those before
    the projection for a ViT; they are kept in the output folder.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: str
    """A folder with train and test (and val, if there is one) that hold class folders, a folder of
    class folders, or a data set of torchvision on disk: torchvision:CIFAR10:/data."""
    train: str = "train"
    """What the data calls the split to fit on; torchvision's OxfordIIITPet says trainval."""
    val: str = "val"
    """The split to choose C on, if the data has it."""
    test: str = "test"
    """The split to be right on; of torchvision's ImageNet it is val."""
    classes: Path | None = None
    """Other class names for the tables: a JSON file {"folder": "name"}, or one name a line."""
    batch_size: int = 64
    """Pictures per forward pass."""
    download: bool = False
    """Let torchvision download the data set."""
    output: Path = Path("runs/linear-probe")
    """A folder for evaluation.json, predictions.parquet, per_class.csv and the pictures."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, fits, evaluates and prints."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate linear-probe", description=Options.__doc__
    )
    splits = read_splits(
        load(options.model).to(device()),
        options.data,
        splits=(options.train, options.val, options.test),
        classes=options.classes,
        store=options.output / "features",
        batch_size=options.batch_size,
        download=options.download,
    )
    found = linear_probe(splits)
    print(f"\n{splits.images.name}, linear probe, C = {found.sweep.strength:.3g}\n")
    print("\n".join([summary(found.result), *splits.notes, *found.notes]))
    for name, reason in splits.test.unreadable.items():
        print(f"unreadable, counted as wrong: {name}: {reason}")
    write(
        found.result,
        splits.images.names,
        splits.test.unreadable,
        options.output,
        options=dataclasses.asdict(options),
        C=found.sweep.strength,
        tried=found.sweep.tried,
        notes=[*splits.notes, *found.notes],
    )
    print(f"{options.output}: {FILES}")
