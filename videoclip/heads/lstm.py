"""Frames are read one after the other before they are averaged (CLIP4Clip's seqLSTM)."""

from dataclasses import dataclass

from torch import nn

from videoclip.heads.base import Head
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class LSTM(Head):
    """A one-way LSTM with a residual path (Luo et al. 2021, CLIP4Clip, section 3.3)."""

    layers: int = 1
    """LSTM layers on top of each other."""

    def build(self, width: int) -> nn.Module:
        """The head for an embedding of this width."""
        return LSTMHead(self, width)


class LSTMHead(nn.Module):
    """Adds to every frame what the LSTM says after reading it."""

    def __init__(self, config: LSTM, width: int) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(width, width, config.layers, batch_first=True)

    def forward(self, features: Features) -> Embedding:
        """Features (B, T, D) -> Embedding.

        The LSTM runs forward only, so padding after a clip cannot reach its frames and needs no
        packing; real frames that stand behind padding are moved to the front and back again.
        """
        frames, mask = features.frames, features.mask
        front = mask.logical_not().int().argsort(dim=1, stable=True)
        back = front.argsort(dim=1)
        read, _ = self.lstm(frames.gather(1, front[..., None].expand_as(frames)))
        read = read.gather(1, back[..., None].expand_as(read))
        return self.config.pool(frames + read, mask)
