"""Text and frames go through one transformer together (CLIP4Clip's tightTransf).

The scores are the reference's; what it repeats for every pair is not. Before the first attention a
token knows nothing of its partner, so there queries, keys and values are computed once per text and
once per video, and so is what frames say to each other. Of the last block only the text's token is
computed, for no other is read. Clips meet texts in tiles whose size is bounded by the memory, and
frames behind the last real one of a tile are left out.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoclip.layers import (
    Blocks,
    LayerNorm,
    ResidualBlock,
    attention_heads,
    linear,
    positions,
    quick_gelu,
    start_linears,
    start_positions,
)
from videoclip.scorers.base import Scorer
from videoclip.towers import CLIP
from videoclip.types import Embedding

CACHE = 40 * 2**20
"""Bytes of a tile on a processor: more than its caches hold takes longer, measured on an EPYC."""
SHARE = 8
"""A tile takes one part in so many of a GPU's memory; with gradients, twice that."""
GRAPH = 4 * 2**30
"""Bytes that a tile may keep for its gradients on a processor."""
HELD = 16
"""Numbers per channel of a token that a block holds at once; it keeps fewer for its gradients."""


@dataclass(frozen=True, kw_only=True)
class Tight(Scorer):
    """Tight fusion (Luo et al. 2021, CLIP4Clip, section 3.4)."""

    layers: int = 4
    """Residual blocks."""
    attention_heads: int | None = None
    """Attention heads of a block; None: one for every 64 channels. CLIP4Clip's are eight, of 512
    channels."""
    dropout: float = 0.1
    """On the tokens at the input, in training; drawn per text and per video, where the reference
    draws anew for every pair."""
    max_tokens: int = 77
    """Rows of the table of positions: one for the text, then the frames. A clip with more frames
    stretches its part linearly over them, a shorter one reads the beginning, as the reference."""
    variant: Literal["fixed", "reference"] = "fixed"
    """reference: LayerNorm adds 1e-12 to the variance, as the released code does; fixed: 1e-5."""
    pairs_at_once: int | None = None
    """Pairs scored in one go. None: what a processor's caches or an eighth of a GPU's memory hold.
    With gradients: what 4 GiB or a quarter of a GPU's memory keep; if there are more pairs, the
    activations of each tile are computed again for its gradients instead of being kept."""

    def __post_init__(self) -> None:
        """Raises ValueError where a text could not meet a frame."""
        if self.layers < 1 or self.max_tokens < 2:
            raise ValueError(
                f"layers is {self.layers} and max_tokens {self.max_tokens}; tight fusion needs at "
                "least 1 block, and 2 tokens: a text and a frame"
            )

    def build(self, width: int) -> nn.Module:
        """The scorer for an embedding of this width."""
        return TightScorer(self, width)


class Texts(NamedTuple):
    """What the first block makes of Q texts before they meet a video; h heads of d channels."""

    tokens: Tensor
    """(Q, D), what comes into the block."""
    query: Tensor
    """(Q, h, d), scaled."""
    key: Tensor
    """(Q, h, d)."""
    said: Tensor
    """(Q, h, D): the values, through the output projection, which is linear and can be shared."""


class Videos(NamedTuple):
    """What the first block makes of V clips before they meet a text."""

    tokens: Tensor
    """(V, T, D), what comes into the block."""
    mask: Tensor
    """(V, T) bool."""
    query: Tensor
    """(V, h, T, d), scaled."""
    key: Tensor
    """(V, h, T, d)."""
    weight: Tensor
    """(V, h, T): the logarithm of the sum over a frame's attention to the clip's frames."""
    heard: Tensor
    """(V, T, h, D): what a frame reads in them, through the output projection."""
    said: Tensor
    """(V, h, T, D): what a text reads in them, likewise."""


