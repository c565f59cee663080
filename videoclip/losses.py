"""scores -> number: the training loss, a pure function."""

import torch.nn.functional as F
from torch import Tensor


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
