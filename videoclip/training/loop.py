"""One loop for all that is trained: retrieval, recognition, and pictures with captions.

It reads in the order of time: a batch, a step, then whatever is due. What it leaves in the folder
of a run: docs/training.md.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from signal import SIGINT
from typing import Any, NamedTuple

import numpy as np

from videoclip.distributed import (
    alike,
    gather_objects,
    largest,
    main_process,
    start_alike,
    world_size,
)
from videoclip.errors import OutOfMemoryError, Preempted
from videoclip.experiment import Run
from videoclip.model import VideoCLIP
from videoclip.training.engine import Engine, Step, random_state, set_random_state
from videoclip.training.interruption import Interruption
from videoclip.training.logbook import BAD_STEPS, Logbook
from videoclip.training.pictures import batch_picture
from videoclip.training.states import (
    Epoch,
    Kept,
    Position,
    begin,
    keep,
    on_cpu,
)
from videoclip.training.watch import Watch, memory
from videoclip.types import Bad, Batch, Frames

SAVE, CTRL_C, SCHEDULER = 1, 2, 3
"""What a process may wish for after a step; of all processes' wishes the largest is fulfilled."""


class Evaluated(NamedTuple):
    """What is found out about a model between two epochs."""

    values: dict[str, float]
    """Numbers for the logbook."""
    selection: float | None = None
    """What the weights are chosen by; higher is better. None: those of the last epoch are kept."""
    picture: np.ndarray | None = None
    """The scores of every query with every answer, (H, W, 3) uint8."""
    worst: str = ""
    """The queries that went worst, as Markdown."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, on what, and where its traces go."""

    folder: Path
    """Gets the logbook, and the states while the run lasts."""
    run: Run
    """How it is carried out."""
    epochs: int
    """Passes over the data."""
    per_epoch: int
    """Batches of an epoch."""
    draw: Callable[[int, int], Iterator[Batch]]
    """(epoch from 1, start from 0) -> the batches of an epoch from number `start` on."""
    evaluate: Callable[[VideoCLIP, Position], Evaluated]
    """Called by all processes, before the first epoch and after each."""
    decides: dict[str, Any]
    """All that decides the result, as JSON; a state of anything else is refused."""
    unreadable: dict[str, str]
    """Samples that could not be read, with the reasons; more are added."""
    captions: Callable[[Batch], list[str]]
    """What is shown beside the clips of a batch."""
    label: str
    """What the live line calls the run."""
    unit: str = "clips"
    """What the samples are."""


class Trained(NamedTuple):
    """What a run has come to."""

    model: VideoCLIP
    """In evaluation mode, with the weights that were chosen."""
    history: list[Epoch]
    """A line for each epoch, the first for the model as it was before."""
    at: Position
    """Where it ended."""


class Pace(NamedTuple):
    """How fast training has been since the last line of the logbook."""

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def values(self) -> dict[str, float]:
        """Samples per second, and the share of the time in which there was no batch to train on."""
        return {
            "samples_per_second": self.samples / self.seconds,
            "waiting_for_data": self.waited / self.seconds,
        }


def train_through(engine: Engine, plan: Plan) -> Trained:
    """Trains a model through its epochs, or goes on where an earlier call was stopped.

    It ends with the same weights and numbers as without the stop. SIGINT, SIGTERM and SIGUSR1 end
    it after the present step with a saved state: the first with KeyboardInterrupt, the others with
    Preempted. After a kill at most the last `run.save_minutes` are trained again. Of several
    processes all must call it.

    Raises VideoclipError where the state in the folder belongs to other settings, where no state
    can be saved, and after `run.bad_steps` bad steps in a row.
    """
    loop = _Loop(engine, plan)
    with loop.interruption, loop.watch:
        for epoch in range(len(loop.history), plan.epochs + 1):
            loop.train(epoch)
            loop.evaluate(epoch)
    return loop.finish()


