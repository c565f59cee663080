"""The four records that flow from a file to a number, and the letters that name their shapes.

    file -decode-> Frames -tower-> Features -head-> Embedding -.
                                                               +-scorer-> scores -loss-> number
    caption -tokenizer-> ids -text tower-> Embedding ----------'              '-metrics-> table

Shape letters, used in every docstring: B batch, T frames, N tokens of one frame (the class token
first, then the patches), W tower width, D embedding, L tokens of a caption or of a clip, Q texts
(queries), V videos, H and W beside a 3 also height and width of a picture.
"""

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


class Batch(NamedTuple):
    """What the training loop sees."""

    frames: Frames
    ids: Tensor
    """(B, L) token ids, caption i belongs to clip i."""
    matches: Tensor
    """(B, B) bool: True where text i describes clip j."""
    names: tuple[str, ...]
    """The video ids, so that a bad step can name them."""


def joined(parts: Sequence[Embedding]) -> Embedding:
    """Several embeddings as one; where their numbers of tokens differ the short ones are padded."""
    longest = max(part.tokens.shape[1] for part in parts)

    def padded(x: Tensor) -> Tensor:
        missing = longest - x.shape[1]
        return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1)

    return Embedding(
        torch.cat([part.vector for part in parts]),
        torch.cat([padded(part.tokens) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
    )
