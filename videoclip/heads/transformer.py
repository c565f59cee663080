"""Frames attend to each other before they are averaged: CLIP4Clip's seqTransf, ActionCLIP's Transf.

seqTransf is `Transformer()`; Transf is `Transformer(layers=6, start="random", average="plain")`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from videoclip.heads.base import Head
from videoclip.layers import (
    Blocks,
    attention_heads,
    positions,
    start_linears,
    start_positions,
)
from videoclip.towers import CLIP
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class Transformer(Head):
    """Transformer blocks with positions and a residual path (Luo et al. 2021, section 3.3)."""

    layers: int = 4
    """Residual blocks."""
    max_frames: int = 77
    """Rows of the table of positions, as many as the text tower's. A clip with more frames
    stretches it linearly over its own ones, a shorter clip reads its beginning, as the references
    do."""
    attention_heads: int | None = None
    """Attention heads of a block; None: one for every 64 channels. The references count those of
    the text tower."""
    start: Literal["text", "random"] = "text"
    """text: from the text tower's first blocks and positions, where the widths agree (CLIP4Clip).
    random: N(0, 0.02) (ActionCLIP's Transf)."""
    variant: Literal["fixed", "reference"] = "fixed"
    """reference: LayerNorm adds 1e-12 to the variance, as the released code does; fixed: 1e-5."""

    def build(self, width: int) -> nn.Module:
        """The head for an embedding of this width."""
        return TransformerHead(self, width)


class TransformerHead(nn.Module):
    """Adds to every frame what attention over the clip says."""

    def __init__(self, config: Transformer, width: int) -> None:
        super().__init__()
        self.config = config
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_frames, width))
        self.transformer = Blocks(
            width,
            config.layers,
            config.attention_heads or attention_heads(width),
            eps=1e-12 if config.variant == "reference" else 1e-5,
        )
        start_linears(self.transformer)

    def start_from(self, clip: CLIP) -> None:
        """Starts from the text tower's first blocks and positions, unless it starts at random."""
        if self.config.start == "random":
            return
        self.transformer.start_from(clip.transformer)
        start_positions(self.positions, clip.positional_embedding)

    def forward(self, features: Features) -> Embedding:
        """Features (B, T, D) -> Embedding."""
        frames, mask = features.frames, features.mask
        placed = frames + positions(self.positions, mask)
        return self.config.pool(frames + self.transformer(placed, mask), mask)
