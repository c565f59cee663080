"""Batch -> better weights: one step of training, in one process or in several.

An engine owns the model while it is trained: optimizer, schedule, precision, chunks and what is
locked. Its state is what a run must keep to go on exactly where it was.

Where processes share a batch every one holds the whole model, and after the backward pass their
gradients are averaged by hand. DistributedDataParallel would do that while the backward pass is
still running, but it counts on one forward and one backward pass through one `forward`: towers
that are called one by one, chunks that are embedded twice and locked towers each need an exception
there. Averaging afterwards is always right, costs the wait for one exchange, and lets a step be
refused by all processes before any of them has changed a weight. Two things are not as in one
process with the whole batch: which activations dropout drops, and batch normalization, which in a
ResNet that is trained normalizes the rows of one process.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.experiment import Optim
from videoclip.model import VideoCLIP
from videoclip.training import grad_cache
from videoclip.training.average import Average
from videoclip.training.blocks import set_blocks
from videoclip.training.contrast import Contrast, own_texts
from videoclip.training.losses import LOSSES
from videoclip.training.optim import autocast, freeze, locked_modules, trainers
from videoclip.types import Batch, Embedding, Features, Frames, on_device

T = TypeVar("T")
NAMED = 10
"""How many samples an error message names."""


class Step(NamedTuple):
    """What one step tells."""

    loss: float
    """Before the step."""
    gradient_norm: float
    """Before it is scaled down."""
    learning_rate: float
    """Of CLIP's own weights, or of the new modules where no other weights are trained."""
    logit_scale: float
    """By which cosines are multiplied, after the step."""
    samples: int
    """Clips or pictures that it was taken on, over all processes."""
    fault: str | None = None
    """Why the weights were left as they were, such as "the loss is nan"; None after a good step."""

    def values(self) -> dict[str, float]:
        """The numbers, for a logbook."""
        return {name: value for name, value in self._asdict().items() if name != "fault"}


