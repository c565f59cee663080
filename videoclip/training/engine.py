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
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.errors import OutOfMemoryError, VideoclipError
from videoclip.experiment import Optim
from videoclip.model import VideoCLIP
from videoclip.training import grad_cache
from videoclip.training.average import Average
from videoclip.training.blocks import set_blocks
from videoclip.training.contrast import Contrast, own_texts
from videoclip.training.faults import LossScale, averages, enough_memory, put_back
from videoclip.training.losses import LOSSES
from videoclip.training.optim import autocast, freeze, locked_modules, trainers
from videoclip.types import Batch, Embedding, Features, Frames, on_device

T = TypeVar("T")


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
        self.scale = LossScale() if optim.precision == "fp16" else None

    @property
    def steps_done(self) -> int:
        """How many steps lie behind, those that were refused included."""
        return self.schedule.last_epoch

    def train(self) -> None:
        """Puts the model into training mode, and what is locked into evaluation mode."""
        self.model.train()
        for module in locked_modules(self.model, self.optim):
            module.eval()

    def step(self, batch: Batch) -> Step | None:
        """One step; None, and nothing changed, where no process has a sample.

        Where processes share a batch all must call it, those without a sample too. Where loss or
        gradient is not finite, in any of them, all leave weights, moments and running averages as
        they were, to the bit, and the step says why. The learning rates go on to the next step.

        Raises OutOfMemoryError where memory runs out; nothing is changed then.
        """
        batch, kind = own_texts(batch), LOSSES[self.optim.loss]
        contrast = Contrast(
            self.model, batch, kind, scores=self.optim.scores, autocast=self.autocast
        )
        if not contrast.samples:
            return None
        rate, kept, fault = self.optimizer.param_groups[0]["lr"], averages(self.model), "unfinished"
        try:
            with enough_memory(partial(self._too_large, batch)):
                with distributed.own_random_numbers(self.model.device):
                    loss = self._backward(batch, contrast)
                norm = self._update()
            fault = self._fault(loss, norm)
        except OutOfMemoryError:
            self._let_go()
            raise
        finally:
            if fault:
                put_back(kept)
        if not fault:
            distributed.mean_statistics(self.model)
            self._clamp()
            if self.average:
                self.average.update()
        if self.scale:
            self.scale = self.scale.after(fault)
        self._go_to(self.steps_done + 1)
        return Step(loss, norm, rate, math.exp(self._temperature()), contrast.samples, fault)

    def _let_go(self) -> None:
        """Frees what a step that was broken off has left."""
        self.optimizer.zero_grad()

    def _fault(self, loss: float, norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                scaled = f" at a loss scale of {self.scale.factor:.0f}" if self.scale else ""
                return f"the {name} is {value}{scaled if name != 'loss' else ''}"
        return None

    def _too_large(self, batch: Batch) -> OutOfMemoryError:
        """The error that says what did not fit into memory, and what would need less."""
        optim, samples, frames = self.optim, len(batch.names), batch.frames[1].shape[1]
        size = optim.chunk_size or max(samples, len(batch.ids))
        smaller = f"chunk_size {size // 2}" if size > 1 else "fewer frames or smaller pictures"
        if optim.checkpointing == "off":
            smaller += " or checkpointing blocks, or both"
        return OutOfMemoryError(
            f"memory ran out at step {self.steps_done + 1}, at {samples} samples of {frames} "
            f"frames in this process (chunk_size {optim.chunk_size}, precision {optim.precision}, "
            f"checkpointing {optim.checkpointing}); no weight was changed. Go on with {smaller}, "
            "which leave the result as it is"
        )

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
            # A loss that is not finite shall have no finite gradient either, in no process.
            return value * (self._factor if math.isfinite(loss) else math.nan)

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

    def _update(self) -> float:
        """Changes the weights by the mean of all processes' gradients; the norm that it had.

        Where that is not finite nothing is changed.
        """
        norm = self._norm()
        if math.isfinite(norm):
            with enough_memory(halfway):
                self.optimizer.step()
        return norm

    def _norm(self) -> float:
        """How large the gradients of the whole batch are; they are scaled down to `max_norm`."""
        distributed.mean_gradients(self.model.parameters())
        if self._factor != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / self._factor)
        largest = self.optim.max_norm or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()

    @property
    def _factor(self) -> float:
        """What the loss of this step is multiplied by before it is taken back."""
        return self.scale.factor if self.scale else 1.0

    def _clamp(self) -> None:
        """Keeps the temperature within its bound, where the loss asks for that."""
        if self.optim.loss == "clip":
            self.model.clip.clamp_logit_scale()

    def _temperature(self) -> float:
        """The logarithm of what cosines are multiplied by."""
        return self.model.clip.logit_scale.item()

    def _go_to(self, step: int) -> None:
        """Sets the learning rates for the step that so many steps lie behind."""
        self.schedule.last_epoch = step
        groups, shares = self.optimizer.param_groups, self.schedule.lr_lambdas
        for group, rate, share in zip(groups, self.schedule.base_lrs, shares, strict=True):
            group["lr"] = rate * share(step)

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

    def state(self) -> dict[str, Any] | None:
        """All that the next step depends on besides its batch, on the CPU, for the main process.

        All processes must ask for it together. It holds whole weights and moments by the names of
        the weights, and nothing about the engine or the number of processes: `restore` of any
        engine goes on from it.
        """
        main = distributed.main_process()
        weights = {name: _copied(x) if main else None for name, x in self._whole_weights()}
        moments = {
            name: {key: _copied(x) if main else None for key, x in values.items()}
            for name, values in self._whole_moments()
        }
        averaged = self.average.weights() if self.average else {}
        if not main:
            return None
        return {
            "model": weights,
            "optimizer": moments,
            "steps": self.steps_done,
            "ema": {name: _copied(x) for name, x in averaged.items()},
            "scale": tuple(self.scale) if self.scale else None,
            "random": random_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state, the same in all processes."""
        self._set_weights(state["model"])
        self._set_moments(state["optimizer"])
        if self.average:
            self.average.restore(state["ema"])
        self._go_to(state["steps"])
        if self.scale and state["scale"]:
            self.scale = LossScale(*state["scale"])
        set_random_state(state["random"])

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight and buffer by its name; to be copied at once."""
        yield from self.model.state_dict().items()

    def _whole_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """What the optimizer keeps about every weight that it has changed; to be copied at once."""
        for name, parameter in self.model.named_parameters():
            if kept := self.optimizer.state.get(parameter):
                yield name, {key: value for key, value in kept.items() if torch.is_tensor(value)}

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def _set_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = {
                    key: (x if key == "step" else x.view_as(parameter)).to(
                        parameter.device, copy=True
                    )
                    for key, x in moments[name].items()
                }


def _copied(x: Tensor) -> Tensor:
    return x.detach().to("cpu", copy=True)


def halfway() -> VideoclipError:
    """The error for memory that runs out too late to leave everything as it was."""
    return VideoclipError(
        "memory ran out while the weights were changed; go on from the last saved state, with a "
        "smaller chunk_size"
    )


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators of random numbers: of the processor, and of this GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Goes back to what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


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
