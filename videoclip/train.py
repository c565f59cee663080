"""The training loop, the same for images with captions (one frame) and for clips."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from videoclip.data import FrameStore, batches, number_of_batches
from videoclip.engine import Engine, Step
from videoclip.experiment import Data, Optim
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tokenizer import Tokenizer
from videoclip.types import Batch


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
            step = engine.step(batch) if batch.names else None
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
    validation: float
    """What the model is chosen by; higher is better."""


def train(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: FrameStore,
    tokenizer: Tokenizer,
    *,
    optim: Optim,
    data: Data,
    seed: int,
    validate: Callable[[VideoCLIP], float],
    label: str,
) -> list[Epoch]:
    """Trains the model in place on clips; it is left with the weights of the best validated epoch.

    Raises VideoclipError, naming step and clips, where the loss is not finite.
    """

    def draw(epoch: int, start: int) -> Iterator[Batch]:
        assert start == 0, "a comparison trains a model in one go"
        return batches(
            clips, store, tokenizer,
            batch_size=optim.batch_size, takes=data.takes, crop=data.crop, seed=seed, epoch=epoch,
        )  # fmt: skip

    per_epoch = number_of_batches(len(clips), optim.batch_size)
    engine = Engine(model, optim, steps=per_epoch * optim.epochs)
    history = [Epoch(0, None, validate(model))]
    best, best_weights = history[0], copy.deepcopy(model.state_dict())
    total = 0.0
    bar = tqdm(total=per_epoch * optim.epochs, desc=label, unit="step")
    for trained in steps(engine, draw, epochs=optim.epochs, per_epoch=per_epoch):
        total += trained.step.loss
        bar.update()
        if trained.ends_epoch:
            model.eval()
            history.append(Epoch(trained.epoch, total / per_epoch, validate(model)))
            if history[-1].validation >= best.validation:
                best, best_weights = history[-1], copy.deepcopy(model.state_dict())
            bar.set_postfix_str(
                f"loss {history[-1].loss:.3f}, validation {history[-1].validation:.1f}"
            )
            total = 0.0
    bar.close()
    model.load_state_dict(best_weights)
    model.eval()
    return history
