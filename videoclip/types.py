"""The four records that flow from a file to a number, and the letters that name their shapes.

    file -decode-> Frames -tower-> Features -head-> Embedding -.
                                                               +-scorer-> scores -loss-> number
    caption -tokenizer-> ids -text tower-> Embedding ----------'              '-metrics-> table

Shape letters, used in every docstring: B batch, T frames, N tokens of one frame (the class token
first, then the patches), W tower width, D embedding, L tokens of a caption or of a clip, Q texts
(queries), V videos, H and W beside a 3 also height and width of a picture.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Frames(NamedTuple):
    """What a tower sees: clips of ragged length, padded at the end."""

    pixels: Tensor
    """(B, T, 3, H, W): uint8 as decoded, or float that is already normalized."""
    mask: Tensor
    """(B, T) bool: True where a frame is real."""


class Features(NamedTuple):
    """What a head sees: one vector per frame, in the space that texts share."""

    frames: Tensor
    """(B, T, D), not normalized."""
    mask: Tensor
    """(B, T) bool."""
    layers: tuple[Tensor, ...] = ()
    """The tokens after each of the last blocks, (B, T, N, W); only for heads that ask for them."""


class Embedding(NamedTuple):
    """What a scorer sees, the same for a text and for a video."""

    vector: Tensor
    """(B, D), not normalized."""
    tokens: Tensor
    """(B, L, D): the frames after the head, or the one feature of a text."""
    mask: Tensor
    """(B, L) bool."""


class Keys(NamedTuple):
    """What matches are made of: a text describes a clip where their keys are equal.

    Of a batch that several processes share each knows its own texts and clips only; they gather
    the keys and make the matches of the whole batch out of them.
    """

    text: Tensor
    """(Q,) int64."""
    clip: Tensor
    """(B, K) int64: one key of a clip, or several where clips were mixed."""
    weight: Tensor
    """(B, K) float: how much of each is in the clip; they add up to 1."""
    shared: bool = False
    """Whether every process has the same texts, such as all classes, instead of its own ones."""

    @classmethod
    def of(cls, texts: Sequence[str], clips: Sequence[str], *, shared: bool = False) -> "Keys":
        """The keys of Q texts and B clips that are told apart by these strings."""
        clip = _numbers(clips)[:, None]
        return cls(_numbers(texts), clip, torch.ones(clip.shape), shared)

    def matches(self) -> Tensor:
        """(Q, B): how much of a clip a text describes; bool where that is all or nothing."""
        equal = self.text[:, None, None] == self.clip
        return equal[..., 0] if equal.shape[-1] == 1 else (equal * self.weight).sum(-1)


def _numbers(texts: Sequence[str]) -> Tensor:
    """Strings as numbers that every process finds alike, which Python's own hash does not."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    numbers = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.int64)


class Bad(NamedTuple):
    """A sample of a batch that could not be read."""

    name: str
    """Its video id."""
    reason: str
    """What is wrong with it."""
    instead: str | None = None
    """The sample that was read in its place; None: there was none."""


class Batch(NamedTuple):
    """What the training loop sees: of a batch that processes share, the part of one of them."""

    frames: Frames | Features
    """The clips; of a locked vision tower what it makes of them may be there already."""
    ids: Tensor
    """(Q, L) token ids: caption i belongs to clip i, or a sentence for every class. Of a locked
    text tower it may be (Q, D) float: what the tower makes of them."""
    matches: Tensor
    """(Q, B) bool: True where text i describes clip j; float where clips were mixed."""
    names: tuple[str, ...]
    """The video ids, so that a bad step can name them."""
    keys: Keys | None = None
    """What the matches are made of; needed where processes share a batch."""
    bad: tuple[Bad, ...] = ()
    """The samples that could not be read. `names` has those that stand in the batch."""


def on_device(clips: Frames | Features, device: torch.device) -> Frames | Features:
    """The same clips on a device, without the layers of features."""
    return type(clips)(*(part.to(device, non_blocking=True) for part in clips[:2]))


def joined(parts: Sequence[Embedding]) -> Embedding:
    """Several embeddings as one; where their numbers of tokens differ the short ones are padded."""
    longest = max(part.tokens.shape[1] for part in parts)
    return Embedding(
        torch.cat([part.vector for part in parts]),
        torch.cat([padded(part.tokens, longest) for part in parts]),
        torch.cat([padded(part.mask, longest) for part in parts]),
    )


def padded(x: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), with zeros at the end."""
    return torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], dim=1)
