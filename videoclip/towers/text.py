"""Token ids -> Embedding: CLIP's causal text transformer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoclip.layers import Activation, Blocks, LayerNorm, attention_heads


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text transformer; the defaults are those of CLIP's ViT-B models."""

    width: int = 512
    """Channels of a token."""
    layers: int = 12
    """Residual blocks."""
    context_length: int = 77
    """The longest caption in tokens, its start and end included."""
    vocabulary: int = 49408
    """Number of token ids; the last is the end of text."""
    activation: Activation = "quick_gelu"
    """OpenAI's weights need quick_gelu; most of open_clip's need gelu."""


class TextTransformer(nn.Module):
    """CLIP's text tower (Radford et al. 2021). OpenAI keeps its parameters beside `visual`."""

    def __init__(self, config: Text, embedding: int) -> None:
        super().__init__()
        width, layers = config.width, config.layers
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = Blocks(
            width, layers, attention_heads(width), activation=config.activation
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

        The feature is read at the end token, the highest id (OpenAI's rule). Attention is causal,
        so what comes after the batch's last end token changes nothing and is cut away: exact, and
        several times faster on short captions.

        Raises ValueError where a caption is longer than the context.
        """
        if ids.ndim != 2 or ids.shape[1] > len(self.positional_embedding):
            raise ValueError(
                f"token ids have shape {tuple(ids.shape)}; expected (N, L) with L up to "
                f"{len(self.positional_embedding)}, the context length of this text tower"
            )
        ends = ids.argmax(dim=-1)
        ids = ids[:, : int(ends.max()) + 1]
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.transformer(x, causal=True)
        x = x[torch.arange(len(x), device=x.device), ends]
        return self.ln_final(x) @ self.text_projection
