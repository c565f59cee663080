"""A batch larger than memory: every gradient of the whole batch, a chunk of it at a time.

Contrast needs all embeddings at once, but not all activations (Gao et al. 2021, Scaling deep
contrastive learning batch size under memory limited setup): the batch is embedded chunk by chunk
without a graph; scores and loss of the whole batch give each embedding its gradient; then every
chunk is embedded again, with the same random numbers, and takes its gradients back to the weights.
Temperature, bias and scorer take part in the middle only, so their gradients are counted once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoclip.model import VideoCLIP
from videoclip.types import Embedding, Frames, joined


class Chunk(NamedTuple):
    """A part of one side of a batch: what it takes to embed it a second time."""

    part: Tensor | Frames
    random: dict[str, Tensor]
    """The state of the random number generators before the first time."""
    cached: Embedding
    """What came out, cut from its graph; its tensors collect the gradients."""


def backward(
    model: VideoCLIP,
    frames: Frames,
    ids: Tensor,
    loss: Callable[[Embedding, Embedding], Tensor],
    *,
    chunk_size: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Adds to the model's gradients those of the loss of a batch, and returns the loss.

    The loss is a function of the embeddings of all ids and all frames, such as `Contrast`; of each
    side `chunk_size` are embedded at once, in an `autocast` context of each phase.

    Batch normalization is the exception to "every gradient of the whole batch": in training it
    normalizes within a chunk, so a ResNet in chunks is not the ResNet of the whole batch. Its
    running averages are updated once for every chunk.
    """
    split = zip(*(tensor.split(chunk_size) for tensor in frames), strict=True)
    sides = [
        (model.embed_text, ids.split(chunk_size)),
        (model.embed_video, [Frames(*part) for part in split]),
    ]
    # A context for each phase: autocast keeps casts of the weights, here without their gradients.
    with autocast(), torch.no_grad(), _unchanged_averages(model):
        chunks = [[_embed(embed, part, ids.device) for part in parts] for embed, parts in sides]
    text, video = (joined([chunk.cached for chunk in side]) for side in chunks)
    value = loss(text, video)
    value.backward()

    with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
        for (embed, _), side in zip(sides, chunks, strict=True):
            for chunk in side:
                _replay(chunk.random, ids.device)
                with autocast():
                    again = embed(chunk.part)
                pull = _pull(again, chunk.cached)
                if pull is None:
                    break  # a locked tower: no chunk of this side has gradients to take back
                pull.backward()
    return value.detach()


def _embed(
    embed: Callable[[Tensor | Frames], Embedding], part: Tensor | Frames, device: torch.device
) -> Chunk:
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    vector, tokens, mask = embed(part)
    cached = Embedding(vector.detach().requires_grad_(), tokens.detach().requires_grad_(), mask)
    return Chunk(part, random, cached)


def _replay(random: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], device)


def _pull(again: Embedding, cached: Embedding) -> Tensor | None:
    """A number whose gradient by the new embedding is the one that the cached one collected.

    A number, because that is what every engine can take backward. None where nothing is trained.
    """
    pairs = zip(again[:2], cached[:2], strict=True)
    terms = [
        (new * old.grad).sum() for new, old in pairs if new.requires_grad and old.grad is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


@contextmanager
def _unchanged_averages(model: nn.Module) -> Iterator[None]:
    """Batch normalization normalizes as in training but leaves its running averages alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracks in zip(norms, before, strict=True):
            norm.track_running_stats = tracks
