"""A learned shift: every channel is convolved over three frames (ActionCLIP's Conv_1D)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from videoclip.heads.base import Head
from videoclip.types import Embedding, Features


@dataclass(frozen=True, kw_only=True)
class Convolution(Head):
    """A depthwise convolution over time with a residual path (Wang et al. 2021, ActionCLIP)."""

    variant: Literal["fixed", "reference"] = "fixed"
    """reference: time and channels are scrambled before the convolution, a reshape where a
    transpose was meant, as the released code does; it takes clips without padding only."""

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
        """Features (B, T, D) -> Embedding.

        Raises ValueError where the reference variant is given padded clips.
        """
        frames, mask = features.frames, features.mask
        if self.config.variant == "fixed":
            channels = (frames * mask[..., None].to(frames.dtype)).transpose(1, 2)
        else:
            if not bool(mask.all()):
                raise ValueError(
                    "the reference variant of convolution mixes padding into frames; give clips "
                    "of one length, or use variant 'fixed'"
                )
            channels = frames.reshape(len(frames), frames.shape[2], frames.shape[1])
        return self.config.pool(frames + self.shift(channels).transpose(1, 2), mask)
