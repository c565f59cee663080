"""Classification results -> pictures: confusion, calibration, accuracy against shots."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from videoclip.figures.classification import BINS, Classification

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#555555"
"""Of Okabe and Ito's palette, which color-blind readers can tell apart."""
SHOWN = 40
"""Classes that a confusion picture has room for."""
CELLS = 15
"""With so few classes or fewer, the numbers stand in the cells."""
SPAN = 10
"""The few-shot figure shows at least so many percent, or noise would look like a slope."""


def confusion_chart(result: Classification, path: Path) -> None:
    """What was taken for what, in percent of a class; of many classes the most confused ones."""
    counts = result.confusion()
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown, title = np.arange(len(counts)), "What is taken for what (% of a class)"
    if len(shown) > SHOWN:
        shown = _most_confused(share)
        title += f"\nthe {SHOWN} most confused of {len(counts)} classes"
    names = [_short(result.classes[i]) for i in shown]
    side = max(4.5, 0.28 * len(shown) + 2.5)
    figure = _figure(side, side)
    axes = figure.subplots()
    image = axes.imshow(share[np.ix_(shown, shown)], cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(shown)), names, rotation=90)
    axes.set_yticks(range(len(shown)), names)
    axes.set(xlabel="taken for", ylabel="is", title=title)
    if len(shown) <= CELLS:
        for row, own in enumerate(shown):
            for column, other in enumerate(shown):
                value = share[own, other]
                color = "white" if value > 55 else GRAY
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, shrink=0.8, label="%")
    _save(figure, path)


def _most_confused(share: np.ndarray) -> np.ndarray:
    """The `SHOWN` classes of the largest confusions, both of each, in the order of the classes."""
    wrong = share.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[: SHOWN**2]
    places = np.stack(np.unravel_index(largest, wrong.shape), axis=1).ravel()
    return np.sort(list(dict.fromkeys(places.tolist()))[:SHOWN])


def calibration_chart(result: Classification, path: Path) -> None:
    """How often answers of a confidence are right, and how many such answers there are."""
    bins = result.calibration()
    centers = (np.arange(BINS) + 0.5) / BINS
    figure = _figure(5, 5)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="perfectly calibrated")
    upper.bar(centers, [b.accuracy for b in bins], width=0.9 / BINS, color=BLUE, label="right")
    upper.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins], "o", color=ORANGE, markersize=4,
        label="at the mean confidence",
    )  # fmt: skip
    error = 100 * result.calibration_error()
    upper.set(ylabel="share that is right", title=f"expected calibration error {error:.1f} %")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize="small")
    lower.bar(centers, [b.count for b in bins], width=0.9 / BINS, color=GRAY)
    lower.set(xlabel="confidence", ylabel="answers", xlim=(0, 1))
    _save(figure, path)


def few_shot_chart(
    shots: Mapping[int, list[float]],
    zero_shot: float | None,
    full: float | None,
    path: Path,
    *,
    title: str = "",
) -> None:
    """Accuracy against pictures per class, as in figure 6 of Radford et al. 2021.

    `shots` holds the accuracies in percent of every seed, `zero_shot` stands at 0 shots and `full`
    is the probe on the whole training set.
    """
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    places = [np.log2(count) + 1 for count in shots]
    means = [float(np.mean(values)) for values in shots.values()]
    low, high = ([end(values) for values in shots.values()] for end in (min, max))
    axes.fill_between(places, low, high, color=BLUE, alpha=0.15, linewidth=0)
    for place, values in zip(places, shots.values(), strict=True):
        axes.plot([place] * len(values), values, "o", color=BLUE, alpha=0.4, markersize=4)
    axes.plot(places, means, "o-", color=BLUE, markersize=6, label="linear probe, mean")
    axes.plot([], [], "o", color=BLUE, alpha=0.4, markersize=4, label="one seed")
    if full is not None:
        axes.axhline(full, color=GRAY, linestyle="--", label=f"probe on all of train: {full:.1f} %")
    if zero_shot is not None:
        axes.axhline(zero_shot, color=ORANGE, linewidth=0.8, linestyle=":")
        label = f"zero-shot: {zero_shot:.1f} %"
        axes.plot(
            [0], [zero_shot], "*", color=ORANGE, markersize=16, linestyle="", zorder=3, label=label
        )
    for place, mean, bottom in zip(places, means, low, strict=True):  # the lines lie mostly above
        axes.annotate(
            f"{mean:.1f}", (place, bottom), (0, -8), textcoords="offset points", ha="center",
            va="top", color=BLUE, fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    axes.set_xticks([0, *places], ["0", *map(str, shots)])
    axes.set(xlabel="labelled pictures per class", ylabel="top-1 (%)", title=title)
    shown = [*low, *high, *(value for value in (zero_shot, full) if value is not None)]
    span = max(shown) - min(shown)
    around = max(0.12 * span, (SPAN - span) / 2)
    limits = max(min(shown) - around, -1), min(max(shown) + around, 102)
    axes.set_ylim(limits)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_ylim(limits)  # ticks beyond the limits had moved them
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, path)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # not mathematics
    return name if len(name) <= 24 else name[:23] + "…"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
