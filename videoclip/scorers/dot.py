"""The inner product of text and video as they are: with one vector per class, a linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoclip.scorers.base import Scorer
from videoclip.types import Embedding


@dataclass(frozen=True, kw_only=True)
class Dot(Scorer):
    """What usual classifiers end in (TSM): nothing is normalized, and there is no temperature."""

    def build(self, width: int) -> nn.Module:
        """The scorer."""
        return DotScorer()


class DotScorer(nn.Module):
    """One matrix product for all pairs, and the bias of the texts that have one (Labels)."""

    reads_tokens = False

    def forward(self, text: Embedding, video: Embedding, logit_scale: Tensor) -> Tensor:
        """(Q, D) or, with a bias, (Q, D + 1), and (V, D) -> (Q, V), never in autocast's type."""
        with torch.autocast(text.vector.device.type, enabled=False):
            query, key = (one.vector.to(logit_scale.dtype) for one in (text, video))
            width = key.shape[1]
            # Without a bias the sum is over nothing, which is zero.
            return query[:, :width] @ key.T + query[:, width:].sum(1, keepdim=True)
