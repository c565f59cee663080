"""scores -> ranks -> Recall@K, median and mean rank; counted exactly, in both directions.

Ranks are counted (how many candidates score higher, how many the same), never read off a sorted,
padded tensor: counting needs no copy of the scores, gives a tied query one rank instead of
several, and keeps queries whose score is not a number in the denominator. Code in the field drops
such queries in silence and counts tied ones twice.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from videoclip.errors import VideoclipError

TIE_RULE = "ties count as the mean over all their orders, in ranks and in hits"
"""What the table says about ties."""
RECALL_AT = (1, 5, 10)
"""The cut-offs of the tables in the literature."""

_ELEMENTS_AT_ONCE = 2**22  # what one chunk copies: 16 MiB of float32
_NAMED_IN_ERRORS = 10


class Ranks(NamedTuple):
    """The rank of each query's true answer among the candidates; 1 is best."""

    rank: np.ndarray
    """(Q,) float64: the mean rank over all orders of the tied candidates."""
    optimistic: np.ndarray
    """(Q,) int64: the rank if the true answer came first among its ties."""
    pessimistic: np.ndarray
    """(Q,) int64: the rank if the true answer came last among its ties."""
    missing: np.ndarray
    """(Q,) bool: the true answer has no score (NaN). A miss at every K; its ranks are stated as
    `candidates + 1`, one place behind the last."""
    candidates: int
    """How many candidates each query ranks."""


