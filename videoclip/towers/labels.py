"""Class names -> Embedding: one trained vector per class, for towers that know no text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoclip.errors import VocabularyError, nearest
from videoclip.towers.base import Language

NAMED = 8
"""How many classes an error message lists."""
UNNAMED = "class {}"
"""What a class is called whose file does not say its name."""


@dataclass(frozen=True, kw_only=True)
class Labels(Language):
    """No text tower: every class has a vector of its own, and no other text can be embedded."""

    classes: tuple[str, ...] = ()
    """The class names, as sentences spell them; training fills them in."""
    bias: bool = False
    """Whether every class has a number of its own that is added to its logits (scorer Dot)."""

    def tokenizer(self, words: int | None = None) -> "LabelTokenizer":
        """Class names -> ids."""
        return LabelTokenizer(self.classes)


class LabelTokenizer:
    """Class names -> ids (N, 1), their places in the list."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.places = {name: place for place, name in enumerate(classes)}

    def decode(self, ids: Sequence[int]) -> str:
        """The class name of an id."""
        return list(self.places)[ids[0]]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One name or N names -> int64 (N, 1).

        Raises VocabularyError for a text that is not the name of a class.
        """
        texts = [texts] if isinstance(texts, str) else texts
        unknown = [text for text in texts if text not in self.places]
        if unknown:
            then = nearest(unknown[0], list(self.places)[:NAMED])
            if UNNAMED.format(0) in self.places:
                then = (
                    f"its file calls them {UNNAMED.format(0)!r} and so on; name them by "
                    "videoclip convert FILE FOLDER --layout videoclip --source-classes NAMES.txt"
                )
            raise VocabularyError(
                f"{unknown[0]!r} is no class of this model, which has a vector for each of its "
                f"{len(self.places)} classes instead of a text tower; {then}"
            )
        return torch.tensor([[self.places[text]] for text in texts], dtype=torch.long)


class LabelTable(nn.Module):
    """One vector per class: with normalized features a cosine classifier, else a linear one."""

    def __init__(self, config: Labels, embedding: int) -> None:
        super().__init__()
        self.label_embedding = nn.Embedding(len(config.classes), embedding)
        nn.init.normal_(self.label_embedding.weight, std=embedding**-0.5)
        self.label_bias: nn.Parameter | None = None
        if config.bias:
            self.label_bias = nn.Parameter(torch.zeros(len(config.classes)))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Ids (N, 1) -> (N, D), not normalized; (N, D + 1) with the bias as the last number."""
        vectors = self.label_embedding(ids[:, 0])
        if self.label_bias is None:
            return vectors
        return torch.cat([vectors, self.label_bias[ids]], dim=1)
