"""What a run keeps to go on from: a snapshot with its state and its models."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videoclip.checkpoints.weights import load
from videoclip.distributed import main_process, on_main
from videoclip.errors import VideoclipError
from videoclip.experiment import Run
from videoclip.model import VideoCLIP
from videoclip.record import differences
from videoclip.training.engine import Engine, Step, random_state, set_random_state
from videoclip.training.snapshots import newest, save

STATES = "states"
"""The folder of the snapshots in a run folder."""
STATE, MODEL, BEST, ABOUT = "state.pt", "model", "best", "run.json"
"""What a snapshot holds: all that the next step depends on, the model as it stands and the best one
so far, which videoclip.load opens, and what the run is of."""


class Position(NamedTuple):
    """Where a run stands."""

    done: int = 0
    """Batches behind it, over all epochs."""
    seen: int = 0
    """Samples that it was trained on, over all epochs and processes."""
    bad: int = 0
    """Steps that changed nothing, since loss or gradient was not finite."""
    in_a_row: int = 0
    """How many of these are the last ones."""
    steps: int = 0
    """Of the present epoch, the steps that changed the weights."""
    loss: float = 0.0
    """The sum of their losses."""
    drawn: int = 0
    """Of the present epoch, the samples that could be read, over all processes."""

    def after(self, step: Step | None) -> "Position":
        """One batch further; without a step where nothing of it could be read."""
        at = self._replace(done=self.done + 1)
        if step is None:
            return at
        at = at._replace(drawn=self.drawn + step.samples)
        if step.fault:
            return at._replace(bad=self.bad + 1, in_a_row=self.in_a_row + 1)
        return at._replace(
            seen=self.seen + step.samples, in_a_row=0, steps=self.steps + 1,
            loss=self.loss + step.loss,
        )  # fmt: skip


class Epoch(NamedTuple):
    """One line of a training history."""

    epoch: int
    """0 is the model as it was before training."""
    loss: float | None
    """Mean training loss; None for epoch 0."""
    validation: float | None
    """What the model is chosen by; higher is better. None where the last epoch is taken."""


class Kept(NamedTuple):
    """What a run knows besides its engine."""

    at: Position
    history: list[Epoch]
    """The epochs that have been evaluated."""
    values: dict[str, float]
    """Numbers of the last step of an epoch, which are written after its evaluation."""
    best: dict[str, Tensor] | None
    """The weights of the best epoch so far, on the CPU; in the main process only."""


def keep(
    engine: Engine,
    kept: Kept,
    folder: Path,
    run: Run,
    *,
    decides: dict[str, Any],
    unreadable: dict[str, str],
) -> None:
    """Saves all that the rest of a run depends on. All processes must call it together.

    Raises VideoclipError where the disk refuses.
    """
    random = random_state()
    state, model = engine.state(), engine.trained()
    set_random_state(random)  # a run that saves more often draws the same numbers

    def write(inside: Path) -> None:
        more = {
            "at": kept.at._asdict(), "history": [tuple(line) for line in kept.history],
            "values": kept.values, "unreadable": dict(unreadable),
        }  # fmt: skip
        with (inside / STATE).open("wb") as file:  # whose errors say what is wrong with the disk
            torch.save({"engine": state, **more}, file)
        model.save_pretrained(inside / MODEL)
        if kept.best is not None:
            _with_weights(model, kept.best).save_pretrained(inside / BEST)
        about = {"decides": decides, "epochs": len(kept.history) - 1, **kept.at._asdict()}
        found = [line.validation for line in kept.history if line.validation is not None]
        about["best"] = max(found, default=None)
        (inside / ABOUT).write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")

    def to_disk() -> None:
        save(folder / STATES, kept.at.done, write, keep_last=run.keep_last)

    on_main(to_disk)


def begin(
    engine: Engine,
    folder: Path,
    run: Run,
    *,
    decides: dict[str, Any],
    unreadable: dict[str, str],
) -> Kept:
    """Takes an engine to the newest state of a run, or says that the run begins.

    All processes must call it together, and all must see the folder. Raises VideoclipError where
    the state belongs to other settings or other data, and names what differs.
    """
    if run.resume == "never" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        on_main(_forget, folder)  # but not where a launcher starts processes again that died
    found = on_main(_usable, folder, decides)
    if found is None:
        return Kept(Position(), [], {}, None)
    state = torch.load(found / STATE, map_location="cpu", weights_only=True)
    engine.restore(state["engine"])
    unreadable |= state["unreadable"]
    best = None
    if main_process() and (found / BEST).is_dir():
        best = load(found / BEST).state_dict()
    history = [Epoch(*line) for line in state["history"]]
    return Kept(Position(**state["at"]), history, state["values"], best)


def on_cpu(model: VideoCLIP) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _with_weights(model: VideoCLIP, weights: dict[str, Tensor]) -> VideoCLIP:
    """A model of this kind that holds these very tensors."""
    with torch.device("meta"):  # without memory, and without random numbers
        made = model.config.build()
    made.load_state_dict(weights, assign=True)
    made.origin = model.origin
    return made


def _forget(folder: Path) -> None:
    """Deletes the states of a run, after that has been said."""
    if (folder / STATES).is_dir():
        print(f"--run.resume never: the states in {folder / STATES} are deleted")
        shutil.rmtree(folder / STATES)


def _usable(folder: Path, decides: dict[str, Any]) -> Path | None:
    """The newest whole snapshot of a run, if it is one of this run."""
    found = newest(folder / STATES)
    if found is None:
        return None
    there = json.loads((found / ABOUT).read_text())["decides"]
    if different := differences(there, decides):
        raise VideoclipError(
            f"{found} is the state of a run with other settings or other data; choose another "
            "--output, or start anew with --run.resume never, which deletes it:\n"
            + "\n".join(different)
        )
    return found
