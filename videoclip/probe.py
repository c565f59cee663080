"""Image features -> a linear classifier: the linear probe and its few-shot form.

Logistic regression by scikit-learn's L-BFGS on features that are extracted once, its strength
chosen on a validation split (Radford et al. 2021, section 3.2 and appendix A.3).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from videoclip.classification import Classification, classification
from videoclip.errors import ImageError, VideoclipError
from videoclip.features import ImageFeatures, extract
from videoclip.images import SPLITS, ImageSet, image_set
from videoclip.model import VideoCLIP
from videoclip.randomness import generator

STRENGTHS = np.logspace(-6, 6, 96)
"""The values of C that the sweep may end at."""
STARTS = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
"""Near these the sweep begins; around the best the step is then halved until it is one value."""
SHOTS = (1, 2, 4, 8, 16)
"""Pictures per class of the few-shot figure (Radford et al. 2021, figure 6)."""
VALIDATION = 0.2
"""The share of train that is held out where there is no validation split."""


class Sweep(NamedTuple):
    """How the strength of a probe was found."""

    strength: float
    """C of scikit-learn, the inverse of the L2 penalty."""
    tried: dict[float, float]
    """Every C that was tried, with the accuracy on validation in percent."""
    unconverged: int
    """How many of these fits ended at the limit of iterations."""


def sweep(train: ImageFeatures, validation: ImageFeatures, *, label: str = "probe") -> Sweep:
    """The C that is best on validation; of equally good ones the smallest, the most cautious."""
    tried: dict[int, float] = {}
    unconverged = 0
    bar = tqdm(desc=f"choosing C for the {label}", unit="fit")

    def accuracy(place: int) -> None:
        nonlocal unconverged
        if place not in tried:
            model, converged = fit(train, STRENGTHS[place])
            unconverged += not converged
            right = model.predict(validation.features) == validation.labels
            tried[place] = 100 * float(right.mean())
            bar.update()

    def best() -> int:
        return max(tried, key=lambda place: (tried[place], -place))

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


def read_splits(
    model: VideoCLIP,
    data: str | Path,
    *,
    classes: Path | None = None,
    store: Path | None = None,
    batch_size: int = 64,
    download: bool = False,
) -> Splits:
    """The features before the projection of a data set's train, validation and test pictures.

    Raises ImageError where train or test is missing, or their classes differ.
    """
    found: dict[str, ImageFeatures] = {}
    sets: dict[str, ImageSet] = {}
    for split in SPLITS:
        try:
            sets[split] = image_set(data, split=split, classes=classes, download=download)
        except ImageError:
            if split != "val":
                raise
            continue
        found[split] = extract(
            model, sets[split], store=store, batch_size=batch_size, before_projection=True,
            label=sets[split].name,
        )  # fmt: skip
    if len({images.classes for images in sets.values()}) > 1:
        raise ImageError(f"the splits of {data} have different class folders")
    notes = [
        f"unreadable, left out of {split}: {name}: {reason}"
        for split in ("train", "val")
        if split in found
        for name, reason in found[split].unreadable.items()
    ]
    train = found["train"]
    if "val" in found:
        return Splits(train, found["val"], found["test"], sets["test"], notes)
    apart = held_out(train)
    notes.append(f"C was chosen on {apart.sum()} of the {len(apart)} training pictures, held out")
    return Splits(
        select(train, ~apart), select(train, apart), found["test"], sets["test"], notes
    )  # fmt: skip


def linear_probe(splits: Splits) -> Probe:
    """Chooses C on validation, fits train and validation together, classifies test."""
    found = sweep(splits.train, splits.validation, label="linear probe")
    model, converged = fit(joined(splits.train, splits.validation), found.strength)
    notes = []
    if found.unconverged or not converged:
        notes.append(
            f"{found.unconverged} of the {len(found.tried)} fits that chose C ended at the limit "
            f"of iterations, the last one {'converged' if converged else 'did too'}"
        )
    return Probe(splits.result(model), found, notes)


def few_shot_curve(
    splits: Splits, shots: Sequence[int] = SHOTS, seeds: Sequence[int] = (0, 1, 2)
) -> dict[int, list[Classification]]:
    """Probes on K pictures per class: {K: a result per seed}.

    C is chosen on up to four further pictures per class, as CoOp does it (Zhou et al. 2022); the
    last fit sees the K alone.

    Raises VideoclipError where a class has too few pictures.
    """
    pool = joined(splits.train, splits.validation)
    curve: dict[int, list[Classification]] = {}
    for count in shots:
        curve[count] = []
        for seed in seeds:
            further = min(count, 4)
            drawn = few_shot(pool, count + further, seed=seed).reshape(-1, count + further)
            train = select(pool, drawn[:, :count].ravel())
            validation = select(pool, drawn[:, count:].ravel())
            found = sweep(train, validation, label=f"{count}-shot probe, seed {seed}")
            curve[count].append(splits.result(fit(train, found.strength)[0]))
    return curve


def held_out(features: ImageFeatures, *, share: float = VALIDATION, seed: int = 0) -> np.ndarray:
    """Which items (N,) bool are held out for validation: the same share of every class.

    A function of (seed, class, names), so the order of the files does not matter. A class with one
    item keeps it for training.
    """
    chosen = np.zeros(len(features.labels), dtype=bool)
    for label in np.unique(features.labels):
        order = _order(features, label, f"validation {seed}")
        chosen[order[: round(share * len(order))]] = True
    return chosen


def few_shot(features: ImageFeatures, shots: int, *, seed: int) -> np.ndarray:
    """The items of a draw with `shots` per class, as indices; of the same seed more hold fewer.

    A function of (seed, class, names), so the order of the files does not matter.

    Raises VideoclipError, naming how many there are, where a class has too few.
    """
    drawn = []
    for label in np.unique(features.labels):
        order = _order(features, label, f"shots {seed}")
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


def _order(features: ImageFeatures, label: int, purpose: str) -> np.ndarray:
    """The items of a class in a random order that follows from their names."""
    items = np.flatnonzero(features.labels == label)
    items = items[np.argsort(features.names[items], kind="stable")]
    return generator("probe", purpose, int(label)).permutation(items)


def joined(first: ImageFeatures, second: ImageFeatures) -> ImageFeatures:
    """Two sets as one."""
    return ImageFeatures(
        np.concatenate([first.features, second.features]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.names, second.names]),
        first.unreadable | second.unreadable,
    )
