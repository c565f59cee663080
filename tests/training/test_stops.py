"""A run that is stopped and goes on ends with the same weights and numbers, to the bit.

`STOPS=all pytest tests/training/test_stops.py` stops it after each of its steps and evaluations.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import clips as files
import processes
import pytest
import torch
from models import build

from videoclip import distributed
from videoclip.experiment import Data, Optim, Run
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.tasks import Retrieval
from videoclip.towers import Text
from videoclip.training import loop
from videoclip.training.logbook import read_metrics
from videoclip.training.loop import Evaluated, Trained
from videoclip.training.states import STATES
from videoclip.training.train import train

TIMELESS = {"samples_per_second", "waiting_for_data", "memory"}
EPOCHS, PER_EPOCH = 5, 3
OCCASIONS = 1 + EPOCHS * (PER_EPOCH + 1)
"""After each step and each evaluation, that before the first step included."""
EACH = range(1, OCCASIONS + 1) if os.environ.get("STOPS") else None


class Case(NamedTuple):
    """What every process of a test is told."""

    videos: list[Clip]
    folder: Path
    workers: int
    occasions: Sequence[int]


class StopAt:
    """Asks to stop on one occasion, as a signal does; of two processes only the second hears it."""

    def __init__(self, occasion: int) -> None:
        self.left = occasion

    def __enter__(self) -> "StopAt":
        return self

    def __exit__(self, *_: object) -> None:
        return

    @property
    def asked(self) -> int | None:
        self.left -= 1
        heard = distributed.rank() == distributed.world_size() - 1
        return signal.SIGINT if self.left == 0 and heard else None


def one(case: Case, folder: Path, save_minutes: float = 10.0) -> Trained:
    """A run whose dropout draws random numbers in every step."""
    torch.manual_seed(0)
    model = build(head="lstm", scorer="tight", text=Text(width=32, layers=1, context_length=12))
    store = FrameStore(case.folder / "frames", size=16, frames=4)
    store.fill(case.videos, 1, "clips")

    def validate(model) -> Evaluated:
        value = float(model.clip.visual.proj.detach().double().sum().cos())
        return Evaluated({"validation": value}, value)

    return train(
        model, Retrieval(), case.videos, store,
        optim=Optim(epochs=EPOCHS, batch_size=2, tower_rate=1e-3, precision="fp32"),
        data=Data(takes=1, words=12, workers=case.workers), classes=(), seed=0, validate=validate,
        label="test", folder=folder, decides={"a": 1},
        run=Run(log_every=1, save_minutes=save_minutes),
    )  # fmt: skip


def differences(case: Case) -> list[str]:
    """Where a run that was stopped came to something else than the one that was not."""
    whole = one(case, case.folder / "whole")
    expected = timeless(case.folder / "whole")
    assert [line["step"] for line in expected] == list(range(EPOCHS * PER_EPOCH + 1))
    found, real = [], loop.Interruption
    for occasion in case.occasions:
        folder = case.folder / f"stop{occasion}"
        loop.Interruption = lambda at=occasion: StopAt(at)
        with pytest.raises(KeyboardInterrupt):
            # Saved after every step, what an evaluation says has no state of its own.
            one(case, folder, save_minutes=0 if occasion % 2 else 10)
        loop.Interruption = real
        assert (folder / STATES / "latest").is_file()
        again = one(case, folder)
        if again.history != whole.history or again.at != whole.at:
            found.append(f"{occasion}: {again.history}, {again.at}")
        for name, value in whole.model.state_dict().items():
            if not torch.equal(value, again.model.state_dict()[name]):
                found.append(f"{occasion}: {name}")
        if timeless(folder) != expected:
            found.append(f"{occasion}: {timeless(folder)}")
    return found


def timeless(folder: Path) -> list[dict[str, float]]:
    """What two runs must have in common."""
    return [
        {name: value for name, value in line.items() if name not in TIMELESS}
        for line in read_metrics(folder)
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number in range(6):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(4 + number, width=32, height=32))
        made.append(Clip(f"v{number}", path, (f"number {number}",)))
    return made


@pytest.mark.parametrize(("workers", "occasions"), [(0, (1, 2, 4, 5, 20, OCCASIONS)), (2, (3,))])
def test_one_process(videos, tmp_path, workers: int, occasions, monkeypatch) -> None:
    monkeypatch.setattr(loop, "Interruption", loop.Interruption)  # puts it back in any case
    assert differences(Case(videos, tmp_path, workers, EACH or occasions)) == []


@pytest.mark.parametrize(("workers", "occasions"), [(0, (2, 4, 9)), *([(2, ())] if EACH else [])])
def test_two_processes(videos, tmp_path, workers: int, occasions) -> None:
    case = Case(videos, tmp_path, workers, EACH or occasions)
    for found in processes.run(differences, case, tmp_path / "answers"):
        assert found == []
