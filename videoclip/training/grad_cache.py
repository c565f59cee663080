"""A batch larger than memory: every gradient of the whole batch, a chunk of it at a time.

Contrast needs all embeddings at once, but not all activations (Gao et al. 2021, Scaling deep
contrastive learning batch size under memory limited setup): the batch is embedded chunk by chunk
without a graph; scores and loss of the whole batch give each embedding its gradient; then every
chunk is embedded again, with the same random numbers, and takes its gradients back to the weights.
Temperature, bias and scorer take part in the middle only, so their gradients are counted once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoclip.model import VideoCLIP
from videoclip.types import Embedding, Features, Frames, joined

T = TypeVar("T")


class Chunk(NamedTuple):
    """A part of one side of a batch: what it takes to embed it a second time."""

    part: Tensor | Frames | Features
    random: dict[str, Tensor]
    """The state of the random number generators before the first time."""
    cached: Embedding
    """What came out, cut from its graph; its tensors collect the gradients."""


def take_back(make: Callable[[], Tensor]) -> Tensor:
    """Computes a number and takes it backward, where anything that it was made of is trained."""
    value = make()
    if value.requires_grad:
        value.backward()
    return value


def backward(
    model: VideoCLIP,
    frames: Frames | Features,
    ids: Tensor,
    loss: Callable[[Embedding, Embedding], Tensor],
    *,
    chunk_size: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    descend: Callable[[Callable[[], Tensor]], Tensor] = take_back,
    inside: Callable[[Callable[[], T]], T] = lambda make: make(),
) -> Tensor:
    """Adds to the model's gradients those of the loss of a batch, and returns the loss.

    The loss is a function of the embeddings of all ids and all frames, such as `Contrast`; of each
    side `chunk_size` are embedded at once, in an `autocast` context of each phase. `descend` is
    what takes a number back to the weights, once for the loss and once for every chunk; `inside`
    is where the weights can be used without that.

    Batch normalization is the exception to "every gradient of the whole batch": in training it
    normalizes within a chunk, so a ResNet in chunks is not the ResNet of the whole batch. Its
    running averages are updated once for every chunk.
    """
    split = zip(*(tensor.split(chunk_size) for tensor in frames[:2]), strict=True)
    sides = [
        (model.embed_text, ids.split(chunk_size)),
        (model.embed_video, [type(frames)(*part) for part in split]),
    ]
    # A context for each phase: autocast keeps casts of the weights, here without their gradients.
    with autocast(), torch.no_grad(), _unchanged_averages(model):
        chunks = inside(
            lambda: [[_embed(embed, part, ids.device) for part in parts] for embed, parts in sides]
        )
    for chunk in chain.from_iterable(chunks):
        chunk.cached.vector.requires_grad_()
        chunk.cached.tokens.requires_grad_()
    text, video = (joined([chunk.cached for chunk in side]) for side in chunks)
    value = descend(lambda: loss(text, video))

    with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
        for (embed, _), side in zip(sides, chunks, strict=True):
            for chunk in side:
                _replay(chunk.random, ids.device)
                if not descend(partial(_pull, embed, chunk, autocast)).requires_grad:
                    break  # a locked tower: no chunk of this side has gradients to take back
    return value.detach()


def _embed(
    embed: Callable[[Tensor | Frames | Features], Embedding],
    part: Tensor | Frames | Features,
    device: torch.device,
) -> Chunk:
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    vector, tokens, mask = embed(part)
    return Chunk(part, random, Embedding(vector.detach(), tokens.detach(), mask))


def _replay(random: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], device)


def _pull(
    embed: Callable[[Tensor | Frames | Features], Embedding],
    chunk: Chunk,
    autocast: Callable[[], AbstractContextManager],
) -> Tensor:
    """A number whose gradient by the chunk's embedding is the one that the first one collected.

    A number, because that is what every engine can take backward; the gradient of an embedding that
    the loss did not read is zero.
    """
    with autocast():
        again = embed(chunk.part)
    pairs = [(n, o) for n, o in zip(again[:2], chunk.cached[:2], strict=True) if o.grad is not None]
    terms = [(new * old.grad).sum() for new, old in pairs]
    return sum(terms[1:], terms[0])


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
