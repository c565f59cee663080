"""scores -> number: the training losses, pure functions of scores and matches."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """A loss is the mean over texts of what a row of scores says, the mean over videos, or both.

    So processes that share a batch can each take their own rows and columns of it.
    """

    of_rows: Callable[[Tensor, Tensor], Tensor]
    """Logits (N, M) and matches (N, M), bool or the share of each match -> one number a row (N,).
    """
    by_text: float
    """Weight of the mean over texts; 0: no row of a text counts."""
    by_video: float
    """Weight of the mean over videos."""

    def __call__(self, scores: Tensor, matches: Tensor) -> Tensor:
        """Logits (Q, V) and matches (Q, V), bool or the share of each match -> a number."""
        return self.part((scores, matches), (scores, matches), matches.shape)

    def part(
        self,
        rows: tuple[Tensor, Tensor] | None,
        columns: tuple[Tensor, Tensor] | None,
        whole: tuple[int, int],
    ) -> Tensor:
        """What rows (q, V) and columns (Q, v) of scores and matches (Q, V) add to the loss.

        The parts of rows and columns that make up the whole, (Q, V), add up to its loss. Without
        weight they are not looked at.
        """
        parts = []
        if self.by_text:
            parts.append(self.by_text / whole[0] * self.of_rows(*rows).sum())
        if self.by_video:
            scores, matches = columns
            parts.append(self.by_video / whole[1] * self.of_rows(scores.T, matches.T).sum())
        return sum(parts[1:], parts[0])


def cross_entropy(scores: Tensor, matches: Tensor) -> Tensor:
    """Logits (N, M) and matches (N, M) -> (N,); several matches of a row share its target."""
    target = matches.to(scores.dtype)
    return F.cross_entropy(scores, target / target.sum(1, keepdim=True), reduction="none")


def sigmoids(scores: Tensor, matches: Tensor) -> Tensor:
    """Logits (N, M) and matches (N, M) -> (N,): each a question of its own, match or not."""
    target = matches.to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(1)


def row_divergence(scores: Tensor, matches: Tensor) -> Tensor:
    """Logits (N, M) and matches (N, M) -> (N,): KL from softmax(10 matches) to the scores'."""
    target = (10 * matches.to(scores.dtype)).log_softmax(1)
    found = scores.log_softmax(1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(1)


contrastive = Loss(cross_entropy, by_text=0.5, by_video=0.5)
"""The symmetric contrastive loss.

With one match per row and column this is CLIP's and CLIP4Clip's loss (Radford et al. 2021, figure
3; Luo et al. 2021, equation 5). Where a batch holds several matches, two clips with the same
caption for example, they share the target equally instead of being each other's negatives.
"""

siglip = Loss(sigmoids, by_text=1.0, by_video=0.0)
"""The sigmoid loss, per text (Zhai et al. 2023, Sigmoid loss for language image pre-training,
algorithm 1).

Several matches of one text are all of them right. The logits need a bias, `Model.logit_bias`:
nearly all pairs are no match.
"""

divergence = Loss(row_divergence, by_text=0.5, by_video=0.5)
"""ActionCLIP's loss, in both directions (Wang et al. 2021, equation 5).

The Kullback-Leibler divergence from softmax(10 matches) to the scores' softmax, summed over a row
and averaged over the rows. Several matches share the target, and what does not match keeps a trace
of it, about 4.5e-5 of a match.
"""

classification = Loss(cross_entropy, by_text=0.0, by_video=1.0)
"""Cross-entropy of each video over all classes: the texts are one sentence for every class."""

LOSSES: dict[str, Loss] = {
    "clip": contrastive,
    "siglip": siglip,
    "kl": divergence,
    "ce": classification,
}
"""The losses under the names that users give them."""
