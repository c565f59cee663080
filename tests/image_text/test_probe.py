"""The linear probe against scikit-learn, its sweep, and draws that only names decide."""

import numpy as np
import pytest
import torch
from pictures_on_disk import class_folders, small_clip
from sklearn.linear_model import LogisticRegression

from videoclip.errors import ImageError, VideoclipError
from videoclip.image_text.features import ImageFeatures
from videoclip.image_text.probe import (
    STRENGTHS,
    few_shot,
    few_shot_curve,
    fit,
    held_out,
    linear_probe,
    probe_scores,
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
    import videoclip.image_text.probe as probe

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


def test_of_equal_strengths_the_one_nearest_to_one_is_taken() -> None:
    easy = features(noise=0.01)
    found = sweep(easy, easy)
    best = max(found.tried.values())
    equal = [c for c, value in found.tried.items() if value == best]
    assert found.strength == min(equal, key=lambda c: (abs(np.log(c)), c))
    assert 0.5 < found.strength < 2


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
    assert {count: len(found) for count, found in curve.results.items()} == {1: 2, 2: 2}
    tops = [result.metrics()["top-1"] for result in curve.results[2]]
    assert min(tops) > 60
    low, mean, high = (curve.accuracy(2)[i] for i in (1, 0, 2))
    assert mean == pytest.approx(np.mean(tops))
    assert low < mean < high
    assert all(c in STRENGTHS for found in curve.strengths.values() for c in found)
    with pytest.raises(VideoclipError, match=r"'red' has 5 .*; 4 shots take 8.*ask for fewer"):
        few_shot_curve(splits, (1, 4), (0,))


def test_without_splits_test_pictures_are_never_trained_on(tmp_path) -> None:
    folder = class_folders(tmp_path / "colors", 10)
    splits = read_splits(small_clip(), folder)
    parts = [{*part.names} for part in splits[:3]]
    assert [len(part) for part in parts] == [18, 6, 6]
    assert len(set.union(*parts)) == 30
    assert splits.images.names == tuple(splits.test.names)
    assert "colors has no splits; pictures were dealt out by their names: 24 train, 6 test" in (
        splits.notes
    )
    again = read_splits(small_clip(), folder.rename(tmp_path / "elsewhere"))
    assert {*again.test.names} == parts[2]
    class_folders(tmp_path / "few", 2)
    with pytest.raises(ImageError, match="too few pictures"):
        read_splits(small_clip(), tmp_path / "few")


def test_splits_of_other_names_and_never_the_same_twice(tmp_path) -> None:
    class_folders(tmp_path / "train", 5)
    class_folders(tmp_path / "val", 2, seed=1)
    splits = read_splits(small_clip(), tmp_path, splits=("train", "val", "val"))
    assert splits.images.split == "val"
    assert (len(splits.train.labels), len(splits.validation.labels)) == (12, 3)
    with pytest.raises(ImageError, match="train and test are both the split 'val'"):
        read_splits(small_clip(), tmp_path, splits=("val", "train", "val"))
    (tmp_path / "test").mkdir()
    with pytest.raises(ImageError, match="test holds no class folders"):
        read_splits(small_clip(), tmp_path)


def test_a_damaged_validation_split_is_not_taken_for_none(tmp_path) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, 2)
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ImageError, match="none of the 6 pictures can be read"):
        read_splits(small_clip(), tmp_path)
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(ImageError, match=r"class folders of .*val hold no pictures"):
        read_splits(small_clip(), tmp_path)


def test_a_class_without_training_items_has_no_probability() -> None:
    known = features()
    model, _ = fit(select(known, known.labels != 1), 1.0)
    found = probe_scores(model, known.features, 3)
    assert (found[:, 1] == 0).all()
    assert np.abs(found[:, [0, 2]] - model.predict_proba(known.features)).max() == 0


def test_few_shot_fits_see_exactly_their_pictures(tmp_path, monkeypatch) -> None:
    class_folders(tmp_path / "train", 10)
    class_folders(tmp_path / "test", 1)
    splits = read_splits(small_clip(), tmp_path)
    real, seen = fit, []

    def watched(train: ImageFeatures, strength: float) -> tuple[LogisticRegression, bool]:
        seen.append({*train.names})
        return real(train, strength)

    monkeypatch.setattr("videoclip.image_text.probe.fit", watched)
    validated = []
    real_sweep = sweep
    monkeypatch.setattr(
        "videoclip.image_text.probe.sweep",
        lambda train, val, **_: validated.append({*val.names}) or real_sweep(train, val),
    )
    few_shot_curve(splits, (2, 5), (0,))
    small, large = (names for names in (seen[0], seen[-1]))
    assert (len(small), len(large)) == (2 * 3, 5 * 3)
    assert all(names in (small, large) for names in seen)
    assert small < large  # the draws of one seed hold each other
    assert [len(names) for names in validated] == [2 * 3, 4 * 3]
    assert not validated[0] & small
    assert not validated[1] & large


def test_what_a_probe_cannot_know_is_said(tmp_path) -> None:
    class_folders(tmp_path / "train", 2)
    class_folders(tmp_path / "test", 2)
    (tmp_path / "test" / "notes.png").write_bytes(b"x")
    for path in (tmp_path / "train" / "red").iterdir():
        path.write_bytes(b"x")
    splits = read_splits(small_clip(), tmp_path)
    assert any("count as wrong: red" in note for note in splits.notes)
    assert any("test: 1 files that are no pictures" in note for note in splits.notes)
    with pytest.raises(VideoclipError, match="nothing to choose C on"):
        linear_probe(splits)  # a fifth of two is none
    model = small_clip()
    with torch.no_grad():
        model.clip.visual.conv1.weight.fill_(torch.nan)
    with pytest.raises(VideoclipError, match="are not numbers"):
        read_splits(model, tmp_path)


def test_fits_that_did_not_converge_are_told(tmp_path, monkeypatch) -> None:
    class_folders(tmp_path / "train", 5)
    class_folders(tmp_path / "test", 1)
    splits = read_splits(small_clip(), tmp_path)
    assert linear_probe(splits).notes == []
    assert few_shot_curve(splits, (2,), (0,)).notes == []
    real = fit
    monkeypatch.setattr(
        "videoclip.image_text.probe.fit", lambda train, c: real(train, c, max_iter=1)
    )
    (note,) = linear_probe(splits).notes
    assert "fits that chose C ended at the limit of iterations; the last fit did too" in note
    (note,) = few_shot_curve(splits, (2,), (0,)).notes
    assert note.startswith("the 2-shot probe, seed 0: ")


def test_a_validation_split_is_used_and_other_classes_are_refused(tmp_path) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, 2)
    splits = read_splits(small_clip(), tmp_path)
    assert len(splits.validation.labels) == 6
    assert splits.notes == []
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rose")
    with pytest.raises(ImageError, match="have different class folders"):
        read_splits(small_clip(), tmp_path)
