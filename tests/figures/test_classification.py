"""Classification metrics against torchmetrics, and what they must say where items are missing."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from videoclip.figures.classification import classification

CLASSES = tuple("abcdefgh")


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, 8, 300)
    scores = numbers.normal(size=(300, 8)).astype(np.float32)
    scores[np.arange(300), labels] += 1.2
    return scores, labels


def test_metrics_are_those_of_torchmetrics(scored) -> None:
    scores, labels = scored
    found = classification(scores, labels, CLASSES)
    logits, target = torch.tensor(scores), torch.tensor(labels)
    metrics = found.metrics()
    for name, options in {
        "top-1": {"average": "micro"},
        "top-5": {"average": "micro", "top_k": 5},
        "mean per class": {"average": "macro"},
    }.items():
        wanted = 100 * multiclass_accuracy(logits, target, num_classes=8, **options)
        assert metrics[name] == pytest.approx(float(wanted), abs=1e-4), name
    wanted = multiclass_calibration_error(logits.softmax(1), target, num_classes=8, n_bins=15)
    assert metrics["calibration error"] == pytest.approx(100 * float(wanted), abs=1e-4)
    confusion = multiclass_confusion_matrix(logits, target, num_classes=8)
    assert (found.confusion() == confusion.numpy()).all()


def test_the_interval_holds_the_figure_and_narrows_with_more_items(scored) -> None:
    scores, labels = scored
    few, many = (classification(scores[:n], labels[:n], CLASSES) for n in (60, 300))
    low, high = few.intervals()["top-1"][1:]
    assert low < few.metrics()["top-1"] < high
    assert np.subtract(*many.intervals()["top-1"][:0:-1]) < high - low


def test_the_interval_of_the_mean_per_class_is_scipys(scored) -> None:
    scores, labels = scored
    kept = labels < 4
    few = (labels < 2) & (np.arange(300) % 3 == 0)  # classes of unequal size
    kept &= few | (labels >= 2)
    found = classification(scores[kept], labels[kept], CLASSES)
    hits = [100 * found.hits(1)[found.labels == label] for label in range(4)]
    wanted = stats.bootstrap(
        hits, lambda *parts, axis: np.mean([part.mean(axis) for part in parts], axis=0),
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    mean, low, high = found.intervals()["mean per class"]
    assert mean == pytest.approx(found.metrics()["mean per class"])
    assert (low, high) == pytest.approx(tuple(wanted), abs=1)
    alone = classification(scores[:1], labels[:1], CLASSES).intervals()
    assert all(np.isnan(interval.low) for interval in alone.values())


def test_items_of_one_source_are_drawn_together(scored) -> None:
    scores, labels = scored
    right = classification(scores, labels, CLASSES).hits(1)
    # Sources whose items are all right or all wrong: ten are known, and not three hundred.
    order = np.argsort(right, kind="stable")
    groups = np.empty(300, dtype=object)
    groups[order] = [f"source {place // 30}" for place in range(300)]
    found = classification(scores, labels, CLASSES)
    alone, together = found.intervals(), found.intervals(list(groups))
    assert "mean per class" not in together
    assert together["top-1"].mean == pytest.approx(alone["top-1"].mean)
    widths = [drawn["top-1"].high - drawn["top-1"].low for drawn in (alone, together)]
    assert widths[1] > 3 * widths[0]
    table = found.per_group(list(groups)).set_index("group")
    assert table["items"].tolist() == [30] * 10
    for name, line in table.iterrows():
        assert line["top-1"] == pytest.approx(100 * right[groups == name].mean())


def test_what_was_not_read_counts_as_wrong(scored) -> None:
    scores, labels = scored
    right = classification(scores, labels, CLASSES).hits(1).sum()
    gone = scores.copy()
    gone[np.flatnonzero(scores.argmax(1) == labels)[:10]] = np.nan
    found = classification(gone, labels, CLASSES)
    assert found.metrics()["top-1"] == pytest.approx(100 * (right - 10) / 300)
    assert found.counts() == "expected 300 = scored 290 + 10 bad"
    assert (found.predicted == -1).sum() == 10
    assert found.confusion().sum() == 290


def test_a_tie_of_all_classes_is_chance() -> None:
    found = classification(np.zeros((40, 8)), np.arange(40) % 8, CLASSES)
    assert found.metrics()["top-1"] == pytest.approx(100 / 8)
    assert found.metrics()["top-5"] == pytest.approx(500 / 8)
    # The first class must not look calibrated better than the last.
    first, last = (classification(np.zeros((9, 8)), np.full(9, k), CLASSES) for k in (0, 7))
    assert first.calibration_error() == last.calibration_error() == pytest.approx(0)


def test_a_class_without_items_does_not_spoil_the_mean() -> None:
    found = classification(np.eye(8)[[0, 0, 1]], np.array([0, 0, 2]), CLASSES)
    assert found.metrics()["mean per class"] == 50
    assert found.per_class().loc[2, "taken for"] == "b"


def test_wrong_arguments_are_named(scored) -> None:
    scores, labels = scored
    with pytest.raises(ValueError, match="there are 7 classes"):
        classification(scores, labels, CLASSES[:7])
    with pytest.raises(ValueError, match="no item has scores"):
        classification(np.full((2, 8), np.nan), labels[:2], CLASSES)
    scores[0, (labels[0] + 1) % 8] = np.nan
    with pytest.raises(ValueError, match="a part of the classes"):
        classification(scores, labels, CLASSES)