class _Loop:
    """A run between its first and its last step."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.run = engine, plan, plan.run
        kept = begin(
            engine, plan.folder, plan.run, decides=plan.decides, unreadable=plan.unreadable
        )
        self.at, self.history, self.values, self.best = kept
        main, per_epoch = main_process(), plan.per_epoch
        # An epoch's last line is written after its evaluation, which may still be due.
        is_due = self.at.done == len(self.history) * per_epoch
        last = self.at.done - is_due
        self.logbook = Logbook(plan.folder, last=last, report=self.run.report) if main else None
        self.watch = Watch(
            plan.label, total=plan.epochs * per_epoch, done=self.at.done, epochs=plan.epochs,
            unit=plan.unit, silent=not main,
        )  # fmt: skip
        if self.at.done:
            self.watch.say(f"{plan.label}: going on after step {self.at.done}")
        self.interruption, self.pace, self.saved = Interruption(), Pace(), time.monotonic()
        self.is_compared, self.bad = False, list[tuple[int, int, Bad]]()

    def train(self, epoch: int) -> None:
        """What is left of an epoch; epoch 0 is an evaluation only."""
        left = epoch * self.plan.per_epoch - self.at.done
        if not left:
            return
        self.engine.train()
        source = self.plan.draw(epoch, self.plan.per_epoch - left)
        for number in range(1, left + 1):
            began = time.perf_counter()
            batch = next(source)
            waited = time.perf_counter() - began
            rates = self._rates()
            step = self._step(batch)
            self.at = self.at.after(step)
            self.pace = Pace(
                self.pace.samples + (step.samples if step else 0),
                self.pace.seconds + time.perf_counter() - began,
                self.pace.waited + waited,
            )
            self.bad += [(self.at.done, epoch, bad) for bad in batch.bad]
            if self.at.done == 1:
                self._show(batch)
            if step and step.fault:
                self._note_fault(step.fault, batch, epoch)
            self.values = {}
            if step and (self.at.done % self.run.log_every == 0 or number == left):
                self._note_bad()
                self.values = self._numbers(step) | rates
                if self.logbook and number < left:
                    self.logbook.write(self.at.done, epoch, **self.values)
            self.watch.show(self.at.done, epoch, self.values)
            self.save_or_end()
        assert next(source, None) is None, f"epoch {epoch} has more than {self.plan.per_epoch}"

    def evaluate(self, epoch: int) -> None:
        """Ends an epoch: looks at the model, and keeps its weights if it is the best so far."""
        self._note_bad()
        model, at = self.engine.trained().eval(), self.at
        with self.watch.paused():
            found = self.plan.evaluate(model, at)
        loss = at.loss / at.steps if at.steps else None
        self.history.append(Epoch(epoch, loss, found.selection))
        values = self.values | ({} if loss is None else {"epoch_loss": loss}) | found.values
        if found.selection is not None:
            values["best"] = max(line.validation for line in self.history)
            if found.selection == values["best"] and main_process():
                self.best = on_cpu(model)
        self.at, self.values = at._replace(steps=0, loss=0.0, drawn=0), {}
        if self.logbook:
            if found.picture is not None:
                self.logbook.picture("scores", at.done, found.picture)
            if found.worst:
                self.logbook.text("worst", at.done, found.worst)
            if values:
                self.logbook.write(at.done, epoch, **values)
            if not self.is_compared:
                self.logbook.compare_by(self.plan.decides, ["epoch_loss", "best", *found.values])
                self.is_compared = True
        self.watch.show(at.done, epoch, found.values)
        self.save_or_end()

    def save_or_end(self) -> None:
        """Saves the state where that is due, and ends the run where a signal has asked for it."""
        wish = SAVE if time.monotonic() - self.saved >= 60 * self.run.save_minutes else 0
        asked = self.interruption.asked
        if asked is not None:
            wish = CTRL_C if asked == SIGINT else SCHEDULER
        wish = largest(wish)
        if not wish:
            return
        self.keep()
        if wish > SAVE:
            self.watch.say(f"saved after step {self.at.done}; the same command goes on from there")
            raise KeyboardInterrupt if wish == CTRL_C else Preempted

    def keep(self) -> None:
        """Saves all that the rest of the run depends on."""
        self._note_bad()
        kept = Kept(self.at, self.history, self.values, self.best)
        keep(
            self.engine, kept, self.plan.folder, self.run,
            decides=self.plan.decides, unreadable=self.plan.unreadable,
        )  # fmt: skip
        self.saved = time.monotonic()

    def finish(self) -> Trained:
        """The model with the weights that were chosen."""
        if self.logbook:
            self.logbook.close()
        model = self.engine.trained()
        if self.history[-1].validation is not None:
            if main_process():
                model.load_state_dict(self.best)
            start_alike(model)
        return Trained(model.eval(), self.history, self.at)

    def _step(self, batch: Batch) -> Step | None:
        """One step, also without samples here, since other processes may have some."""
        random = random_state()
        try:
            return self.engine.step(batch)
        except OutOfMemoryError:
            if world_size() == 1:  # else the others wait in the middle of their step
                set_random_state(random)
                self.keep()
                self.watch.say(f"saved after step {self.at.done}; other settings can go on there")
            raise

    def _show(self, batch: Batch) -> None:
        """A picture of the first batch, unless a locked tower has looked at the clips already."""
        if self.logbook and batch.names and isinstance(batch.frames, Frames):
            self.logbook.picture("batch", 1, batch_picture(batch, self.plan.captions(batch)))

    def _rates(self) -> dict[str, float]:
        """The learning rate of new modules, which the step does not tell."""
        if not any(weight.requires_grad for weight in self.engine.model.new_parameters()):
            return {}
        return {"module_rate": self.engine.optimizer.param_groups[-1]["lr"]}

    def _numbers(self, step: Step) -> dict[str, float]:
        """What is told of a step, and of the steps since the last line."""
        found = {name: value for name, value in step.values().items() if isfinite(value)}
        found |= self.pace.values() | memory()
        self.pace = Pace()
        return found | {"skipped": len(self.plan.unreadable), "bad_steps": self.at.bad}

    def _note_bad(self) -> None:
        """Lists the samples that no process could read since the last time."""
        found = [line for part in gather_objects(self.bad) for line in part]
        for step, epoch, bad in sorted(found, key=lambda line: (line[0], line[2].name)):
            self.plan.unreadable[bad.name] = bad.reason
            if self.logbook:
                self.logbook.bad_sample(step, epoch, bad)
        self.bad = []

    def _note_fault(self, reason: str, batch: Batch, epoch: int) -> None:
        """Writes down which samples were in a bad step; ends the run after too many in a row."""
        names = [name for part in gather_objects(batch.names) for name in part]
        if self.logbook:
            self.logbook.bad_step(self.at.done, epoch, reason, names)
        if self.at.in_a_row >= self.run.bad_steps:
            raise alike(
                f"{self.at.in_a_row} steps in a row changed nothing, in the last {reason}; their "
                f"samples stand in {self.plan.folder / BAD_STEPS}. Look at them, or train anew "
                "with lower learning rates; the state that was saved before is still there"
            )
