"""scores over classes -> top-1, top-5, mean per class, calibration: for pictures and for clips.

What could not be read has a row of NaN: it stays in every count, as wrong.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from videoclip.figures.intervals import Interval, mean_interval
from videoclip.figures.metrics import Ranks, hits_at_k, text_to_video_ranks

BINS = 15
"""Of the calibration curve (Guo et al. 2017, On calibration of modern neural networks)."""


class Bin(NamedTuple):
    """The answers whose confidence lies in one fifteenth of 0..1."""

    confidence: float
    """Mean; NaN where the bin is empty."""
    accuracy: float
    """Share that is right; NaN likewise."""
    count: int


class Classification(NamedTuple):
    """Scored items against their labels."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """(N,) int64."""
    ranks: Ranks
    """The rank of each item's own class among the classes; ties as in retrieval."""
    predicted: np.ndarray
    """(N,) int64: the class with the highest score, -1 where there is none."""
    confidence: np.ndarray
    """(N,) the probability of `predicted`, NaN where there is none."""

    def hits(self, k: int) -> np.ndarray:
        """How far each item (N,) is right within its k best classes, 0..1."""
        return hits_at_k(self.ranks, k)

    def metrics(self) -> dict[str, float]:
        """Percent: top-1, top-5 (of five classes or more), mean per class; calibration error."""
        found = {"top-1": 100 * float(self.hits(1).mean())}
        if len(self.classes) > 5:
            found["top-5"] = 100 * float(self.hits(5).mean())
        per_class = self.per_class()
        found["mean per class"] = float(per_class["top-1"][per_class["items"] > 0].mean())
        found["calibration error"] = 100 * self.calibration_error()
        return found

    def intervals(self, groups: Sequence[str] = ()) -> dict[str, Interval]:
        """95 % intervals in percent, by bootstrap over the items.

        For the mean per class they are drawn within their class. `groups`, a word an item, are
        drawn as wholes: items cut from one source are right or wrong together, and would by
        themselves promise too narrow an interval. The mean per class has none then.
        """
        drawn = np.asarray(groups) if len(groups) else np.arange(len(self.labels))
        ks = {"top-1": 1} | ({"top-5": 5} if len(self.classes) > 5 else {})
        found = {name: mean_interval(100 * self.hits(k), drawn) for name, k in ks.items()}
        if len(groups):
            return found
        return found | {"mean per class": _class_interval(100 * self.hits(1), self.labels)}

    def counts(self) -> str:
        """How many items there were, and what became of them; the parts add up."""
        missing = int(self.ranks.missing.sum())
        return f"expected {len(self.labels)} = scored {len(self.labels) - missing} + {missing} bad"

    def per_class(self) -> pd.DataFrame:
        """One line a class: items, top-1 in percent, and what it is most often taken for."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        right = np.bincount(self.labels, weights=self.hits(1), minlength=len(self.classes))
        wrong = self.confusion()
        np.fill_diagonal(wrong, 0)
        worst = wrong.argmax(1)
        with np.errstate(invalid="ignore"):
            accuracy = 100 * right / counts
        return pd.DataFrame(
            {
                "class": self.classes,
                "items": counts,
                "top-1": accuracy,
                "taken for": [
                    self.classes[other] if wrong[own, other] else ""
                    for own, other in enumerate(worst)
                ],
                "times": wrong.max(1),
            }
        )

    def per_group(self, groups: Sequence[str]) -> pd.DataFrame:
        """One line a group, a word an item: items and top-1 in percent."""
        lines = pd.DataFrame({"group": list(groups), "hit": 100 * self.hits(1)})
        found = lines.groupby("group", sort=True)["hit"].agg(["size", "mean"]).reset_index()
        return found.set_axis(["group", "items", "top-1"], axis="columns")

    def confusion(self) -> np.ndarray:
        """(C, C) int64: how many items of class row were taken for class column."""
        size = len(self.classes)
        scored = self.predicted >= 0
        cells = self.labels[scored] * size + self.predicted[scored]
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    def calibration(self) -> list[Bin]:
        """The answers by confidence, in `BINS` bins of equal width."""
        scored = self.predicted >= 0
        confidence = self.confidence[scored]
        right = self.hits(1)[scored]  # a tie for the first place is right in part
        place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        found = []
        for number in range(BINS):
            inside = place == number
            count = int(inside.sum())
            means = (confidence[inside].mean(), right[inside].mean()) if count else (np.nan,) * 2
            found.append(Bin(float(means[0]), float(means[1]), count))
        return found

    def calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighted by their counts."""
        bins = [b for b in self.calibration() if b.count]
        total = sum(b.count for b in bins)
        return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / total


def _class_interval(hits: np.ndarray, labels: np.ndarray, resamples: int = 10_000) -> Interval:
    """Percentile interval of the mean over classes of the mean of their `hits` (N,).

    Items are drawn within their class. A class with one item adds no spread; where all are such,
    the ends are NaN.
    """
    numbers = np.random.default_rng(0)
    means, draws, largest = [], np.zeros(resamples), 0
    for label in np.unique(labels):
        own = hits[labels == label]
        values, times = np.unique(own, return_counts=True)  # almost always 0 and 100 only
        draws += numbers.multinomial(len(own), times / len(own), resamples) @ values / len(own)
        means.append(own.mean())
        largest = max(largest, len(own))
    ends = np.percentile(draws / len(means), [2.5, 97.5]) if largest > 1 else (np.nan, np.nan)
    return Interval(float(np.mean(means)), float(ends[0]), float(ends[1]))


def classification(
    scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, probabilities: bool = False
) -> Classification:
    """Scores (N, C), a row of NaN where an item could not be read, against labels (N,).

    Scores are logits whose softmax is the confidence, unless they are `probabilities`.

    Raises ValueError where shapes disagree or nothing was scored.
    """
    if scores.shape[1:] != (len(classes),):
        raise ValueError(f"scores are {scores.shape}, there are {len(classes)} classes")
    ranks = text_to_video_ranks(scores, labels)
    scored = ~np.isnan(scores).any(axis=1)
    if not scored.any():
        raise ValueError("no item has scores")
    if (ranks.missing != ~scored).any():
        raise ValueError("some items have scores for a part of the classes only")
    predicted = np.full(len(labels), -1, dtype=np.int64)
    predicted[scored] = scores[scored].argmax(1)
    confidence = np.full(len(labels), np.nan)
    known = scores[scored].astype(np.float64)
    confidence[scored] = (known if probabilities else softmax(known, axis=1)).max(1)
    return Classification(tuple(classes), labels, ranks, predicted, confidence)
