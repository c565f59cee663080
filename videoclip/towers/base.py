"""What every vision tower is, pixels -> Features, and every text side, texts -> Embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Visual:
    """Settings of a vision tower. The module that `build` returns turns frames into Features:

        forward(pixels (B, T, 3, H, W), mask (B, T), mixers, keep_layers) -> Features

    Its `widths` say how many channels come into each block, around which a mixer stands.
    """

    pretrained: ClassVar[bool] = True
    """Whether a pretrained CLIP's weights belong into it."""

    image_size: int = 224
    """Pixels a side of a frame."""

    def build(self, embedding: int) -> nn.Module:
        """The tower for an embedding of this width, with random weights."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Language:
    """Settings of what reads texts: CLIP's text tower, or a table of classes."""

    def tokenizer(self, words: int | None = None) -> Callable[[str | Sequence[str]], Tensor]:
        """Texts -> ids (N, L), L up to `words` tokens.

        Raises VocabularyError where texts cannot be made into the ids that the weights know.
        """
        raise NotImplementedError
