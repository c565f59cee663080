"""A learned shift: every channel is convolved over three frames (ActionCLIP's Conv_1D)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from videoclip.heads.base import Head
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class Convolution(Head):
    """A depthwise convolution over time with a residual path (Wang et al. 2021, ActionCLIP)."""

    variant: Literal["fixed", "reference"] = "fixed"
    """reference: time and channels are scrambled before the convolution, a reshape where a
    transpose was meant, as the released code does; of a padded clip, those of its real frames."""

    def build(self, width: int) -> nn.Module:
        """The head for an embedding of this width."""
        return ConvolutionHead(self, width)


class ConvolutionHead(nn.Module):
    """Starts as a shift: a quarter of the channels from the frame before, one from the next."""

    def __init__(self, config: Convolution, width: int) -> None:
        super().__init__()
        self.config = config
        self.shift = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        quarter = width // 4
        with torch.no_grad():
            self.shift.weight.zero_()
            self.shift.weight[:quarter, 0, 0] = 1
            self.shift.weight[quarter : width - quarter, 0, 1] = 1
            self.shift.weight[width - quarter :, 0, 2] = 1

    def forward(self, features: Features) -> Embedding:
        """Features (B, T, D) -> Embedding."""
        frames, mask = features.frames, features.mask
        if self.config.variant == "reference":
            return self.config.pool(frames + self._scrambled(frames, mask), mask)
        real = frames * mask[..., None].to(frames.dtype)
        return self.config.pool(frames + self.shift(real.transpose(1, 2)).transpose(1, 2), mask)

    def _scrambled(self, frames: Tensor, mask: Tensor) -> Tensor:
        """The convolution of numbers that lie as (T, D) and are read as (D, T), (B, T, D)."""
        found, lengths = torch.zeros_like(frames), mask.sum(1)
        for length in lengths[lengths > 0].unique().tolist():  # how they are scrambled
            real = mask & (lengths == length)[:, None]
            own = frames[real].reshape(-1, frames.shape[2], length)
            found[real] = self.shift(own).transpose(1, 2).flatten(0, 1).to(found.dtype)
        return found
