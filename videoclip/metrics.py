"""scores -> ranks -> Recall@K, median and mean rank; exact, by counting, in both directions.

Nothing is sorted and nothing is padded: the rank of a query is one more than the number of
candidates that score higher than its own.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videoclip.errors import VideoclipError

TIE_RULE = "tied candidates share the mean of their ranks"
ROWS_AT_ONCE = 4096


class Ranks(NamedTuple):
    """The rank of every query among its candidates; 1 is best."""

    rank: np.ndarray
    """(Q,) float64: the mean rank where candidates tie; candidates + 1 where missing."""
    optimistic: np.ndarray
    """(Q,): every tie is won."""
    pessimistic: np.ndarray
    """(Q,): every tie is lost."""
    missing: np.ndarray
    """(Q,) bool: the query's own score is nan; a miss at every K."""
    candidates: int
    """How many candidates every query has."""


def text_to_video_ranks(scores: np.ndarray, video_of_caption: np.ndarray) -> Ranks:
    """Every caption is a query: scores (N, M), video_of_caption (N,) in 0..M-1 -> Ranks (N,).

    A nan score of another video never ranks above. Raises ValueError for shapes that do not fit.
    """
    scores, owners = _checked(scores, video_of_caption)
    return _ranks(scores, owners)


def video_to_text_ranks(scores: np.ndarray, video_of_caption: np.ndarray) -> Ranks:
    """Every video is a query among the M captioned videos: scores (N, M) -> Ranks (M,).

    Of several captions of one video the best counts, CLIP4Clip's rule for MSVD: scores are
    max-pooled over each video's captions, and the video's own place among them is the rank.
    """
    scores, owners = _checked(scores, video_of_caption)
    videos = scores.shape[1]
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(videos))
    # fmax ignores nan where there is another caption; reduceat works on consecutive rows.
    best = np.fmax.reduceat(scores[order], starts, axis=0)
    return _ranks(np.ascontiguousarray(best.T), np.arange(videos))


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Percent of queries whose own candidate ranks at k or better."""
    return 100 * float(np.mean((ranks.rank <= k) & ~ranks.missing))


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank.

    The median of an even count is the mean of the middle two; CLIP4Clip's multi-caption
    text-to-video figure takes the lower of them.
    """
    recalls = {f"R@{k}": recall_at_k(ranks, k) for k in (1, 5, 10)}
    return recalls | {"MdR": float(np.median(ranks.rank)), "MnR": float(np.mean(ranks.rank))}


def tie_note(ranks: Ranks) -> str | None:
    """A sentence with the best and the worst case where ties make them differ, else None."""
    low, high = (
        {k: recall_at_k(ranks._replace(rank=rank), k) for k in (1, 5, 10)}
        for rank in (ranks.pessimistic, ranks.optimistic)
    )
    if low == high:
        return None
    spans = ", ".join(f"R@{k} {low[k]:.1f} to {high[k]:.1f}" for k in low if low[k] != high[k])
    return f"Ties decide: with every tie lost or won, {spans}."


def check_counts(expected: Sequence[str], evaluated: Sequence[str]) -> str:
    """The line "expected N = evaluated N = unique N"; raises VideoclipError where it is not so."""
    counts = Counter(evaluated)
    missing = [name for name in expected if name not in counts]
    doubled = [name for name, count in counts.items() if count > 1]
    surplus = sorted(counts.keys() - set(expected))
    line = f"expected {len(expected)} = evaluated {len(evaluated)} = unique {len(counts)}"
    if missing or doubled or surplus or len(expected) != len(evaluated):
        raise VideoclipError(
            f"{line.replace('=', '/')} do not agree: missing {missing[:10]}, "
            f"evaluated twice {doubled[:10]}, not expected {surplus[:10]}"
        )
    return line


def _checked(scores: np.ndarray, video_of_caption: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, owners = np.asarray(scores), np.asarray(video_of_caption)
    if scores.ndim != 2 or owners.shape != scores.shape[:1] or not scores.size:
        raise ValueError(
            f"scores {scores.shape} and video_of_caption {owners.shape} do not fit; "
            "expected (N, M) and (N,)"
        )
    if owners.min() < 0 or owners.max() >= scores.shape[1]:
        raise ValueError(
            f"video_of_caption runs from {owners.min()} to {owners.max()}, but there are "
            f"{scores.shape[1]} videos"
        )
    without = np.setdiff1d(np.arange(scores.shape[1]), owners)
    if len(without):
        raise ValueError(
            f"{len(without)} of {scores.shape[1]} videos have no caption, the first is number "
            f"{without[0]}; leave them out or give them one"
        )
    return scores, owners


def _ranks(scores: np.ndarray, own: np.ndarray) -> Ranks:
    """Ranks of the candidate own[i] in row i of scores (Q, C), a bounded number of rows at once."""
    greater = np.empty(len(scores), dtype=np.int64)
    equal = np.empty(len(scores), dtype=np.int64)
    own_scores = scores[np.arange(len(scores)), own]
    for start in range(0, len(scores), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        truth = own_scores[rows, None]
        greater[rows] = np.count_nonzero(scores[rows] > truth, axis=1)
        equal[rows] = np.count_nonzero(scores[rows] == truth, axis=1) - 1
    missing = np.isnan(own_scores)
    candidates = scores.shape[1]

    def placed(rank: np.ndarray) -> np.ndarray:
        return np.where(missing, candidates + 1, rank).astype(np.float64)

    return Ranks(
        rank=placed(1 + greater + equal / 2),
        optimistic=placed(1 + greater),
        pessimistic=placed(1 + greater + equal),
        missing=missing,
        candidates=candidates,
    )
