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


def divergence(scores: Tensor, matches: Tensor) -> Tensor:
    """ActionCLIP's loss of logits scores (Q, V) and matches (Q, V) bool, in both directions.

    The Kullback-Leibler divergence from softmax(10 matches) to the scores' softmax, summed over a
    row and averaged over the rows (Wang et al. 2021, equation 5). Several matches share the target,
    and what does not match keeps a trace of it, about 4.5e-5 of a match.
    """
    target = 10 * matches.to(scores.dtype)
    by_text, by_video = (
        F.kl_div(one.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        for one, wanted in ((scores, target), (scores.T, target.T))
    )
    return (by_text + by_video) / 2


LOSSES: dict[str, Loss] = {"clip": contrastive, "siglip": siglip, "kl": divergence}
"""The losses under the names that users give them."""