def text_to_video_ranks(scores: ArrayLike, video_of_caption: ArrayLike) -> Ranks:
    """Each caption ranks the M videos: scores (N, M), video_of_caption (N,) -> N ranks.

    Every caption is a query of its own, also where a video has several (CLIP4Clip's MSVD rule).
    NaN competitors never outrank; infinite scores are legal. A video without caption competes.
    """
    scores, video_of_caption = _checked(scores, video_of_caption)
    captions, videos = scores.shape
    rows = max(1, _ELEMENTS_AT_ONCE // videos)
    chunks = (slice(first, first + rows) for first in range(0, captions, rows))
    return _merged([_count(scores[chunk], video_of_caption[chunk]) for chunk in chunks])


def video_to_text_ranks(scores: ArrayLike, video_of_caption: ArrayLike) -> Ranks:
    """Each video ranks the M groups of captions: scores (N, M), video_of_caption (N,) -> M ranks.

    The best caption stands for its group, for the video's own and for the others alike
    (CLIP4Clip's multi-sentence rule). NaN captions are passed over, unless the group has no other:
    then the group never outranks, and for the video's own group the query is missing.
    """
    scores, video_of_caption = _checked(scores, video_of_caption)
    videos = scores.shape[1]
    captions_per_video = np.bincount(video_of_caption, minlength=videos)
    without = np.flatnonzero(captions_per_video == 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {videos} videos have no caption, so video-to-text has no true "
            f"answer for them: {_named(without.tolist())}. Leave their columns out."
        )
    order = np.argsort(video_of_caption, kind="stable")
    starts = np.cumsum(captions_per_video) - captions_per_video
    # The groups by their size: those that have another caption always stand at the front, so that
    # a whole layer of captions is compared at once (seven times as fast as np.fmax.reduceat).
    groups = np.argsort(-captions_per_video, kind="stable")
    sizes = captions_per_video[groups]
    layers = [order[starts[groups[sizes > place]] + place] for place in range(sizes[0])]
    columns = max(1, _ELEMENTS_AT_ONCE // videos)
    place_of_video = np.argsort(groups)
    counted = []
    for first in range(0, videos, columns):
        part = scores[:, first : first + columns]
        best = part[layers[0]]  # (M, columns)
        for layer in layers[1:]:
            front = best[: len(layer)]
            np.fmax(front, part[layer], out=front)  # passes NaN over
        counted.append(_count(best.T, place_of_video[first : first + columns]))
    return _merged(counted)


def hits_at_k(ranks: Ranks, k: int) -> np.ndarray:
    """How far each query (Q,) is a hit at `k`: 1, 0, or in a tie the share of orders that are hits.

    Counting a tie as a whole hit flatters a model that scores everything alike, counting it as a
    miss is unfair to one that ties by its nature: on twins of moving shapes the mean over frames
    ties in some cases and is split by rounding noise in others, and only the share makes the two
    the same in expectation. A missing query is never a hit.
    """
    if k < 1:
        raise ValueError(f"k is {k}, but the best rank is 1: give a k of at least 1")
    share = (k - ranks.optimistic + 1) / (ranks.pessimistic - ranks.optimistic + 1)
    return np.where(ranks.missing, 0.0, share.clip(0, 1))


def recall_at_k(ranks: Ranks, k: int) -> float:
    """R@K in percent of all queries, the missing ones included in the denominator."""
    hits = hits_at_k(ranks, k)
    return 100 * float(hits.sum()) / len(hits)  # one rounding, so that 7 of 10,000 reads 0.07


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, and the median (MdR) and mean (MnR) rank.

    The median of an even number of queries is the mean of the two middle ranks, as in CLIP4Clip's
    one-caption case; its multi-caption text-to-video case takes the lower of the two instead
    (`torch.median`), which can print a smaller MdR for the same ranks.
    """
    recalls = {f"R@{k}": recall_at_k(ranks, k) for k in RECALL_AT}
    return recalls | {"MdR": float(np.median(ranks.rank)), "MnR": float(ranks.rank.mean())}


def reference_metrics(ranks: Ranks) -> dict[str, float]:
    """What CLIP4Clip's `compute_metrics` prints for the same scores, for comparison with old logs.

    It looks for the score of the true answer among the sorted scores: a tied query counts once for
    every place of its tie, one without a score not at all. `queries` is what it divides by. It is
    the metric of both directions with one caption a video, and of video to text with several.
    """
    tied = (ranks.pessimistic - ranks.optimistic + 1) * ~ranks.missing
    within = np.arange(tied.sum()) - np.repeat(np.cumsum(tied) - tied, tied)
    places = np.repeat(ranks.optimistic, tied) + within
    if not len(places):
        return {"queries": 0}
    recalls = {f"R@{k}": 100 * float((places <= k).sum()) / len(places) for k in RECALL_AT}
    averages = {"MdR": float(np.median(places)), "MnR": float(places.mean())}
    return recalls | averages | {"queries": len(places)}


def tie_note(ranks: Ranks) -> str | None:
    """One sentence with the recalls that depend on how ties are broken; None where none does."""
    parts = []
    for k in RECALL_AT:
        low = recall_at_k(ranks._replace(optimistic=ranks.pessimistic), k)
        high = recall_at_k(ranks._replace(pessimistic=ranks.optimistic), k)
        if low != high:
            parts.append(f"R@{k} {low:.2f} to {high:.2f}")
    if not parts:
        return None
    tied = int((ranks.pessimistic > ranks.optimistic).sum())
    return (
        f"{tied} of {len(ranks.rank)} queries tie with a wrong candidate; from the pessimistic to "
        f"the optimistic order of ties: {', '.join(parts)} (the table has the mean)."
    )


def check_counts(expected_ids: Iterable[Hashable], evaluated_ids: Iterable[Hashable]) -> str:
    """The line 'expected 180 = evaluated 180 = unique 180'; else VideoclipError names the ids."""
    expected, evaluated = _ids(expected_ids), _ids(evaluated_ids)
    expected_times, evaluated_times = Counter(expected), Counter(evaluated)
    problems = {
        "expected more than once": [i for i, times in expected_times.items() if times > 1],
        "missing": [i for i in expected_times if i not in evaluated_times],
        "evaluated more than once": [i for i, times in evaluated_times.items() if times > 1],
        "unexpected": [i for i in evaluated_times if i not in expected_times],
    }
    unique = len(evaluated_times)
    listed = [f"{len(ids)} {what}: {_named(ids)}" for what, ids in problems.items() if ids]
    if not expected:
        listed.append("there is nothing to evaluate")
    if listed:
        raise VideoclipError(
            f"expected {len(expected)}, evaluated {len(evaluated)}, unique {unique}: every id must "
            f"be evaluated exactly once; {'; '.join(listed)}"
        )
    return f"expected {len(expected)} = evaluated {len(evaluated)} = unique {unique}"


def _count(scores: np.ndarray, truth: np.ndarray) -> Ranks:
    """The ranks of `truth` (Q,) among the columns of `scores` (Q, candidates)."""
    candidates = scores.shape[1]
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    missing = np.isnan(own[:, 0])
    optimistic = 1 + _sums(scores > own)  # NaN compares False: never outranks
    pessimistic = optimistic + _sums(scores == own) - 1  # less the answer itself
    optimistic[missing] = pessimistic[missing] = candidates + 1
    return Ranks((optimistic + pessimistic) / 2, optimistic, pessimistic, missing, candidates)


def _sums(hits: np.ndarray) -> np.ndarray:
    """How many are True in each row: (Q, candidates) bool -> (Q,) int64."""
    # In two bytes where they are enough: four times as fast as np.count_nonzero.
    kind = np.int16 if hits.shape[1] < 2**15 else np.int64
    return hits.view(np.int8).sum(axis=1, dtype=kind).astype(np.int64)


def _merged(chunks: list[Ranks]) -> Ranks:
    """Chunks of queries over the same candidates as one record."""
    *columns, candidates = zip(*chunks, strict=True)
    return Ranks(*(np.concatenate(column) for column in columns), candidates[0])


def _checked(scores: Any, video_of_caption: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that fit each other, the scores in a floating type (their own if they can)."""
    scores, video_of_caption = np.asarray(scores), np.asarray(video_of_caption)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(
            f"scores have the shape {scores.shape}, expected (captions, videos) with at least one "
            "of each"
        )
    if not (np.issubdtype(scores.dtype, np.floating) or np.issubdtype(scores.dtype, np.integer)):
        raise ValueError(f"scores are of type {scores.dtype}, expected real numbers")
    if video_of_caption.shape != scores.shape[:1]:
        raise ValueError(
            f"video_of_caption has the shape {video_of_caption.shape}, but scores "
            f"{scores.shape} need one video for each of their {scores.shape[0]} rows (captions)"
        )
    if not np.issubdtype(video_of_caption.dtype, np.integer):
        raise ValueError(
            f"video_of_caption is of type {video_of_caption.dtype}, expected integers: the column "
            "of each caption's video"
        )
    outside = np.flatnonzero((video_of_caption < 0) | (video_of_caption >= scores.shape[1]))
    if len(outside):
        row = outside[0]
        raise ValueError(
            f"video_of_caption[{row}] is {video_of_caption[row]}, but scores have the columns 0 to "
            f"{scores.shape[1] - 1} ({len(outside)} such captions)"
        )
    if np.issubdtype(scores.dtype, np.integer):
        scores = scores.astype(np.float64)
    return scores, video_of_caption.astype(np.int64)


def _ids(ids: Any) -> list[Hashable]:
    # The elements of a torch tensor hash by identity, so two equal ids would count as different.
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _named(ids: list[Hashable]) -> str:
    """The first ids, and how many follow."""
    rest = len(ids) - _NAMED_IN_ERRORS
    shown = ", ".join(repr(i) for i in ids[:_NAMED_IN_ERRORS])
    return f"{shown} and {rest} more" if rest > 0 else shown
