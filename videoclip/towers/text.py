"""Token ids -> Embedding: CLIP's causal text transformer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoclip.errors import VocabularyError
from videoclip.layers import Activation, Blocks, LayerNorm, attention_heads
from videoclip.tokenizer import VOCABULARY, Tokenizer
from videoclip.towers.base import Language


@dataclass(frozen=True, kw_only=True)
class Text(Language):
    """A text transformer; the defaults are those of CLIP's ViT-B models."""

    width: int = 512
    """Channels of a token."""
    layers: int = 12
    """Residual blocks."""
    context_length: int = 77
    """The longest caption in tokens, its start and end included."""
    vocabulary: int = 49408
    """Number of token ids."""
    end_of_text: int | None = None
    """The id of the token at which the feature is read; None: the highest id of a caption, as in
    every OpenAI model, whose end of text is the last id of the vocabulary."""
    activation: Activation = "quick_gelu"
    """OpenAI's weights need quick_gelu; most of open_clip's need gelu."""
    attention_heads: int | None = None
    """Attention heads of a block; None: one for every 64 channels, as in every OpenAI model."""
    mlp_width: int | None = None
    """Hidden channels of a block's multi-layer perceptron; None: four times the width."""

    def tokenizer(self, words: int | None = None) -> Tokenizer:
        """CLIP's tokenizer for captions of up to `words` tokens, at most the context length.

        Raises VocabularyError where the text tower has another vocabulary than CLIP's.
        """
        if self.vocabulary != VOCABULARY:
            raise VocabularyError(
                f"these weights have a vocabulary of {self.vocabulary} tokens, CLIP's tokenizer "
                f"one of {VOCABULARY}; make the token ids with the tokenizer of these weights, in "
                "Python"
            )
        return Tokenizer(min(words or self.context_length, self.context_length))


class TextTransformer(nn.Module):
    """CLIP's text tower (Radford et al. 2021). OpenAI keeps its parameters beside `visual`."""

    def __init__(self, config: Text, embedding: int) -> None:
        super().__init__()
        width, layers = config.width, config.layers
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.end_of_text = config.end_of_text
        self.transformer = Blocks(
            width,
            layers,
            config.attention_heads or attention_heads(width),
            activation=config.activation,
            mlp_width=config.mlp_width,
        )
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encodes ids (N, L), padded after the end token, -> (N, D), not normalized.

        The feature is read at the first end token, which is the highest id (OpenAI's rule) unless
        the configuration names another. Attention is causal, so what comes after the batch's last
        end token changes nothing and is cut away: exact, and several times faster on short
        captions.

        Raises ValueError where a caption is longer than the context or never ends.
        """
        if ids.ndim != 2 or ids.shape[1] > len(self.positional_embedding):
            raise ValueError(
                f"token ids have shape {tuple(ids.shape)}; expected (N, L) with L up to "
                f"{len(self.positional_embedding)}, the context length of this text tower"
            )
        ends = self._ends(ids)
        ids = ids[:, : int(ends.max()) + 1]
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        return self.ln_final(self.transformer.read(x, ends)) @ self.text_projection

    def _ends(self, ids: Tensor) -> Tensor:
        """Where the captions (N, L) end, (N,)."""
        if self.end_of_text is None:
            return ids.argmax(dim=-1)
        found = ids == self.end_of_text
        if not bool(found.any(dim=-1).all()):
            endless = (~found.any(dim=-1)).nonzero().flatten().tolist()
            raise ValueError(
                f"captions {endless} hold no end of text, which has the id {self.end_of_text} "
                "in this text tower; use the tokenizer of these weights"
            )
        return found.int().argmax(dim=-1)
