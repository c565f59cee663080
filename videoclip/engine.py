"""Batch -> better weights: one step of training, in one process.

An engine owns the model while it is trained: optimizer, schedule, precision, chunks and what is
locked. Its state is what a run must keep to go on exactly where it was.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from videoclip import grad_cache
from videoclip.config import ConfigError
from videoclip.errors import VideoclipError
from videoclip.experiment import Lock, Optim
from videoclip.layers import Blocks
from videoclip.losses import LOSSES
from videoclip.model import VideoCLIP
from videoclip.towers import ViT
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


class Engine:
    """A model and what trains it in plain PyTorch; `step` is called once for every batch."""

    def __init__(self, model: VideoCLIP, optim: Optim, *, steps: int) -> None:
        """Raises ConfigError where the loss needs a bias that the model has not."""
        if optim.loss == "siglip" and model.clip.logit_bias is None:
            raise ConfigError(
                "the SigLIP loss needs a bias of the logits, which this model has not; set "
                "--model.logit-bias -10"
            )
        self.model, self.optim = model, optim
        for parameter in locked_parameters(model, optim.lock):
            parameter.requires_grad_(False)
        for blocks in (m for m in model.modules() if isinstance(m, Blocks)):
            blocks.checkpoint(optim.checkpointing == "blocks")
        # Radford et al. 2021, table 18: the ViTs have other constants than the ResNets.
        is_vit = isinstance(model.config.visual, ViT)
        betas, eps = ((0.9, 0.98), 1e-6) if is_vit else ((0.9, 0.999), 1e-8)
        groups = parameter_groups(model, optim)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, round(optim.warmup * steps), steps
        )

    @property
    def steps_done(self) -> int:
        """How many steps the weights have behind them."""
        return self.schedule.last_epoch

    def train(self) -> None:
        """Puts the model into training mode, and what is locked into evaluation mode."""
        self.model.train()
        for module in locked_modules(self.model, self.optim.lock):
            module.eval()

    def step(self, batch: Batch) -> Step:
        """One step.

        Raises VideoclipError, before any weight is changed, where loss or gradient is not finite;
        it names the step and the samples.
        """
        self.optimizer.zero_grad()
        loss = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.max_norm)
        self._require_finite("gradient norm", norm.item(), batch)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        if self.optim.loss == "clip":
            self.model.clip.clamp_logit_scale()
        return Step(loss, norm.item(), rate, self.model.clip.logit_scale.exp().item())

    def _backward(self, batch: Batch) -> float:
        device, optim = self.model.device, self.optim
        frames = Frames(*(part.to(device, non_blocking=True) for part in batch.frames))
        ids, matches = batch.ids.to(device), batch.matches.to(device)
        loss_of, autocast = LOSSES[optim.loss], partial(_autocast, device, optim.precision)
        if optim.chunk_size is not None and optim.chunk_size < len(ids):
            size = optim.chunk_size
            loss = grad_cache.backward(
                self.model, frames, ids, matches, loss_of, chunk_size=size, autocast=autocast
            ).item()
            self._require_finite("loss", loss, batch)
            return loss
        with autocast():
            scores = self.model(frames, ids)
        loss = loss_of(scores.to(self.model.clip.logit_scale.dtype), matches)
        self._require_finite("loss", loss.item(), batch)
        loss.backward()
        return loss.item()

    def _require_finite(self, what: str, value: float, batch: Batch) -> None:
        if not math.isfinite(value):
            names = ", ".join(batch.names[:NAMED])
            more = f" and {len(batch.names) - NAMED} more" if len(batch.names) > NAMED else ""
            raise VideoclipError(
                f"the {what} is {value} at step {self.steps_done + 1} with the samples {names}"
                f"{more}; lower the learning rates"
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


def locked_parameters(model: VideoCLIP, lock: Lock) -> list[nn.Parameter]:
    """The parameters of a locked tower, with its projection into the shared space.

    A tower that LiT locks (Zhai et al. 2022) gives the features that it gave before; so its
    projection is part of it. The temperature and the bias belong to neither tower.
    """
    clip = model.clip
    if lock == "image":
        return list(clip.visual.parameters())
    if lock == "text":
        temperature = {id(clip.logit_scale), id(clip.logit_bias)}
        temperature |= {id(parameter) for parameter in clip.visual.parameters()}
        return [p for p in clip.parameters() if id(p) not in temperature]
    return []


def locked_modules(model: VideoCLIP, lock: Lock) -> list[nn.Module]:
    """The modules of a locked tower. The text tower's stand beside `visual` in one module."""
    if lock == "image":
        return [model.clip.visual]
    if lock == "text":
        return [part for name, part in model.clip.named_children() if name != "visual"]
    return []


def parameter_groups(model: VideoCLIP, optim: Optim) -> list[dict[str, Any]]:
    """CLIP's weights and the new modules' at their own rates; decay on matrices only."""
    new = {id(parameter) for parameter in model.new_parameters()}
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = []
    for is_new, rate in ((False, optim.tower_rate), (True, optim.module_rate)):
        named = [(n, p) for n, p in trained if (id(p) in new) == is_new]
        decays = [p.ndim >= 2 and "position" not in n and "embedding" not in n for n, p in named]
        for decayed, decay in ((True, optim.weight_decay), (False, 0.0)):
            chosen = [p for (_, p), d in zip(named, decays, strict=True) if d == decayed]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
