"""How far to trust a figure: intervals by resampling videos, and a test for paired hits.

The captions of one video share its frames and so are right or wrong together (MSVD has about 41 a
video): resampling captions as if they were independent gives an interval that is far too narrow.
The unit drawn here is therefore the video, with all its queries.

An interval speaks about the sample of test videos for a given model. How far the result moves from
one training seed to the next is another question, answered by the seeds themselves.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_DRAWS_AT_ONCE = 2**20  # videos drawn in one batch; about 40 MiB with what is gathered for them


class Interval(NamedTuple):
    """A mean over queries with its bootstrap interval, in the unit of the values."""

    mean: float
    """Over all queries (and seeds)."""
    low: float
    """The lower end; NaN where a single video leaves it undefined."""
    high: float
    """The upper end; NaN likewise."""


def mean_interval(
    values: ArrayLike,
    video_of_query: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `values` (Q,), or (S, Q) for S seeds, over videos.

    Values are what the table averages: hits as 0 and 100 for a recall, or ranks for MnR. Seeds are
    averaged per query first. `video_of_query` (Q,) holds any labels. A resample draws as many
    videos as there are, with replacement, each with all its queries, and takes the mean over those
    queries, sum / count (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    One video says nothing about how videos differ: its low and high are NaN. Where all values are
    equal the interval has zero width. Equal arguments give the equal interval.
    """
    values = _per_query(values, "values")
    return _interval(values, video_of_query, level, resamples, seed)


def paired_difference(
    values: ArrayLike,
    baseline: ArrayLike,
    video_of_query: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(values) - mean(baseline) over the same queries, both drawn together.

    Shapes and rules as in `mean_interval`, whose draws it shares for equal seed and resamples. The
    two may have different numbers of seeds.
    """
    values, baseline = _per_query(values, "values"), _per_query(baseline, "baseline")
    if values.shape != baseline.shape:
        raise ValueError(
            f"values hold {len(values)} queries and baseline {len(baseline)}: a paired difference "
            "needs the same queries in the same order"
        )
    return _interval(values - baseline, video_of_query, level, resamples, seed)


def mcnemar(hits_a: ArrayLike, hits_b: ArrayLike) -> float:
    """Exact two-sided p-value that two models hit equally often, from hits (Q,) as bool or 0 / 1.

    McNemar's test (Psychometrika 12, 1947) in its exact form: only the queries that one of the two
    gets right count, and under equality each is a fair coin. It takes queries as independent, so
    it fits one caption per video, as in R@1 on MSR-VTT 1k-A; elsewhere use `paired_difference`.
    """
    hits_a, hits_b = _hits(hits_a, "hits_a"), _hits(hits_b, "hits_b")
    if hits_a.shape != hits_b.shape:
        raise ValueError(
            f"hits_a hold {len(hits_a)} queries and hits_b {len(hits_b)}: the test needs the same "
            "queries in the same order"
        )
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((~hits_a & hits_b).sum())
    if only_a + only_b == 0:
        return 1.0  # no query tells the two apart; binomtest wants at least one
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _interval(
    values: np.ndarray, video_of_query: ArrayLike, level: float, resamples: int, seed: int
) -> Interval:
    """The bootstrap of sum / count over videos; `values` (Q,) finite float64."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")
    video_of_query = np.asarray(video_of_query)
    if video_of_query.shape != values.shape:
        raise ValueError(
            f"video_of_query has the shape {video_of_query.shape}, but the values hold "
            f"{len(values)} queries: give one video for each"
        )
    labels, video = np.unique(video_of_query, return_inverse=True)
    mean = float(values.mean())
    if len(labels) == 1:
        return Interval(mean, np.nan, np.nan)
    if values.min() == values.max():  # sum / count would differ from it in the last bit
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    result = stats.bootstrap(
        (np.bincount(video, weights=values), np.bincount(video).astype(np.float64)),
        _ratio,
        paired=True,  # a video's sum and its count are drawn together
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWS_AT_ONCE // len(labels)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def _per_query(values: ArrayLike, name: str) -> np.ndarray:
    """`values` (Q,) or (S, Q) as float64 (Q,), averaged over seeds."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"{name} have the shape {values.shape}, expected (queries,) or (seeds, queries) with "
            "at least one of each"
        )
    unusable = int((~np.isfinite(values)).sum())
    if unusable:
        raise ValueError(
            f"{unusable} of {values.size} {name} are not finite: state a miss as a number (hit 0, "
            "or rank candidates + 1)"
        )
    return values if values.ndim == 1 else values.mean(axis=0)


def _hits(hits: ArrayLike, name: str) -> np.ndarray:
    hits = np.asarray(hits)
    if hits.ndim != 1 or hits.size == 0:
        raise ValueError(f"{name} have the shape {hits.shape}, expected (queries,), at least one")
    if not np.isin(hits, (0, 1)).all():
        raise ValueError(f"{name} hold {hits[~np.isin(hits, (0, 1))][0]}, expected bool or 0 / 1")
    return hits.astype(bool)
