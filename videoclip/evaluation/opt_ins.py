"""Figures that one must ask for, each with the label that it carries wherever it is shown.

Re-ranking saves time and may change ranks; dual softmax and QB-Norm use more than a query and its
candidates. Next to each stands the plain figure, or what the re-ranking started from.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from videoclip.errors import VideoclipError
from videoclip.evaluation.evaluate import (
    DIRECTIONS,
    Direction,
    Embedded,
    Evaluation,
    distinct,
    embed_captions,
    evaluation,
    of_all,
    reads_tokens,
    rows_of,
    shared,
)
from videoclip.evaluation.rescoring import (
    BETA,
    dual_softmax,
    qb_norm,
    query_bank,
    rerank,
    top_candidates,
)
from videoclip.figures.intervals import Interval, mean_interval
from videoclip.figures.metrics import hits_at_k
from videoclip.manifest import sources
from videoclip.model import VideoCLIP
from videoclip.scorers import Cosine
from videoclip.tokenizer import Tokenizer
from videoclip.types import Embedding

BANK_AT_ONCE = 4096
"""Captions of a query bank that are scored in one go."""


class Result(NamedTuple):
    """An evaluation under its name."""

    name: str
    """What tables and files call it; empty for the plain one."""
    label: str
    """What a reader must know; empty for the plain one."""
    found: Evaluation
    directions: tuple[Direction, ...] = DIRECTIONS
    """Those that it is defined for."""

    @property
    def metrics(self) -> dict[Direction, dict[str, float]]:
        """R@1, R@5, R@10, MdR and MnR per direction."""
        return {d: values for d, values in self.found.metrics().items() if d in self.directions}

    @property
    def intervals(self) -> dict[Direction, dict[str, Interval]]:
        """The 95 % interval of every recall, drawn over what the clips were cut from."""
        clips, drawn = self.found.clips, np.array(sources(self.found.clips))
        owners = {
            "text_to_video": self.found.video_of_caption,
            "video_to_text": np.arange(len(clips)),
        }
        return {
            direction: {
                f"R@{k}": mean_interval(
                    100 * hits_at_k(self.found.ranks[direction], k), drawn[owners[direction]]
                )
                for k in (1, 5, 10)
            }
            for direction in self.directions
        }


def dual_softmax_result(found: Embedded, plain: Evaluation) -> Result:
    """The plain scores, each times its softmax over all test queries."""
    by_text, by_video = (dual_softmax(plain.scores, queries=axis) for axis in (0, 1))
    negative = float((plain.scores < 0).mean())
    label = "dual softmax: uses test queries, every score depends on all of them"
    if negative:
        label += f"; {negative:.0%} of the scores are negative, where its prior is turned round"
    return Result("dsl-uses-test-queries", label, evaluation(found, by_text, by_video))


def require_query_bank(model: VideoCLIP, captions: Sequence[str]) -> None:
    """Raises VideoclipError where QB-Norm has no cosines or no captions to work with."""
    if not isinstance(model.config.scorer, Cosine):
        raise VideoclipError(
            "QB-Norm is for cosines, and this model's scorer gives other scores; leave qb-norm out"
        )
    if not captions:
        raise VideoclipError(
            "QB-Norm needs a query bank, but the manifest has no captions in a split named train; "
            "add them or leave qb-norm out"
        )


def query_bank_result(
    model: VideoCLIP, found: Embedded, captions: Sequence[str], tokenizer: Tokenizer
) -> Result:
    """QB-Norm with these captions of training videos as its bank; text to video alone.

    The other direction would need a bank of training videos. Raises VideoclipError where the scores
    are no cosines and where there are no captions.
    """
    require_query_bank(model, captions)
    texts, text_of_caption = distinct(captions, tokenizer)
    text = embed_captions(model, texts, tokenizer)

    def cosines() -> Iterator[np.ndarray]:
        for chunk in torch.from_numpy(text_of_caption).split(BANK_AT_ONCE):
            yield loose_scores(rows_of(text, chunk), found.video)

    bank = query_bank(cosines())
    scores = of_all(qb_norm(loose_scores(found.text, found.video), bank), found)
    label = (
        f"QB-Norm, beta {BETA:g}: uses test queries one at a time, but with them "
        f"{bank.queries:,} training captions and all test videos"
    )
    again = evaluation(found, scores, scores)
    return Result(
        "qb-norm-uses-test-queries-and-training-captions", label, again, ("text_to_video",)
    )


def require_pair_scorer(model: VideoCLIP) -> None:
    """Raises VideoclipError where the scorer is a cosine, which is as cheap for all pairs."""
    if not reads_tokens(model):
        raise VideoclipError(
            "this model scores by the cosine, which is as cheap for all pairs; re-ranking is for "
            "scorers such as tight: leave --rerank out"
        )


@torch.no_grad()
def reranked_results(model: VideoCLIP, found: Embedded, top: int) -> list[Result]:
    """The model's scorer on the best `top` candidates of each query; and what chose them, alone.

    Candidates are chosen by the loose score, in each direction for itself: `top` videos of a text,
    `top` texts of a video. The others keep its order, behind all that were chosen. Raises
    VideoclipError where the scorer is a cosine, which is as cheap for all pairs.
    """
    require_pair_scorer(model)
    loose = loose_scores(found.text, found.video)
    by_text, by_video = top_candidates(loose, top), top_candidates(loose.T, top).T
    pairs = by_text | by_video
    exact = pair_scores(model, found.text, found.video, pairs)
    again = evaluation(
        found,
        of_all(rerank(loose, exact, by_text), found),
        of_all(rerank(loose.T, exact.T, by_video.T).T, found),
    )
    label = (
        f"top-{top} re-rank from the loose score: the model scored {np.count_nonzero(pairs):,} of "
        f"{pairs.size:,} pairs of a text and a video, the others keep the loose order behind them"
    )
    before = of_all(loose, found)
    return [
        Result(f"reranked-top-{top}", label, again),
        Result("loose", "the loose score alone", evaluation(found, before, before)),
    ]


@torch.no_grad()
def pair_scores(
    model: VideoCLIP, text: Embedding, video: Embedding, pairs: np.ndarray
) -> np.ndarray:
    """The scores (Q, V) where `pairs` (Q, V) is True, nan elsewhere; processes share the videos."""

    def column(number: int) -> np.ndarray:
        texts = torch.from_numpy(np.flatnonzero(pairs[:, number]))
        scores = model.score(rows_of(text, texts), rows_of(video, torch.tensor([number])))
        return scores[:, 0].float().cpu().numpy()

    scores = np.full(pairs.shape, np.nan, dtype=np.float32)
    for number, found in enumerate(shared(range(pairs.shape[1]), column, "re-ranking")):
        scores[pairs[:, number], number] = found
    return scores


def loose_scores(text: Embedding, video: Embedding) -> np.ndarray:
    """CLIP4Clip's meanP: cosines (Q, V) of texts and of the means of normalized frames."""
    frames = F.normalize(video.tokens.float(), dim=-1) * video.mask[..., None]
    query, key = (F.normalize(x, dim=-1) for x in (text.vector.float(), frames.sum(1)))
    return (query @ key.T).cpu().numpy()
