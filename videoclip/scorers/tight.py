"""Text and frames go through one transformer together (CLIP4Clip's tightTransf)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from videoclip.layers import (
    Blocks,
    LayerNorm,
    attention_heads,
    positions,
    quick_gelu,
    start_positions,
)
from videoclip.scorers.base import Scorer
from videoclip.towers import CLIP
from videoclip.types import Embedding


@dataclass(frozen=True, kw_only=True)
class Tight(Scorer):
    """Tight fusion (Luo et al. 2021, CLIP4Clip, section 3.4)."""

    layers: int = 4
    """Residual blocks."""
    dropout: float = 0.1
    """On the tokens at the input, in training."""
    max_tokens: int = 77
    """Rows of the table of positions: one for the text, then the frames."""
    variant: Literal["fixed", "reference"] = "fixed"
    """reference: LayerNorm adds 1e-12 to the variance, as the released code does; fixed: 1e-5."""
    pairs_at_once: int = 4096
    """Pairs scored in one go where no gradient is needed; bounds the memory of an evaluation."""

    def build(self, width: int) -> nn.Module:
        """The scorer for an embedding of this width."""
        return TightScorer(self, width)


class TightScorer(nn.Module):
    """Scores a pair by what the text's token says after attending to the frames.

    As in the reference there is no temperature and nothing is normalized.
    """

    def __init__(self, config: Tight, width: int) -> None:
        super().__init__()
        eps = 1e-12 if config.variant == "reference" else 1e-5
        self.pairs_at_once = config.pairs_at_once
        self.positions = nn.Parameter(0.01 * torch.randn(config.max_tokens, width))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Blocks(width, config.layers, attention_heads(width), eps=eps)
        self.ln_pool = LayerNorm(width, eps=eps)
        self.dense = nn.Linear(width, width)
        self.similarity = nn.Linear(width, 1)
        for linear in (self.dense, self.similarity):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def start_from(self, clip: CLIP) -> None:
        """Starts from the text tower's first blocks and positions, as CLIP4Clip does."""
        self.transformer.start_from(clip.transformer)
        start_positions(self.positions, clip.positional_embedding)

    def forward(self, text: Embedding, video: Embedding, logit_scale: Tensor) -> Tensor:
        """Text vectors (Q, D) and frames (V, T, D) -> logits (Q, V)."""
        videos = len(video.vector)
        # With a gradient every pair is kept for the backward pass anyway.
        rows = len(text.vector) if torch.is_grad_enabled() else self.pairs_at_once // videos
        chunks = text.vector.split(max(1, rows))
        return torch.cat([self._score(chunk, video.tokens, video.mask) for chunk in chunks])

    def _score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Every text (Q, D) with every clip (V, T, D) under mask (V, T) -> (Q, V)."""
        queries, videos = len(text), len(frames)
        first = text[:, None, None].expand(-1, videos, -1, -1)
        tokens = torch.cat([first, frames.expand(queries, -1, -1, -1)], dim=2)
        seen = torch.cat([mask.new_ones(videos, 1), mask], dim=1).expand(queries, -1, -1)
        tokens = self.dropout(tokens + positions(self.positions, tokens.shape[2]))
        pooled = self.ln_pool(self.transformer(tokens, seen)[:, :, 0])
        return self.similarity(quick_gelu(self.dense(pooled))).squeeze(-1)
