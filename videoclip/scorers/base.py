"""What every scorer is: the slot where texts and videos meet."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Settings of a scorer. The module that `build` returns scores every text with every video:

        forward(text: Embedding, video: Embedding, logit_scale: Tensor) -> (Q, V) logits

    `logit_scale` is CLIP's temperature, a logarithm; a scorer may leave it unread. A module may
    have `start_from(clip)`, which copies weights of the pretrained CLIP into a new scorer, and
    `reads_tokens = False` where it reads the vectors alone; processes then exchange only those.
    """

    def build(self, width: int) -> nn.Module:
        """The scorer for an embedding of this width."""
        raise NotImplementedError
