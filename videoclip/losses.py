"""scores -> number: the training losses, pure functions of one signature."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (Q, V) and matches (Q, V) bool, True where a text describes a picture -> a number."""


def contrastive(scores: Tensor, matches: Tensor) -> Tensor:
    """The symmetric contrastive loss of logits scores (Q, V) and matches (Q, V) bool.

    With one match per row and column this is CLIP's and CLIP4Clip's loss (Radford et al. 2021,
    figure 3; Luo et al. 2021, equation 5). Where a batch holds several matches, two clips with the
    same caption for example, they share the target equally instead of being each other's negatives.
    """
    target = matches.to(scores.dtype)
    by_text = F.cross_entropy(scores, target / target.sum(1, keepdim=True))
    by_video = F.cross_entropy(scores.T, target.T / target.T.sum(1, keepdim=True))
    return (by_text + by_video) / 2


def siglip(scores: Tensor, matches: Tensor) -> Tensor:
    """The sigmoid loss of logits scores (Q, V) and matches (Q, V) bool, per text.

    Every pair is a question of its own, match or not (Zhai et al. 2023, Sigmoid loss for language
    image pre-training, algorithm 1), so several matches of one text are all of them right. The
    logits need a bias, `Model.logit_bias`: nearly all pairs are no match.
    """
    signs = 2 * matches.to(scores.dtype) - 1
    return -F.logsigmoid(signs * scores).sum() / len(scores)


LOSSES: dict[str, Loss] = {"clip": contrastive, "siglip": siglip}
"""The losses under the names that users give them."""
