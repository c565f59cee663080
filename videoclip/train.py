"""The training loop, the same for images with captions (one frame) and for clips."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from videoclip.data import FrameStore, batches, number_of_batches
from videoclip.errors import VideoclipError
from videoclip.experiment import Data, Optim
from videoclip.losses import contrastive
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tokenizer import Tokenizer
from videoclip.types import Frames


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
    """Trains the model in place and leaves it with the weights of the best validated epoch.

    Raises VideoclipError, naming step and clips, where the loss is not finite.
    """
    steps = number_of_batches(len(clips), optim.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), betas=(0.9, 0.98), eps=1e-6, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(
        optimizer, round(optim.warmup * steps * optim.epochs), steps * optim.epochs
    )
    history = [Epoch(0, None, validate(model))]
    best, best_weights = history[0], copy.deepcopy(model.state_dict())
    bar = tqdm(total=steps * optim.epochs, desc=label, unit="step")
    for epoch in range(1, optim.epochs + 1):
        model.train()
        total = 0.0
        for batch in batches(
            clips, store, tokenizer,
            batch_size=optim.batch_size, takes=data.takes, crop=data.crop, seed=seed, epoch=epoch,
        ):  # fmt: skip
            frames = Frames(*(part.to(model.device) for part in batch.frames))
            scores = model(frames, batch.ids.to(model.device))
            loss = contrastive(scores, batch.matches.to(model.device))
            if not loss.isfinite():
                raise VideoclipError(
                    f"{label}: the loss is {loss.item()} in epoch {epoch} with the clips "
                    f"{', '.join(batch.names[:10])}; lower the learning rates"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), optim.max_norm)
            optimizer.step()
            schedule.step()
            model.clip.clamp_logit_scale()
            total += loss.item()
            bar.update()
        model.eval()
        history.append(Epoch(epoch, total / steps, validate(model)))
        if history[-1].validation >= best.validation:
            best, best_weights = history[-1], copy.deepcopy(model.state_dict())
        bar.set_postfix_str(f"loss {total / steps:.3f}, validation {history[-1].validation:.1f}")
    bar.close()
    model.load_state_dict(best_weights)
    model.eval()
    return history


def parameter_groups(model: VideoCLIP, optim: Optim) -> list[dict]:
    """CLIP's weights and the new modules' at their own rates; decay on matrices only."""
    new = {id(parameter) for parameter in model.new_parameters()}
    groups = []
    for is_new, rate in ((False, optim.tower_rate), (True, optim.module_rate)):
        named = [(n, p) for n, p in model.named_parameters() if (id(p) in new) == is_new]
        decays = [p.ndim >= 2 and "position" not in n and "embedding" not in n for n, p in named]
        for decayed, decay in ((True, optim.weight_decay), (False, 0.0)):
            chosen = [p for (_, p), d in zip(named, decays, strict=True) if d == decayed]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups
