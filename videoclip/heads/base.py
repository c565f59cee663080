"""What every head is: the slot over time."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from videoclip.layers import masked_mean
from videoclip.types import Embedding


@dataclass(frozen=True, kw_only=True)
class Head:
    """Settings of a head. The module that `build` returns turns Features into an Embedding:

        forward(features: Features) -> Embedding

    `features.frames` is (B, T, D) for any T, `features.mask` (B, T) says which frames are real;
    what stands in the others must not change the result. Two optional attributes of the module:
    `start_from(clip)` copies weights of the pretrained CLIP into a new head, and `reads_layers`
    asks for the tokens after that many last blocks of the tower.
    """

    average: Literal["normalized", "plain"] = "normalized"
    """How frames become one vector. normalized: every frame has length 1 before the mean
    (CLIP4Clip). plain: the mean of the frames as they are (ActionCLIP)."""

    def build(self, width: int) -> nn.Module:
        """The head for an embedding of this width."""
        raise NotImplementedError

    def pool(self, frames: Tensor, mask: Tensor) -> Embedding:
        """Averages frames (B, T, D) over the real ones; the frames stay with the result."""
        averaged = F.normalize(frames, dim=-1) if self.average == "normalized" else frames
        return Embedding(masked_mean(averaged, mask), frames, mask)
