"""Clips -> a trained model: what retrieval and recognition give to the loop."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from videoclip.distributed import main_process
from videoclip.experiment import Data, Optim, Run
from videoclip.features.store import FeatureStore, Store
from videoclip.features.texts import TextFeatures
from videoclip.frames.loader import Loader, number_of_batches
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tasks import Task
from videoclip.tokenizer import Tokenizer
from videoclip.towers.labels import LabelTokenizer
from videoclip.training.engines import engine_of
from videoclip.training.logbook import BAD_SAMPLES
from videoclip.training.loop import Evaluated, Plan, Trained, train_through
from videoclip.types import Batch


def draw_of(
    model: VideoCLIP,
    task: Task,
    clips: Sequence[Clip],
    store: Store,
    *,
    optim: Optim,
    data: Data,
    classes: Sequence[str],
    seed: int,
    run: Run,
    texts: TextFeatures | None = None,
) -> tuple[Callable[[int, int], Iterator[Batch]], int]:
    """A function of (epoch, start) that gives an epoch's batches of clips, and their number.

    With `texts` a batch has the features of its texts in place of their ids.
    """
    samples = task.samples(clips, classes, seed)
    loader = Loader(
        samples, store, model.tokenizer(data.words),
        batch_size=optim.batch_size, takes=data.takes, augment=data.augment, crop=data.crop,
        size=model.config.visual.image_size, texts=partial(task.texts, classes=classes),
        mix=task.mix, bad_samples=data.bad_samples, seed=seed, stuck_seconds=run.stuck_seconds,
        # Features are read faster than another process could hand them over.
        workers=0 if isinstance(store, FeatureStore) else data.workers,
    )  # fmt: skip

    def draw(epoch: int, start: int) -> Iterator[Batch]:
        for batch in loader.epoch(epoch, start):
            yield batch._replace(ids=texts(batch.ids)) if texts else batch

    return draw, number_of_batches(len(samples), optim.batch_size)


def train(
    model: VideoCLIP,
    task: Task,
    clips: Sequence[Clip],
    store: Store,
    *,
    optim: Optim,
    data: Data,
    classes: Sequence[str],
    seed: int,
    validate: Callable[[VideoCLIP], Evaluated] | None,
    label: str,
    folder: Path,
    run: Run,
    decides: dict[str, Any],
    texts: TextFeatures | None = None,
) -> Trained:
    """Trains the model on clips; the result has the weights of the best validated epoch.

    Without `validate` it has those of the last one. `decides` says in JSON what the result depends
    on; see `train_through` for how a run in `folder` is stopped, goes on and ends.
    """
    draw, per_epoch = draw_of(
        model, task, clips, store,
        optim=optim, data=data, classes=classes, seed=seed, run=run, texts=texts,
    )  # fmt: skip
    steps = per_epoch * optim.epochs
    engine = engine_of(model, optim, run, steps=steps, steps_per_epoch=per_epoch)
    tokenizer = model.tokenizer(data.words)
    plan = Plan(
        folder=folder, run=run, epochs=optim.epochs, per_epoch=per_epoch, draw=draw,
        evaluate=lambda model, at: validate(model) if validate else Evaluated({}),
        decides=decides, unreadable={},
        captions=lambda batch: captions_of(batch, tokenizer), label=label,
    )  # fmt: skip
    trained = train_through(engine, plan)
    if plan.unreadable and main_process():
        print(
            f"{label}: {len(plan.unreadable)} of {len(clips)} training clips could not be read; "
            f"{folder / BAD_SAMPLES} lists each time",
            file=sys.stderr,
        )
    return trained


def captions_of(batch: Batch, tokenizer: Tokenizer | LabelTokenizer) -> list[str]:
    """The text that describes each clip of a batch best, as the model reads it."""
    if batch.ids.is_floating_point():  # a locked tower has read them already
        return [""] * len(batch.names)
    rows = batch.matches.float().argmax(0).tolist()
    return [tokenizer.decode(batch.ids[row].tolist()) for row in rows]
