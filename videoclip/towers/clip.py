"""The image-text CLIP that every video model stands on: two towers and a temperature."""

import math

import torch
from torch import nn

from videoclip.towers.base import Language, Visual
from videoclip.towers.labels import LabelTable
from videoclip.towers.text import Text, TextTransformer

MAX_LOGIT_SCALE = math.log(100)
"""Training clamps logit_scale here (Radford et al. 2021, section 2.5)."""


class WithVision(nn.Module):
    """Gives a text side a vision tower and a temperature, under OpenAI's parameter names.

    There the text tower's parameters stand at the root, beside `visual` and `logit_scale`; all
    reference checkpoints follow that, so CLIP *is* a text tower that owns a visual one.
    """

    def __init__(
        self, visual: Visual, text: Language, embedding: int, logit_bias: float | None = None
    ) -> None:
        super().__init__(text, embedding)
        self.visual = visual.build(embedding)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps exp(logit_scale) at or under 100; called after every optimizer step."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class CLIP(WithVision, TextTransformer):
    """CLIP: a vision tower and a text tower."""


class LabeledVision(WithVision, LabelTable):
    """A vision tower and one vector per class."""


def two_sides(
    visual: Visual, text: Language, embedding: int, logit_bias: float | None
) -> CLIP | LabeledVision:
    """The two sides of a model, with random weights."""
    kind = CLIP if isinstance(text, Text) else LabeledVision
    return kind(visual, text, embedding, logit_bias)
