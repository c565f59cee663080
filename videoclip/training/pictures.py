"""Pictures for whoever watches a training: a batch with its captions, and scores as a map."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from videoclip.types import Batch

CLIPS, FRAMES = 6, 8
"""How much of a batch is shown."""
LARGEST = 256
"""Rows and columns of a map; of more, evenly spaced ones are shown."""


def batch_picture(batch: Batch, captions: list[str]) -> np.ndarray:
    """Some clips of a batch, a row for each, with their names and captions: (H, W, 3) uint8."""
    count = min(CLIPS, len(batch.names))
    frames = min(FRAMES, batch.frames.mask.shape[1])
    figure = Figure(figsize=(max(1.3 * frames, 5), 1.6 * count), dpi=80, layout="constrained")
    grid = figure.subplots(count, frames, squeeze=False)
    for row in range(count):
        length = int(batch.frames.mask[row].sum())
        shown = np.linspace(0, length - 1, min(frames, length)).round().astype(int)
        for axes in grid[row]:
            axes.set_axis_off()
        for axes, place in zip(grid[row], shown, strict=False):
            axes.imshow(_visible(batch.frames.pixels[row, place]))
        told = f"{batch.names[row]}: {captions[row]}"
        told = told if len(told) <= 100 else told[:99] + "…"
        grid[row][0].set_title(told, loc="left", fontsize=9, parse_math=False)
    return _pixels(figure)


def score_map(scores: np.ndarray, columns: str) -> np.ndarray:
    """Scores (Q, V) as a picture (H, W, 3) uint8; what has none (NaN) is gray.

    Where queries stand in the order of their answers, a good model draws a diagonal.
    """
    rows, places = (
        np.unique(np.linspace(0, size - 1, min(size, LARGEST)).round().astype(int))
        for size in scores.shape
    )
    figure = Figure(figsize=(6, 5), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=columns, ylabel="queries")
    axes.set_facecolor("0.8")
    extent = (-0.5, scores.shape[1] - 0.5, scores.shape[0] - 0.5, -0.5)
    shown = scores[np.ix_(rows, places)]
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", extent=extent)
    figure.colorbar(image, label="score")
    return _pixels(figure)


def _visible(pixels: torch.Tensor) -> np.ndarray:
    """A frame (3, H, W) as matplotlib shows it; a normalized one is stretched to all brightness."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = (255 * (pixels - low) / (high - low).clamp(min=1e-6)).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
