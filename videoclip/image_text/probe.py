"""Image features -> a linear classifier: the linear probe and its few-shot form.

Logistic regression by scikit-learn's L-BFGS on features that are extracted once, its strength
chosen on a validation split (Radford et al. 2021, section 3.2 and appendix A.3).
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from videoclip.errors import ImageError, SplitError, VideoclipError
from videoclip.figures.classification import Classification, classification
from videoclip.figures.intervals import Interval, mean_interval
from videoclip.image_text.features import ImageFeatures, extract
from videoclip.image_text.images import SPLITS, ImageSet, image_set
from videoclip.model import VideoCLIP
from videoclip.randomness import generator

STRENGTHS = np.logspace(-6, 6, 96)
"""The values of C that the sweep may end at."""
STARTS = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
"""Near these the sweep begins; around the best the step is then halved until it is one value."""
SHOTS = (1, 2, 4, 8, 16)
"""Pictures per class of the few-shot figure (Radford et al. 2021, figure 6)."""
VALIDATION = 0.2
"""The share of every class of train that is held out where there is no validation split, and
before that for test where there are no splits at all."""
FURTHER = 4
"""At most so many further pictures per class choose C for a few-shot probe (Zhou et al. 2022)."""


class Sweep(NamedTuple):
    """How the strength of a probe was found."""

    strength: float
    """C of scikit-learn, the inverse of the L2 penalty."""
    tried: dict[float, float]
    """Every C that was tried, with the accuracy on validation in percent."""
    unconverged: int
    """How many of these fits ended at the limit of iterations."""


def sweep(train: ImageFeatures, validation: ImageFeatures, *, label: str = "probe") -> Sweep:
    """The C that is best on validation; of equally good ones the one nearest to 1.

    The ends are no place to be without a reason: at 1e-6 a fit may stop where it starts, having
    learned nothing, and at 1e6 nothing is regularized.
    """
    tried: dict[int, float] = {}
    unconverged = 0
    bar = tqdm(desc=f"choosing C for the {label}", unit="fit", leave=False)

    def accuracy(place: int) -> None:
        nonlocal unconverged
        if place not in tried:
            model, converged = fit(train, STRENGTHS[place])
            unconverged += not converged
            right = model.predict(validation.features) == validation.labels
            tried[place] = 100 * float(right.mean())
            bar.update()

    def best() -> int:
        return max(tried, key=lambda place: (tried[place], -abs(np.log(STRENGTHS[place])), -place))

    for start in STARTS:
        accuracy(int(np.abs(np.log(STRENGTHS / start)).argmin()))
    step = len(STRENGTHS) // (len(STARTS) - 1) // 2
    while step:
        around = best()
        for place in (around - step, around + step):
            if 0 <= place < len(STRENGTHS):
                accuracy(place)
        step //= 2
    bar.close()
    found = {float(STRENGTHS[place]): value for place, value in sorted(tried.items())}
    return Sweep(float(STRENGTHS[best()]), found, unconverged)


def fit(
    train: ImageFeatures, strength: float, *, max_iter: int = 1000
) -> tuple[LogisticRegression, bool]:
    """A logistic regression on features as they are, and whether it converged.

    Raises VideoclipError where there are fewer than two classes.
    """
    if len(np.unique(train.labels)) < 2:
        raise VideoclipError("a probe needs readable training pictures of at least two classes")
    model = LogisticRegression(C=strength, max_iter=max_iter)
    # Its many small products are up to 250 times slower on two busy cores than on one.
    with threadpool_limits(1), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.features, train.labels)
    return model, not any(issubclass(w.category, ConvergenceWarning) for w in raised)


def probe_scores(model: LogisticRegression, features: np.ndarray, classes: int) -> np.ndarray:
    """Features (N, D) -> probabilities (N, classes); a class without training items gets 0."""
    found = np.zeros((len(features), classes))
    found[:, model.classes_] = model.predict_proba(features)
    return found


class Splits(NamedTuple):
    """The features of a data set; validation may be a part of what train was."""

    train: ImageFeatures
    validation: ImageFeatures
    test: ImageFeatures
    images: ImageSet
    """The test pictures, the unreadable ones among them."""
    notes: list[str]
    """Where the validation pictures come from, and what could not be read."""

    def result(self, model: LogisticRegression) -> Classification:
        """All test pictures under a classifier; the unreadable ones count as wrong."""
        scores = np.full((len(self.images), len(self.images.classes)), np.nan)
        rows = self.images.places(self.test.names)
        scores[rows] = probe_scores(model, self.test.features, scores.shape[1])
        return classification(scores, self.images.labels, self.images.classes, probabilities=True)


class Probe(NamedTuple):
    """A linear probe, evaluated."""

    result: Classification
    sweep: Sweep
    notes: list[str]
    """What did not converge."""


class FewShot(NamedTuple):
    """Linear probes on K pictures per class, evaluated."""

    results: dict[int, list[Classification]]
    """For every K a result per seed."""
    strengths: dict[int, list[float]]
    """The C of each."""
    notes: list[str]
    """What did not converge."""

    def accuracy(self, shots: int) -> Interval:
        """Top-1 in percent, the mean over seeds, with its 95 % interval over test pictures."""
        hits = np.stack([100 * result.hits(1) for result in self.results[shots]])
        return mean_interval(hits, np.arange(hits.shape[1]))


def read_splits(
    model: VideoCLIP,
    data: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    classes: Path | None = None,
    store: Path | None = None,
    batch_size: int = 64,
    download: bool = False,
) -> Splits:
    """The features before the projection of a data set's train, validation and test pictures.

    `splits` are their names in the data set. Without a validation split, a part of train becomes
    it; without any split, pictures are dealt out by their names; the notes say so.

    Raises ImageError where train or test is missing, or their classes differ, VideoclipError where
    features are not numbers.
    """
    sets, notes = _sets(data, splits, classes, download)
    found: dict[str, ImageFeatures] = {}
    for split, images in sets.items():
        found[split] = extract(
            model, images, store=store, batch_size=batch_size, before_projection=True,
            label=images.name,
        )  # fmt: skip
        if not np.isfinite(found[split].features).all():
            raise VideoclipError(
                f"features of {images.name} are not numbers (NaN): the weights hold such values, "
                "or overflow in half precision; load other weights, or convert them to float32"
            )
        if split != "test":
            bad = found[split].unreadable.items()
            notes += [f"unreadable, left out of {split}: {name}: {why}" for name, why in bad]
    train, test = found["train"], sets["test"]
    if "val" in found:
        validation = found["val"]
    else:
        apart = held_out(train)
        notes.append(
            f"C was chosen on {apart.sum()} of the {len(apart)} training pictures, held out"
        )
        train, validation = select(train, ~apart), select(train, apart)
    known = {*train.labels.tolist(), *validation.labels.tolist()}
    unknown = [test.classes[label] for label in np.unique(test.labels) if label not in known]
    if unknown:
        notes.append(
            f"no readable training picture, so test pictures count as wrong: {', '.join(unknown)}"
        )
    return Splits(train, validation, found["test"], test, notes)


def _sets(
    data: str | Path, splits: Sequence[str], classes: Path | None, download: bool
) -> tuple[dict[str, ImageSet], list[str]]:
    """The pictures of train, of test, and of val where there is one, and what had to be decided."""
    train, val, test = splits
    if train == test:
        raise ImageError(f"train and test are both the split {test!r}; give two that differ")
    whole = image_set(data, split=train, classes=classes, download=download)
    notes, read = [], [whole]
    if whole.split is None:
        apart = _apart(whole.labels, np.array(whole.names), "test")
        sets = {
            "train": whole.part(np.flatnonzero(~apart), "train"),
            "test": whole.part(np.flatnonzero(apart), "test"),
        }
        if not len(sets["test"]):
            raise ImageError(f"{data} has no splits and too few pictures of a class to make them")
        notes.append(
            f"{whole.name} has no splits; pictures were dealt out by their names: "
            f"{len(sets['train'])} train, {len(sets['test'])} test"
        )
    else:
        sets = {
            "train": whole,
            "test": image_set(data, split=test, classes=classes, download=download),
        }
        if val not in (train, test):
            with suppress(SplitError):
                sets["val"] = image_set(data, split=val, classes=classes, download=download)
        if len({images.classes for images in sets.values()}) > 1:
            raise ImageError(f"the splits of {data} have different class folders")
        read = list(sets.values())
    notes += [
        f"left out of {images.name}: {images.left_out} files that are no pictures, hidden, or "
        "beside the class folders"
        for images in read
        if images.left_out
    ]
    return sets, notes


def linear_probe(splits: Splits) -> Probe:
    """Chooses C on validation, fits train and validation together, classifies test.

    Raises VideoclipError where there is nothing to choose it on.
    """
    if not len(splits.validation.labels):
        raise VideoclipError(
            "the classes have too few training pictures to hold some out, so there is nothing to "
            "choose C on; add pictures, or a folder val beside train"
        )
    found = sweep(splits.train, splits.validation, label="linear probe")
    model, converged = fit(joined(splits.train, splits.validation), found.strength)
    return Probe(splits.result(model), found, _unconverged("the linear probe", found, converged))


def few_shot_curve(
    splits: Splits, shots: Sequence[int] = SHOTS, seeds: Sequence[int] = (0, 1, 2)
) -> FewShot:
    """Probes on K pictures per class.

    C is chosen on up to four further pictures per class, as CoOp does it (Zhou et al. 2022); the
    last fit sees the K alone.

    Raises VideoclipError where a class has too few pictures.
    """
    pool = joined(splits.train, splits.validation)
    _require_enough(pool, splits.images.classes, max(shots))
    curve = FewShot({}, {}, [])
    bar = tqdm(total=len(shots) * len(seeds), desc="few-shot probes", unit="probe")
    for count in shots:
        results, strengths = [], []
        for seed in seeds:
            further = min(count, FURTHER)
            drawn = few_shot(pool, count + further, seed=seed).reshape(-1, count + further)
            train = select(pool, drawn[:, :count].ravel())
            validation = select(pool, drawn[:, count:].ravel())
            name = f"{count}-shot probe, seed {seed}"
            found = sweep(train, validation, label=name)
            model, converged = fit(train, found.strength)
            results.append(splits.result(model))
            strengths.append(found.strength)
            curve.notes.extend(_unconverged(f"the {name}", found, converged))
            bar.update()
        curve.results[count], curve.strengths[count] = results, strengths
    bar.close()
    return curve


def _require_enough(pool: ImageFeatures, classes: Sequence[str], shots: int) -> None:
    labels, counts = np.unique(pool.labels, return_counts=True)
    needed = shots + min(shots, FURTHER)
    if counts.min() < needed:
        raise VideoclipError(
            f"the class {classes[labels[counts.argmin()]]!r} has {counts.min()} readable training "
            f"pictures; {shots} shots take {needed}, for {needed - shots} more choose C; ask for "
            "fewer with --shots"
        )


def _unconverged(name: str, found: Sweep, converged: bool) -> list[str]:
    """A sentence where a fit ended at the limit of iterations, or nothing."""
    if converged and not found.unconverged:
        return []
    last = "the last fit converged" if converged else "the last fit did too"
    return [
        f"{name}: {found.unconverged} of the {len(found.tried)} fits that chose C ended at the "
        f"limit of iterations; {last}"
    ]


def held_out(features: ImageFeatures, *, share: float = VALIDATION, seed: int = 0) -> np.ndarray:
    """Which items (N,) bool are held out for validation: the same share of every class.

    A function of (seed, class, names), so the order of the files does not matter. A class with one
    item keeps it for training.
    """
    return _apart(features.labels, features.names, f"validation {seed}", share)


def _apart(
    labels: np.ndarray, names: np.ndarray, purpose: str, share: float = VALIDATION
) -> np.ndarray:
    """The same share of every class, (N,) bool."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        order = _order(labels, names, label, purpose)
        chosen[order[: round(share * len(order))]] = True
    return chosen


