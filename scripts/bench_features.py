"""Times an epoch of post-tower modules: with towers trained, with towers locked, and from features.

Run: .venv/bin/python scripts/bench_features.py
"""

import dataclasses
import functools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import tyro
from tqdm import tqdm

from data_prep.moving_shapes import generate
from videoclip.experiment import Data, Experiment, Optim, row_named
from videoclip.manifest import read_manifest, write_manifest
from videoclip.model import Model
from videoclip.reports.locked import Locked, locked
from videoclip.reports.material import Material, gather
from videoclip.towers import Text, ViT
from videoclip.training.engine import Engine
from videoclip.training.train import draw_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times one epoch of training, the ways in turn in one run, in seconds of work of all threads.

    For every module: from the features that locked towers have made once. For the first one also
    with locked towers that see every epoch's frames and texts, and with towers that are trained.
    The default towers are those of ViT-B/32, with random weights, which take the same time.
    """

    modules: tuple[str, ...] = ("transformer", "mean", "lstm", "tight")
    """What is trained; the first one in all ways."""
    clips: int = 24
    """Clips of an epoch."""
    frames: int = 12
    """Frames of a clip."""
    batch_size: int = 8
    """Clips of a step."""
    size: int = 224
    """Pixels a side of a frame."""
    patch_size: int = 32
    """Pixels a side of a patch."""
    width: int = 768
    """Channels of the vision tower; the text tower has two thirds of them."""
    layers: int = 12
    """Blocks of both towers."""
    rounds: int = 2
    """Times that everything is timed. Ways that take less than a second warm up first."""
    threads: int = 1
    """CPU threads."""
    json: Path | None = None
    """Where to write every time that was measured."""


class Row(NamedTuple):
    """One way to train one module."""

    module: str
    way: str
    seconds: list[float]
    """In each round."""


TRAINED, SEEN, READ = "towers trained", "towers locked", "locked, features read"


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures, prints the table and writes what was measured."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        once, rows = measure(options, Path(folder))
    condition = (
        f"{processor()}, {options.threads} thread{'s' if options.threads > 1 else ''}; "
        f"{options.clips} clips of {options.frames} frames of {options.size} px, batches of "
        f"{options.batch_size}; {options.rounds} rounds; torch {version('torch')}."
    )
    print("\n".join([condition, "", *table(rows), "", once]))
    if options.json:
        found = {"conditions": condition, "once": once, "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(options: Options, folder: Path) -> tuple[str, list[Row]]:
    """What making the features takes, and the rows."""
    base = experiment(options, folder)
    tried = {name: row_named(name, {}).of(base) for name in options.modules}
    material = gather(list(tried.values()), folder)
    began, epochs = time.process_time(), {}
    for name, one in tried.items():
        torch.manual_seed(0)
        model = one.model.build()
        found = locked(model, one, material)
        if not epochs:
            taken = time.process_time() - began
            once = f"To make all features once, of every split, took {taken:.1f} s."
            pixels = Locked(material.stores(one), None, None)
            epochs[name, TRAINED] = epoch_of(one, material, pixels, "none")
            epochs[name, SEEN] = epoch_of(one, material, pixels, "both")
        epochs[name, READ] = epoch_of(one, material, found, "both")
    return once, timed(epochs, options.rounds)


def experiment(options: Options, folder: Path) -> Experiment:
    """Clips on disk, and the towers that see them."""
    world = {"shapes": ["square"], "colors": ["red", "blue"], "images": 60}
    manifest = generate(folder / "data", clips_per_caption=-(-options.clips // 18), **world)
    clips = read_manifest(manifest)
    few = [clip for clip in clips if clip.split == "train"][: options.clips]
    few += [next(clip for clip in clips if clip.split == split) for split in ("val", "test")]
    write_manifest(folder / "few.jsonl", few)
    width = options.width * 2 // 3
    model = Model(
        visual=ViT(
            width=options.width, layers=options.layers, patch_size=options.patch_size,
            image_size=options.size,
        ),
        text=Text(width=width, layers=options.layers),
        embedding=width,
    )  # fmt: skip
    return Experiment(
        model=model,
        data=Data(manifest=folder / "few.jsonl", frames=options.frames, takes=1, workers=0),
        finetune=Optim(batch_size=options.batch_size, precision="fp32", lock="both"),
    )


def epoch_of(tried: Experiment, material: Material, found: Locked, lock: str) -> Callable[[], None]:
    """What trains one epoch, from reading clips and texts to the optimizer's step."""
    optim = dataclasses.replace(tried.finetune, lock=lock)
    model = tried.model.build()
    draw, steps = draw_of(
        model, tried.task, material.splits["train"], found.stores.training, optim=optim,
        data=tried.data, classes=(), seed=0, run=tried.run, texts=found.texts,
    )  # fmt: skip
    engine = Engine(model, optim, steps=1000)
    engine.train()

    def epoch() -> None:
        batches = draw(1, 0)
        for _ in range(steps):
            engine.step(next(batches))

    return epoch


def timed(epochs: dict[tuple[str, str], Callable[[], None]], rounds: int) -> list[Row]:
    """Trains an epoch of each in turn; those that read features once more before, to warm up."""
    rows = [Row(module, way, []) for module, way in epochs]
    for _ in tqdm(range(rounds), "measuring", unit="round"):
        for row, epoch in zip(rows, epochs.values(), strict=True):
            if row.way == READ and not row.seconds:
                epoch()
            began = time.process_time()
            epoch()
            row.seconds.append(time.process_time() - began)
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """A line for every row, beside the epoch in which the towers are trained."""
    slowest = median(next(row for row in rows if row.way == TRAINED).seconds)
    lines = ["| module | way | seconds an epoch | times as fast |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        taken = median(row.seconds)
        lines.append(f"| {row.module} | {row.way} | {taken:.3g} | {slowest / taken:.3g} |")
    return lines


@functools.cache
def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main(sys.argv[1:])