class Engine:
    """A model and what trains it in plain PyTorch; `step` is called once for every batch."""

    def __init__(
        self, model: VideoCLIP, optim: Optim, *, steps: int, steps_per_epoch: int | None = None
    ) -> None:
        """Raises ConfigError where the loss needs a bias that the model has not."""
        if optim.loss == "siglip" and model.clip.logit_bias is None:
            raise ConfigError(
                "the SigLIP loss needs a bias of the logits, which this model has not; set "
                "--model.logit-bias -10"
            )
        self.model, self.optim = model, optim
        freeze(model, optim)
        set_blocks(model, optim)
        distributed.start_alike(model)
        self.optimizer, self.schedule = trainers(model, optim, steps, steps_per_epoch)
        self.average = Average.of(model, optim)

    @property
    def steps_done(self) -> int:
        """How many steps the weights have behind them."""
        return self.schedule.last_epoch

    def train(self) -> None:
        """Puts the model into training mode, and what is locked into evaluation mode."""
        self.model.train()
        for module in locked_modules(self.model, self.optim):
            module.eval()

    def step(self, batch: Batch) -> Step | None:
        """One step; None, and nothing changed, where no process has a sample.

        Where processes share a batch all must call it, those without a sample too.

        Raises VideoclipError, before any weight is changed and in all processes alike, where loss
        or gradient is not finite; it names the step and the samples.
        """
        batch, kind = own_texts(batch), LOSSES[self.optim.loss]
        contrast = Contrast(
            self.model, batch, kind, scores=self.optim.scores, autocast=self.autocast
        )
        if not contrast.samples:
            return None
        with distributed.own_random_numbers(self.model.device):
            loss = self._backward(batch, contrast)
        rate = self.optimizer.param_groups[0]["lr"]
        norm = self._update(batch)
        distributed.mean_statistics(self.model)
        self.schedule.step()
        scale = math.exp(self._clamped())
        if self.average:
            self.average.update()
        return Step(loss, norm, rate, scale, contrast.samples)

    def autocast(self) -> torch.autocast:
        """The context in which embeddings and scores are computed."""
        return autocast(self.model.device, self.optim.precision)

    def _backward(self, batch: Batch, contrast: Contrast) -> float:
        """Gives the weights the gradients of this process and returns the loss of all."""
        loss = math.nan

        def checked(text: Embedding, video: Embedding) -> Tensor:
            nonlocal loss
            value = contrast(text, video)
            loss = distributed.mean(value.item())
            self._require_finite("loss", loss, batch)
            return value

        def whole() -> Tensor:
            with self.autocast():
                text, video = self.model.embed_text(ids), self.model.embed_video(frames)
            return checked(text, video)

        self._clear()
        size = self.optim.chunk_size or max(1, contrast.samples, len(contrast.matches))
        frames, ids = _in_chunks(batch, size)
        device = self.model.device
        frames, ids = on_device(frames, device), ids.to(device)
        # No process goes another way than the others: they would wait for each other.
        if distributed.agree(size < max(len(ids), len(frames.mask))):
            grad_cache.backward(
                self.model, frames, ids, checked,
                chunk_size=size, autocast=self.autocast, descend=self._descend, inside=self._inside,
            )  # fmt: skip
        else:
            self._descend(whole)
        return loss

    def _clear(self) -> None:
        """Takes the gradients of the step before away."""
        self.optimizer.zero_grad()

    def _descend(self, make: Callable[[], Tensor]) -> Tensor:
        """Computes a number and takes it back to the weights."""
        return grad_cache.take_back(make)

    def _inside(self, make: Callable[[], T]) -> T:
        """Computes something of the weights that is not taken back to them."""
        return make()

    def _update(self, batch: Batch) -> float:
        """Changes the weights by the mean of all processes' gradients; the norm that it had."""
        distributed.mean_gradients(self.model.parameters())
        largest = self.optim.max_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()
        self._require_finite("gradient norm", norm, batch)
        self.optimizer.step()
        return norm

    def _require_finite(self, what: str, value: float, batch: Batch) -> None:
        if not math.isfinite(value):
            names = [name for part in distributed.gather_objects(batch.names) for name in part]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise distributed.alike(
                f"the {what} is {value} at step {self.steps_done + 1} with the samples "
                f"{', '.join(names[:NAMED])}{more}; lower the learning rates"
            )

    def _clamped(self) -> float:
        """The logarithm of the temperature, after it was bounded where the loss asks for that."""
        if self.optim.loss == "clip":
            self.model.clip.clamp_logit_scale()
        return self.model.clip.logit_scale.item()

    def weights(self) -> dict[str, Tensor]:
        """The state of the model as `VideoCLIP.load_state_dict` takes it, in every process."""
        return self.model.state_dict()

    def trained(self) -> VideoCLIP:
        """The model as it stands, for whoever looks at it between two steps.

        With moving averages it is a copy that has them. All processes must ask for it together.
        """
        if self.average is None:
            return self.model
        copied = copy.deepcopy(self.model)
        copied.load_state_dict(self.average.weights(), strict=False)
        return copied.eval()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batch."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.average.weights() if self.average else {},
            "random": random_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average:
            self.average.restore(state["ema"])
        set_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """The state of torch's generators of random numbers."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Goes back to what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _in_chunks(batch: Batch, size: int) -> tuple[Frames | Features, Tensor]:
    """Clips and ids, of each at least one and as many chunks as the other processes have.

    What is missing is filled up with blank rows, so that all processes do the same and the weights
    of all get gradients; `Contrast` cuts what comes of them off.
    """

    def filled(x: Tensor, value: int = 0) -> Tensor:
        missing = (distributed.largest(-(-len(x) // size)) - 1) * size + 1 - len(x)
        return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)]) if missing > 0 else x

    shown, mask = batch.frames[:2]
    return type(batch.frames)(filled(shown), filled(mask, True)), filled(batch.ids)
