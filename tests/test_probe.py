"""The linear probe against scikit-learn, its sweep, and draws that only names decide."""

import numpy as np
import pytest
from pictures_on_disk import class_folders, small_clip
from sklearn.linear_model import LogisticRegression

from videoclip.errors import ImageError, VideoclipError
from videoclip.features import ImageFeatures
from videoclip.probe import (
    STRENGTHS,
    few_shot,
    few_shot_curve,
    fit,
    held_out,
    linear_probe,
    read_splits,
    select,
    sweep,
)


def features(count: int = 60, classes: int = 3, noise: float = 1.0, seed: int = 0) -> ImageFeatures:
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    values = numbers.normal(size=(count, 6)) * noise
    values[np.arange(count), labels] += 1.5
    names = np.array([f"{label}/{number:03d}" for number, label in enumerate(labels)])
    return ImageFeatures(values.astype(np.float32), labels, names, {})


def test_a_fit_is_scikit_learns() -> None:
    train = features()
    found, converged = fit(train, 0.316)
    wanted = LogisticRegression(C=0.316, max_iter=1000).fit(train.features, train.labels)
    assert converged
    assert np.abs(found.coef_ - wanted.coef_).max() < 1e-3
    assert not fit(train, 1e6, max_iter=2)[1]
    with pytest.raises(VideoclipError, match="at least two classes"):
        fit(select(train, train.labels == 0), 1.0)


def test_the_sweep_ends_where_every_strength_tried_would_have_led(monkeypatch) -> None:
    """With an accuracy that has one peak, the search finds the best of all 96 values."""
    import videoclip.probe as probe

    for planted in (0, 17, 50, 95):

        class Planted:
            def __init__(self, strength: float) -> None:
                self.strength = strength

            def predict(self, items: np.ndarray) -> np.ndarray:
                place = int(np.abs(STRENGTHS - self.strength).argmin())
                wrong = abs(place - planted)  # noqa: B023
                return np.where(np.arange(len(items)) < wrong, -1, 0)

        monkeypatch.setattr(probe, "fit", lambda _, c: (Planted(c), True))
        zeros = features(96, 1)
        assert sweep(zeros, zeros).strength == pytest.approx(STRENGTHS[planted])


def test_of_equal_strengths_the_smallest_is_taken() -> None:
    easy = features(noise=0.01)
    found = sweep(easy, easy)
    best = max(found.tried.values())
    assert found.strength == min(c for c, value in found.tried.items() if value == best)


def test_draws_depend_on_names_and_seed_alone() -> None:
    pool = features()
    turned = select(pool, np.random.default_rng(1).permutation(60))
    drawn = {seed: set(pool.names[few_shot(pool, 4, seed=seed)]) for seed in (0, 1)}
    assert set(turned.names[few_shot(turned, 4, seed=0)]) == drawn[0]
    assert drawn[0] != drawn[1]
    assert set(pool.names[few_shot(pool, 2, seed=0)]) < drawn[0]
    assert np.bincount(pool.labels[few_shot(pool, 4, seed=0)]).tolist() == [4, 4, 4]
    with pytest.raises(VideoclipError, match="has 20 readable training pictures, 21"):
        few_shot(pool, 21, seed=0)
    apart = held_out(pool)
    assert np.bincount(pool.labels[apart]).tolist() == [4, 4, 4]
    assert set(turned.names[held_out(turned)]) == set(pool.names[apart])


def test_from_pictures_to_the_curve(tmp_path) -> None:
    class_folders(tmp_path / "train", 6)
    class_folders(tmp_path / "test", 3, seed=1)
    (tmp_path / "test" / "red" / "0.png").write_bytes(b"x")
    (tmp_path / "train" / "red" / "0.png").write_bytes(b"x")
    splits = read_splits(small_clip(), tmp_path, store=tmp_path / "store")
    assert len(splits.train.labels) + len(splits.validation.labels) == 17
    assert "unreadable, left out of train: red/0.png" in splits.notes[0]
    assert "C was chosen on 3 of the 17 training pictures" in splits.notes[1]
    found = linear_probe(splits)
    assert found.result.counts() == "expected 9 = scored 8 + 1 bad"
    assert found.result.metrics()["top-1"] == pytest.approx(100 * 8 / 9)  # colors are easy
    curve = few_shot_curve(splits, (1, 2), (0, 1))
    assert {count: len(results) for count, results in curve.items()} == {1: 2, 2: 2}
    assert curve[2][0].metrics()["top-1"] > 60
    with pytest.raises(VideoclipError, match="ask for fewer"):
        few_shot_curve(splits, (4,), (0,))


def test_a_validation_split_is_used_and_other_classes_are_refused(tmp_path) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, 2)
    splits = read_splits(small_clip(), tmp_path)
    assert len(splits.validation.labels) == 6
    assert splits.notes == []
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rose")
    with pytest.raises(ImageError, match="have different class folders"):
        read_splits(small_clip(), tmp_path)