class TightScorer(nn.Module):
    """Scores a pair by what the text's token says after attending to the frames.

    As in the reference there is no temperature and nothing is normalized.
    """

    def __init__(self, config: Tight, width: int) -> None:
        super().__init__()
        eps = 1e-12 if config.variant == "reference" else 1e-5
        heads = config.attention_heads or attention_heads(width)
        self.pairs_at_once = config.pairs_at_once
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_tokens, width))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Blocks(width, config.layers, heads, eps=eps)
        self.ln_pool = LayerNorm(width, eps=eps)
        self.dense = nn.Linear(width, width)
        self.similarity = nn.Linear(width, 1)
        start_linears(self)

    def start_from(self, clip: CLIP) -> None:
        """Starts from the text tower's first blocks and positions, as CLIP4Clip does."""
        self.transformer.start_from(clip.transformer)
        start_positions(self.positions, clip.positional_embedding)

    def forward(self, text: Embedding, video: Embedding, logit_scale: Tensor) -> Tensor:
        """Text vectors (Q, D) and frames (V, T, D) -> logits (Q, V), never in autocast's type."""
        block, mask = self.transformer.resblocks[0], video.mask
        texts = self.dropout(text.vector + self.positions[0])
        frames = self.dropout(video.tokens + positions(self.positions[1:], mask))
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        order = lengths.argsort(stable=True)  # so that clips of a tile have about one length
        rows, columns, score = self._tiles(texts, mask)
        parts = []
        for part in order.split(columns):
            longest = int(lengths[part].amax())
            videos = videos_of(block, frames[part, :longest], mask[part, :longest])
            parts.append(torch.cat([score(chunk, videos) for chunk in texts.split(rows)]))
        return torch.cat(parts, dim=1)[:, order.argsort()]

    def _tiles(self, texts: Tensor, mask: Tensor) -> tuple[int, int, Callable[..., Tensor]]:
        """How many texts (Q, D) and clips of mask (V, T) meet at once, and what scores them."""
        pair = HELD * (1 + mask.shape[1]) * texts.shape[1] * texts.element_size()
        graph = torch.is_grad_enabled()
        if graph:
            pair *= len(self.transformer.resblocks)
        if texts.is_cuda:
            memory = torch.cuda.get_device_properties(texts.device).total_memory
            room = memory // (SHARE // 2 if graph else SHARE)
        else:
            room = GRAPH if graph else CACHE
        pairs = self.pairs_at_once or max(1, room // pair)
        if len(texts) * len(mask) <= pairs:
            return max(1, len(texts)), len(mask), self._score
        columns = min(len(mask), max(1, round(pairs**0.5)))
        score = self._score
        if graph:
            score = functools.partial(checkpoint, self._score, use_reentrant=False)
        return max(1, pairs // columns), columns, score

    def _score(self, texts: Tensor, videos: Videos) -> Tensor:
        """Every text (Q, D) with every one of V clips -> (Q, V)."""
        first, *others = self.transformer.resblocks
        tokens = meet(texts_of(first, texts), videos, first.attn.out_proj.bias)
        if not others:
            tokens = tokens[:, :, :1]
        tokens = tokens + first.think(tokens)
        seen = torch.cat([videos.mask.new_ones(len(videos.mask), 1), videos.mask], dim=1)
        seen = seen.expand(len(texts), -1, -1)
        for block in others[:-1]:
            tokens = block(tokens, seen)
        if others:  # only the text's token is read
            tokens = others[-1](tokens, seen, queries=tokens[:, :, :1])
        # Scores of eight bits would tie: the last steps, one token a pair, are never rounded.
        with torch.autocast(tokens.device.type, enabled=False):
            pooled = self.ln_pool(tokens[:, :, 0].to(self.dense.weight.dtype))
            return self.similarity(quick_gelu(self.dense(pooled))).squeeze(-1)


def texts_of(block: ResidualBlock, tokens: Tensor) -> Texts:
    """The texts' side of the first block: tokens (Q, D)."""
    attention = block.attn
    projected = linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = rearrange(projected, "q (p h d) -> p q h d", p=3, h=attention.heads)
    said = torch.einsum("qhd,hdo->qho", value, output_by_head(block))
    return Texts(tokens, query * query.shape[-1] ** -0.5, key, said)


def videos_of(block: ResidualBlock, tokens: Tensor, mask: Tensor) -> Videos:
    """The videos' side of the first block: tokens (V, T, D) under mask (V, T)."""
    attention, output = block.attn, output_by_head(block)
    projected = linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = rearrange(projected, "v t (p h d) -> p v h t d", p=3, h=attention.heads)
    query = query * query.shape[-1] ** -0.5
    among = query @ key.transpose(-2, -1)
    among = among.masked_fill(~mask[:, None, None], torch.finfo(among.dtype).min)
    heard = torch.einsum("vhtd,hdo->vtho", among.softmax(-1) @ value, output)
    said = torch.einsum("vhtd,hdo->vhto", value, output)
    return Videos(tokens, mask, query, key, among.logsumexp(-1), heard, said)


def output_by_head(block: ResidualBlock) -> Tensor:
    """The output projection as (h, d, D)."""
    return rearrange(block.attn.out_proj.weight, "o (h d) -> h d o", h=block.attn.heads)


def meet(texts: Texts, videos: Videos, bias: Tensor) -> Tensor:
    """The first attention of every pair, its residual path included, -> (Q, V, 1 + T, D).

    The text's token comes first. A frame weighs what it heard from its clip against the text by the
    difference of two logarithmic sums; the result is the attention over all of them. `bias` (D,) is
    that of the output projection.
    """
    to_text = torch.einsum("vhtd,qhd->qvht", videos.query, texts.key)
    share = torch.sigmoid(to_text - videos.weight)
    frames = torch.einsum("qvht,vtho->qvto", 1 - share, videos.heard)
    frames = frames + torch.einsum("qvht,qho->qvto", share, texts.said)
    frames = frames + (videos.tokens + bias)

    to_itself = (texts.query * texts.key).sum(-1)[:, None, :, None]
    to_frames = torch.einsum("qhd,vhtd->qvht", texts.query, videos.key)
    to_frames = to_frames.masked_fill(~videos.mask[:, None], -torch.inf)
    to_itself = to_itself.expand(-1, len(videos.mask), -1, -1)
    weights = torch.cat([to_itself, to_frames], dim=-1).softmax(-1)
    text = torch.einsum("qvht,vhto->qvo", weights[..., 1:], videos.said)
    text = text + torch.einsum("qvh,qho->qvo", weights[..., 0], texts.said)
    text = text + (texts.tokens + bias)[:, None]
    return torch.cat([text[:, :, None], frames], dim=2)
