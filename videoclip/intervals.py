"""How far to trust a figure: 95 % intervals and paired differences by bootstrap over videos.

Videos are what is resampled: the captions of one video are not independent, and drawing captions
would give intervals that are far too narrow (MSVD has some 41 a video).
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

LEVEL = 0.95
DRAWS = 10_000


class Interval(NamedTuple):
    """A mean and its percentile interval; nan bounds where a single video leaves it undefined."""

    mean: float
    """Over all queries (and seeds)."""
    low: float
    """The lower bound."""
    high: float
    """The upper bound."""


def mean_interval(values: np.ndarray, video_of_query: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of values (Q,) or (S, Q), S seeds, of queries that belong to videos (Q,).

    Seeds are averaged per query first: the interval is about the choice of test videos, the
    spread over seeds is stated apart.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64)).mean(0)
    owners = np.asarray(video_of_query)
    if values.shape != owners.shape or not values.size:
        raise ValueError(
            f"values of {values.shape} queries and videos of {owners.shape}; expected the same "
            "number, at least one"
        )
    _, video = np.unique(owners, return_inverse=True)
    sums, counts = np.bincount(video, weights=values), np.bincount(video)
    mean = float(values.mean())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(sums / counts) == 0:  # every draw is the same, and scipy would warn
        return Interval(mean, mean, mean)

    def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis) / count.sum(axis)

    found = bootstrap(
        (sums, counts.astype(np.float64)),
        ratio,
        n_resamples=DRAWS,
        batch=max(1, 10_000_000 // len(sums)),
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_difference(
    values: np.ndarray, baseline: np.ndarray, video_of_query: np.ndarray, *, seed: int = 0
) -> Interval:
    """The mean of values minus baseline, query by query, on the same draws of videos.

    Both are (Q,) or (S, Q), of the same queries in the same order; they may differ in seeds.
    """
    own, other = (
        np.atleast_2d(np.asarray(x, dtype=np.float64)).mean(0) for x in (values, baseline)
    )
    if own.shape != other.shape:
        raise ValueError(
            f"{own.shape[0]} queries cannot be paired with {other.shape[0]}; compare the same ones"
        )
    return mean_interval(own - other, video_of_query, seed=seed)
