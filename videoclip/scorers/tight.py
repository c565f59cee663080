"""Text and frames go through one transformer together (CLIP4Clip's tightTransf)."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from videoclip.layers import (
    Blocks,
    LayerNorm,
    ResidualBlock,
    attention_heads,
    linear,
    positions,
    quick_gelu,
    start_positions,
)
from videoclip.scorers.base import Scorer
from videoclip.towers import CLIP
from videoclip.types import Embedding

VIDEOS_AT_ONCE = 64
"""What is computed once per video is kept for so many."""


@dataclass(frozen=True, kw_only=True)
class Tight(Scorer):
    """Tight fusion (Luo et al. 2021, CLIP4Clip, section 3.4)."""

    layers: int = 4
    """Residual blocks."""
    dropout: float = 0.1
    """On the tokens at the input, in training; drawn per text and per video, where the reference
    draws anew for every pair."""
    max_tokens: int = 77
    """Rows of the table of positions: one for the text, then the frames."""
    variant: Literal["fixed", "reference"] = "fixed"
    """reference: LayerNorm adds 1e-12 to the variance, as the released code does; fixed: 1e-5."""
    pairs_at_once: int | None = None
    """Pairs scored in one go where no gradient is needed; bounds the memory of an evaluation.
    None: 256 on a processor, whose caches they fit, and 4096 on a GPU."""

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
        for layer in (self.dense, self.similarity):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def start_from(self, clip: CLIP) -> None:
        """Starts from the text tower's first blocks and positions, as CLIP4Clip does."""
        self.transformer.start_from(clip.transformer)
        start_positions(self.positions, clip.positional_embedding)

    def forward(self, text: Embedding, video: Embedding, logit_scale: Tensor) -> Tensor:
        """Text vectors (Q, D) and frames (V, T, D) -> logits (Q, V)."""
        if torch.is_grad_enabled():  # every pair is kept for the backward pass anyway
            return self._score(text.vector, video.tokens, video.mask)
        videos = min(len(video.vector), VIDEOS_AT_ONCE)
        at_once = self.pairs_at_once or (256 if text.vector.device.type == "cpu" else 4096)
        texts = max(1, at_once // videos)
        parts = zip(video.tokens.split(videos), video.mask.split(videos), strict=True)
        return torch.cat(
            [
                torch.cat([self._score(chunk, *part) for chunk in text.vector.split(texts)])
                for part in parts
            ],
            dim=1,
        )

    def _score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Every text (Q, D) with every clip (V, T, D) under mask (V, T) -> (Q, V)."""
        queries, (videos, length) = len(text), mask.shape
        table = positions(self.positions, 1 + length)
        first, *others = self.transformer.resblocks
        text = self.dropout(text + table[0])
        frames = self.dropout(frames + table[1:])
        tokens = meet(first, text, frames, mask)
        if not others:
            tokens = tokens[:, :, :1]
        tokens = tokens + first.think(tokens)
        seen = torch.cat([mask.new_ones(videos, 1), mask], dim=1).expand(queries, -1, -1)
        for block in others[:-1]:
            tokens = block(tokens, seen)
        if others:  # only the text's token is read
            tokens = others[-1](tokens, seen, queries=tokens[:, :, :1])
        pooled = self.ln_pool(tokens[:, :, 0])
        return self.similarity(quick_gelu(self.dense(pooled))).squeeze(-1)


def meet(block: ResidualBlock, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """The attention of the first block over every pair, its residual path included.

    Texts (Q, D) and frames (V, T, D) under mask (V, T) -> tokens (Q, V, 1 + T, D), the text first.
    Exact, and without a projection per pair: before the first attention a token knows nothing of
    its partner, so queries, keys and values are computed once per text and once per video, and so
    is what the frames of a clip say to each other. A pair only weighs that against its text, by
    the difference of the two logarithmic sums; the output projection is linear and is shared too.
    """
    attention = block.attn
    split = {"h": attention.heads, "p": 3}
    of_text = linear(block.ln_1(text), attention.in_proj_weight, attention.in_proj_bias)
    of_frames = linear(block.ln_1(frames), attention.in_proj_weight, attention.in_proj_bias)
    text_query, text_key, text_value = rearrange(of_text, "q (p h d) -> p q h d", **split)
    query, key, value = rearrange(of_frames, "v t (p h d) -> p v h t d", **split)
    scale = query.shape[-1] ** -0.5
    unseen = ~mask[:, None, None, :]
    out = rearrange(attention.out_proj.weight, "o (h d) -> h d o", h=attention.heads)

    # What frames say to each other, and how much of it is left beside the text.
    among = (scale * query @ key.transpose(-2, -1)).masked_fill(unseen, -torch.inf)
    to_text = scale * torch.einsum("vhtd,qhd->qvht", query, text_key)
    share = torch.sigmoid(to_text - among.logsumexp(-1))
    said = torch.einsum("vhtd,hdo->vtho", among.softmax(-1) @ value, out)
    said_by_text = torch.einsum("qhd,hdo->qho", text_value, out)
    new_frames = torch.einsum("qvht,vtho->qvto", 1 - share, said)
    new_frames = new_frames + torch.einsum("qvht,qho->qvto", share, said_by_text)

    # What the text reads in the frames and in itself.
    of_itself = scale * (text_query * text_key).sum(-1)
    to_frames = scale * torch.einsum("qhd,vhtd->qvht", text_query, key)
    to_frames = to_frames.masked_fill(unseen[:, :, 0], -torch.inf)
    own = of_itself[:, None, :, None].expand(-1, len(frames), -1, 1)
    weights = torch.cat([own, to_frames], dim=-1).softmax(-1)
    values = torch.einsum("vhtd,hdo->vhto", value, out)
    new_text = torch.einsum("qvht,vhto->qvo", weights[..., 1:], values)
    new_text = new_text + torch.einsum("qvh,qho->qvo", weights[..., 0], said_by_text)

    both = torch.cat([new_text[:, :, None], new_frames], dim=2) + attention.out_proj.bias
    pairs = (len(text), len(frames), -1, -1)
    before = [text[:, None, None].expand(*pairs), frames[None].expand(*pairs)]
    return both + torch.cat(before, dim=2)
