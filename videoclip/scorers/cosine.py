"""The cosine of text and video, as in CLIP: videos can be embedded once and searched."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoclip.scorers.base import Scorer
from videoclip.types import Embedding


@dataclass(frozen=True, kw_only=True)
class Cosine(Scorer):
    """exp(logit_scale) times the cosine (Radford et al. 2021, section 2.3); no parameters."""

    def build(self, width: int) -> nn.Module:
        """The scorer."""
        return CosineScorer()


class CosineScorer(nn.Module):
    """One matrix product for all pairs."""

    reads_tokens = False

    def forward(self, text: Embedding, video: Embedding, logit_scale: Tensor) -> Tensor:
        """Embeddings (Q, D) and (V, D) -> logits (Q, V), never in autocast's type."""
        # bfloat16 has 8 bits: logits near 100 would be off by a quarter.
        with torch.autocast(text.vector.device.type, enabled=False):
            query, key = (
                F.normalize(one.vector.to(logit_scale.dtype), dim=-1) for one in (text, video)
            )
            return logit_scale.exp() * query @ key.T
