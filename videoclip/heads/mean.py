"""The mean over frames: no parameters, no sense of order (CLIP4Clip's meanP)."""

from dataclasses import dataclass

from torch import nn

from videoclip.heads.base import Head
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class Mean(Head):
    """Mean pooling (Luo et al. 2021, CLIP4Clip, section 3.3)."""

    def build(self, width: int) -> nn.Module:
        """The head."""
        return MeanHead(self)


class MeanHead(nn.Module):
    """Averages the frames."""

    def __init__(self, config: Mean) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Features) -> Embedding:
        """Features (B, T, D) -> Embedding."""
        return self.config.pool(features.frames, features.mask)
