"""Batches -> a trained model: the loop of all tasks, and the run of clips around it."""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from videoclip.distributed import agree, main_process, on_main
from videoclip.experiment import Data, Optim, Run
from videoclip.features.store import FeatureStore, Store
from videoclip.features.texts import TextFeatures
from videoclip.frames.loader import Loader, number_of_batches
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tasks import Task
from videoclip.training.engine import Engine, Step
from videoclip.training.engines import engine_of
from videoclip.training.interruption import Interruption
from videoclip.training.logbook import Logbook
from videoclip.training.snapshots import newest_state, save_state
from videoclip.types import Batch

STATES = "states"


class Trained(NamedTuple):
    """A batch that has been trained on, and where the run stands then."""

    done: int
    """Batches that the run has behind it: its position, from which it can go on."""
    epoch: int
    """From 1."""
    ends_epoch: bool
    names: tuple[str, ...]
    """The samples of the batch."""
    step: Step | None
    """None where no sample of the batch could be read: nothing was trained."""
    waited: float
    """Seconds until the batch was there."""
    seconds: float
    """Seconds for the whole batch, the wait included."""


def steps(
    engine: Engine,
    batches: Callable[[int, int], Iterator[Batch]],
    *,
    epochs: int,
    per_epoch: int,
    done: int = 0,
) -> Iterator[Trained]:
    """Trains batch by batch. What happens between batches is the caller's loop body.

    `batches(epoch, start)` gives the batches of an epoch (from 1) from number `start` (from 0) on,
    `per_epoch` in all; `done` of them lie behind the run already. The caller may evaluate at the
    end of an epoch: the next one puts the model into training mode again.
    """
    for epoch in range(done // per_epoch + 1, epochs + 1):
        engine.train()
        start = done % per_epoch
        source = batches(epoch, start)
        for number in range(start, per_epoch):
            began = time.perf_counter()
            batch = next(source)
            waited = time.perf_counter() - began
            step = engine.step(batch)  # also without samples here: other processes may have some
            done += 1
            seconds = time.perf_counter() - began
            yield Trained(done, epoch, number + 1 == per_epoch, batch.names, step, waited, seconds)
        assert next(source, None) is None, f"epoch {epoch} has more than {per_epoch} batches"


class Epoch(NamedTuple):
    """One line of a training history."""

    epoch: int
    """0 is the model as it was before training."""
    loss: float | None
    """Mean training loss; None for epoch 0."""
    validation: float | None
    """What the model is chosen by; higher is better. None where the last epoch is taken."""


class Pace(NamedTuple):
    """How fast training has been since the last line of the logbook."""

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, trained: Trained) -> "Pace":
        """One batch further."""
        samples = self.samples + (trained.step.samples if trained.step else 0)
        return Pace(samples, self.seconds + trained.seconds, self.waited + trained.waited)

    def values(self) -> dict[str, float]:
        """Samples per second, and the share of the time in which there was no batch to train on."""
        return {
            "samples_per_second": self.samples / self.seconds,
            "waiting_for_data": self.waited / self.seconds,
        }


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
    validate: Callable[[VideoCLIP], float] | None,
    label: str,
    folder: Path,
    run: Run,
    texts: TextFeatures | None = None,
) -> list[Epoch]:
    """Trains the model in place on clips; it is left with the weights of the best validated epoch.

    Without `validate` it is left with those of the last one. Numbers go to the logbook in `folder`
    as they come, and states to `folder/states`: after SIGINT or SIGTERM, which end it after the
    present step with KeyboardInterrupt, or after a kill, the same call goes on from the newest one
    and ends with the same weights.

    Raises VideoclipError, naming step and clips, where the loss is not finite.
    """
    draw, per_epoch = draw_of(
        model,
        task,
        clips,
        store,
        optim=optim,
        data=data,
        classes=classes,
        seed=seed,
        run=run,
        texts=texts,
    )
    engine = engine_of(model, optim, run, steps=per_epoch * optim.epochs, steps_per_epoch=per_epoch)
    kept = newest_state(folder / STATES)
    done, losses, history, best = 0, [0.0, 0], [], None
    if kept is None:
        if validate:
            history, best = [Epoch(0, None, validate(model))], copy.deepcopy(model.state_dict())
    else:
        engine.restore(kept["engine"])
        done, losses, best = kept["done"], kept["losses"], kept["best"]
        history = [Epoch(*line) for line in kept["history"]]
        tqdm.write(f"{label}: going on after step {done}", file=sys.stderr)

    def keep() -> None:
        save_state(folder / STATES, done, {
            "engine": engine.state(), "done": done, "losses": losses, "best": best,
            "history": [tuple(line) for line in history],
        })  # fmt: skip

    main = main_process()
    logbook = Logbook(folder, done=done) if main else None
    bar = tqdm(
        total=per_epoch * optim.epochs, initial=done, desc=label, unit="step", disable=not main
    )
    pace, saved = Pace(), time.monotonic()
    with Interruption() as interruption:
        for trained in steps(engine, draw, epochs=optim.epochs, per_epoch=per_epoch, done=done):
            done, pace = trained.done, pace.add(trained)
            bar.update()
            if trained.step:
                losses = [losses[0] + trained.step.loss, losses[1] + 1]
            values: dict[str, float] = {}
            if trained.step and (done % run.log_every == 0 or trained.ends_epoch):
                values, pace = trained.step.values() | pace.values(), Pace()
                told = "loss {loss:.3f}, {waiting_for_data:.0%} waiting for data".format(**values)
                if history and history[-1].validation is not None:
                    told += f", validation {history[-1].validation:.1f}"
                bar.set_postfix_str(told)
            if trained.ends_epoch:
                model.eval()
                shown = engine.trained()
                value = validate(shown) if validate else None
                history.append(Epoch(trained.epoch, losses[0] / max(losses[1], 1), value))
                values["epoch_loss"], losses = history[-1].loss, [0.0, 0]
                if value is not None:
                    values["validation"] = value
                    if value >= max(line.validation for line in history):
                        best = copy.deepcopy(shown.state_dict())
            if values and logbook:
                logbook.write(done, trained.epoch, **values)
            stop = agree(interruption.asked)
            if stop or agree(time.monotonic() - saved >= 60 * run.save_minutes):
                on_main(keep)
                saved = time.monotonic()
            if stop:
                bar.close()
                tqdm.write(
                    f"saved after step {done}; the same command goes on from there", file=sys.stderr
                )
                raise KeyboardInterrupt
    bar.close()
    if logbook:
        logbook.close()
    model.load_state_dict(best if best is not None else engine.trained().state_dict())
    model.eval()
    return history
