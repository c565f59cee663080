"""A class token reads the frames and becomes the video's vector (ActionCLIP's Transf_cls)."""

from dataclasses import dataclass

import torch
from torch import nn

from videoclip.heads.base import Head
from videoclip.layers import positions
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class ClassToken(Head):
    """A post-normalized transformer over a class token and the frames (Wang et al. 2021).

    There is no residual path and no mean over frames, so `average` is not read.
    """

    layers: int = 6
    """Encoder layers."""
    attention_heads: int = 8
    """Attention heads of a layer; the reference has eight for every width."""
    hidden: int = 2048
    """Channels inside their perceptrons."""
    dropout: float = 0.1
    """In every layer, in training."""
    max_frames: int = 8
    """Rows of the table of positions. A clip with more or fewer frames stretches it linearly over
    its own frames. The reference takes clips of exactly this length."""

    def build(self, width: int) -> nn.Module:
        """The head for an embedding of this width. Raises ValueError where it cannot be split."""
        if width % self.attention_heads:
            raise ValueError(
                f"a width of {width} cannot be split into {self.attention_heads} attention heads"
            )
        return ClassTokenHead(self, width)


class ClassTokenHead(nn.Module):
    """What the class token has become after the last layer."""

    def __init__(self, config: ClassToken, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.class_position = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(config.max_frames, width))
        layer = nn.TransformerEncoderLayer(
            width, config.attention_heads, config.hidden, config.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        weights = [linear.weight for linear in linears]
        for weight in (self.class_token, self.class_position, self.positions, *weights):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
        for linear in linears:
            nn.init.zeros_(linear.bias)

    def forward(self, features: Features) -> Embedding:
        """Features (B, T, D) -> Embedding."""
        frames, mask = features.frames, features.mask
        first = (self.class_token + self.class_position).expand(len(frames), 1, -1)
        tokens = torch.cat([first, frames + positions(self.positions, mask, spread=True)], dim=1)
        unseen = torch.cat([mask.new_zeros(len(mask), 1), ~mask], dim=1)
        tokens = self.encoder(tokens, src_key_padding_mask=unseen)
        return Embedding(tokens[:, 0], tokens[:, 1:], mask)
