"""The form of a task: which texts stand beside the clips of a batch, and what is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from videoclip.manifest import Clip
from videoclip.types import Keys


class Texts(NamedTuple):
    """The texts of a batch, and which clips they describe."""

    sentences: tuple[str, ...]
    """Q sentences; one per clip, or one per class."""
    keys: Keys
    """Of the Q texts and the B clips."""


class Measure(NamedTuple):
    """The figures of a task, as tables call them."""

    directions: dict[str, str]
    """What is asked with and what is found: the column of the rank table, and how tables say it.
    The first is the one that charts show."""
    hits: dict[str, int]
    """Names of the shares of queries whose answer is among the first K; the first is the main one.
    """
    positions: bool
    """Whether the median and the mean of the ranks are shown."""
    queries: str
    """What tables call the queries of the first direction."""

    @property
    def main(self) -> str:
        """The figure by which modules are compared."""
        return next(iter(self.hits))

    @property
    def direction(self) -> str:
        """The direction in which they are compared."""
        return next(iter(self.directions))


Mix = Literal["none", "mixup-cutmix"]


class Task:
    """Base of all tasks: frozen keyword-only dataclasses, told apart by the name of their file."""

    measure: ClassVar[Measure]
    mix: Mix = "none"

    def require(self, clips: Sequence[Clip], path: Path) -> None:
        """Raises ManifestError that names the clips without what the task is about."""
        raise NotImplementedError

    def check(self, test: Sequence[Clip]) -> str | None:
        """One line about the test split where the task names a protocol.

        Raises ProtocolError that lists what is not as the protocol has it.
        """
        return None

    def samples(self, training: Sequence[Clip], classes: Sequence[str], seed: int) -> list[Clip]:
        """The samples of an epoch: each training clip once, unless the task says otherwise."""
        return list(training)

    def sentences(self, clips: Sequence[Clip], classes: Sequence[str]) -> list[str]:
        """All texts that stand beside these clips, in training or in evaluation."""
        raise NotImplementedError

    def texts(
        self,
        clips: Sequence[Clip],
        numbers: Sequence[np.random.Generator],
        classes: Sequence[str] = (),
    ) -> Texts:
        """The texts of a training batch; draws come from each clip's own random numbers."""
        raise NotImplementedError
