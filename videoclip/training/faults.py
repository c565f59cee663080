"""What can go wrong in a step of training, so that it leaves the weights as they were."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoclip.errors import VideoclipError

GROWTH = 2000
"""After so many good steps the scale of the loss is doubled."""
SHORT = ("allocate memory", "out of memory", "ALLOC_FAILED")
"""How libraries say that memory has run out, where they have no error of its own for it."""


class LossScale(NamedTuple):
    """What a loss is multiplied by, so that its gradients neither vanish in float16 nor overflow.

    The rule of torch.amp.GradScaler. That one looks for overflow in the gradients it is shown;
    under ZeRO no process sees them all.
    """

    factor: float = 2.0**16
    """A power of two, which rounds nothing."""
    good: int = 0
    """Steps since it was changed."""

    def after(self, fault: str | None) -> "LossScale":
        """The scale of the next step."""
        if fault:
            return LossScale(self.factor / 2)
        if self.good + 1 == GROWTH:
            return LossScale(self.factor * 2)
        return LossScale(self.factor, self.good + 1)


def averages(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The running averages of batch normalization that a step changes, each with a copy of it."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    found = [buffer for norm in norms for buffer in norm.buffers()]
    return [(buffer, buffer.clone()) for buffer in found]


def put_back(kept: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Makes the averages what they were."""
    for buffer, copy in kept:
        buffer.copy_(copy)


@contextmanager
def enough_memory(otherwise: Callable[[], VideoclipError]) -> Iterator[None]:
    """Where memory runs out inside, it raises that error instead."""
    short = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
        own = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not own and not any(words in str(error) for words in SHORT):
            raise
        short = True
        # What was computed hangs on the frames that the error came through, and would stay.
        traceback.clear_frames(error.__traceback__)
    if short:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise otherwise()
