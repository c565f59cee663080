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

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videoclip import distributed, grad_cache
from videoclip.config import ConfigError
from videoclip.contrast import Contrast, own_texts
from videoclip.experiment import Optim
from videoclip.layers import Blocks
from videoclip.losses import LOSSES
from videoclip.model import VideoCLIP
from videoclip.optim import autocast, freeze, locked_modules, trainers
from videoclip.types import Batch, Frames

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
        for blocks in (m for m in model.modules() if isinstance(m, Blocks)):
            blocks.checkpoint(optim.checkpointing == "blocks")
        distributed.start_alike(model)
        self.optimizer, self.schedule = trainers(model, optim, steps, steps_per_epoch)

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
        batch, loss = own_texts(batch), LOSSES[self.optim.loss]
        contrast = Contrast(
            self.model, batch, loss, scores=self.optim.scores, autocast=self.autocast
        )
        if not contrast.samples:
            return None
        self.optimizer.zero_grad()
        with distributed.own_random_numbers(self.model.device):
            loss = self._backward(batch, contrast)
        distributed.mean_gradients(self.model.parameters())
        distributed.mean_statistics(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.max_norm or math.inf)
        self._require_finite("gradient norm", norm.item(), batch)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        if self.optim.loss == "clip":
            self.model.clip.clamp_logit_scale()
        scale = self.model.clip.logit_scale.exp().item()
        return Step(loss, norm.item(), rate, scale, contrast.samples)

    def autocast(self) -> torch.autocast:
        """The context in which embeddings and scores are computed."""
        return autocast(self.model.device, self.optim.precision)

    def _backward(self, batch: Batch, contrast: Contrast) -> float:
        device, size = self.model.device, self.optim.chunk_size
        frames, ids = _present(batch)
        frames = Frames(*(part.to(device, non_blocking=True) for part in frames))
        ids = ids.to(device)
        # One process must not go another way than the others: they would wait for each other.
        if size is not None and distributed.agree(size < max(len(ids), len(frames.mask))):
            value = grad_cache.backward(
                self.model, frames, ids, contrast, chunk_size=size, autocast=self.autocast
            )
            loss = distributed.mean(value.item())
            self._require_finite("loss", loss, batch)
            return loss
        with self.autocast():
            text, video = self.model.embed_text(ids), self.model.embed_video(frames)
        value = contrast(text, video)
        loss = distributed.mean(value.item())
        self._require_finite("loss", loss, batch)
        value.backward()
        return loss

    def _require_finite(self, what: str, value: float, batch: Batch) -> None:
        if not math.isfinite(value):
            names = [name for part in distributed.gather_objects(batch.names) for name in part]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise distributed.alike(
                f"the {what} is {value} at step {self.steps_done + 1} with the samples "
                f"{', '.join(names[:NAMED])}{more}; lower the learning rates"
            )

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batch."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])


def _present(batch: Batch) -> tuple[Frames, Tensor]:
    """Frames and ids; a blank one of each instead of none, which a process without samples embeds.

    So its weights get gradients as the others' do; `Contrast` cuts the blank rows off.
    """
    pixels, mask = batch.frames
    if not len(pixels):
        pixels, mask = pixels.new_zeros(1, *pixels.shape[1:]), mask.new_ones(1, *mask.shape[1:])
    ids = batch.ids if len(batch.ids) else batch.ids.new_zeros(1, batch.ids.shape[1])
    return Frames(pixels, mask), ids