def few_shot(features: ImageFeatures, shots: int, *, seed: int) -> np.ndarray:
    """The items of a draw with `shots` per class, as indices; of the same seed more hold fewer.

    A function of (seed, class, names), so the order of the files does not matter.

    Raises VideoclipError, naming how many there are, where a class has too few.
    """
    drawn = []
    for label in np.unique(features.labels):
        order = _order(features.labels, features.names, label, f"shots {seed}")
        if len(order) < shots:
            raise VideoclipError(
                f"class number {label} has {len(order)} readable training pictures, {shots} are "
                "asked for; ask for fewer with --shots"
            )
        drawn.append(order[:shots])
    return np.concatenate(drawn)


def select(features: ImageFeatures, chosen: np.ndarray) -> ImageFeatures:
    """Some of the items, by index or mask."""
    return features._replace(
        features=features.features[chosen],
        labels=features.labels[chosen],
        names=features.names[chosen],
    )


def _order(labels: np.ndarray, names: np.ndarray, label: int, purpose: str) -> np.ndarray:
    """The items of a class in a random order that follows from their names."""
    items = np.flatnonzero(labels == label)
    items = items[np.argsort(names[items], kind="stable")]
    return generator("probe", purpose, int(label)).permutation(items)


def joined(first: ImageFeatures, second: ImageFeatures) -> ImageFeatures:
    """Two sets as one."""
    return ImageFeatures(
        np.concatenate([first.features, second.features]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.names, second.names]),
        first.unreadable | second.unreadable,
    )
