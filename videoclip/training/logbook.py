"""The numbers of a training run as it goes: metrics.jsonl, and the same in TensorBoard's files."""

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
CURVE = "curve.png"
BLUE, ORANGE = "#0072B2", "#D55E00"
"""Of Okabe and Ito's palette, which color-blind readers can tell apart."""


class Logbook:
    """Writes every number into both files of a run folder.

    A run that goes on from step `done` takes back what an earlier process wrote after it, so that
    no step stands there twice.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        kept = [line for line in read_metrics(folder) if line["step"] <= done]
        partial = self.path.with_suffix(".part")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)
        self.writer = SummaryWriter(str(folder / EVENTS), purge_step=done + 1)

    def write(self, step: int, epoch: int, **values: float) -> None:
        """Adds a line. Both files hold it at once, for who watches and for who is killed."""
        line = json.dumps({"step": step, "epoch": epoch, **values}, allow_nan=False)
        with self.path.open("a") as file:
            file.write(line + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        self.writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; the last one is left out where a kill cut it off."""
    path = folder / METRICS
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def curve(folder: Path, title: str, steps_per_epoch: int) -> None:
    """Draws loss and zero-shot accuracy against epochs into curve.png."""
    lines = read_metrics(folder)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="epoch", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = []
    for name, label, color, side in (
        ("loss", "training loss", BLUE, axes),
        ("zero_shot", "zero-shot top-1, %", ORANGE, axes.twinx()),
    ):
        points = [(line["step"] / steps_per_epoch, line[name]) for line in lines if name in line]
        if not points:
            side.set_axis_off()
            continue
        style = {"marker": "o", "markersize": 3} if len(points) < 60 else {}
        drawn += side.plot(*zip(*points, strict=True), color=color, label=label, **style)
        side.set_ylabel(label, color=color)
        side.tick_params(axis="y", colors=color)
        side.set_ylim(bottom=0, top=100 if name == "zero_shot" else None)
        side.spines["top"].set_visible(False)
    if drawn:
        figure.legend(handles=drawn, loc="outside lower center", ncols=2, frameon=False)
    partial = folder / "curve.part.png"
    figure.savefig(partial, dpi=150)
    partial.replace(folder / CURVE)
