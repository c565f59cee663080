"""A run as it goes: its numbers, in metrics.jsonl and for TensorBoard, and what went wrong."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from videoclip.errors import VideoclipError
from videoclip.types import Bad

METRICS = "metrics.jsonl"
BAD_STEPS = "bad_steps.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
EVENTS = "tensorboard"
CURVE = "curve.png"
BLUE, ORANGE = "#0072B2", "#D55E00"
"""Of Okabe and Ito's palette, which color-blind readers can tell apart."""


class Logbook:
    """Writes every number into both files of a run folder.

    A run that goes on takes back what an earlier process wrote after its last step, so that no step
    stands there twice.
    """

    def __init__(self, folder: Path, *, last: int, report: str = "tensorboard") -> None:
        """What was written of steps after `last` goes.

        Raises VideoclipError where `report` says wandb and that is not installed.
        """
        self.folder = folder
        with _room(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, BAD_STEPS, BAD_SAMPLES):
                _cut(folder / name, last)
            (folder / METRICS).touch()
            self.writer = (
                _WeightsAndBiases(folder)
                if report == "wandb"
                else SummaryWriter(str(folder / EVENTS), purge_step=last + 1)
            )

    def write(self, step: int, epoch: int, **values: float) -> None:
        """Adds a line. Both files hold it at once, for who watches and for who is killed."""
        self._append(METRICS, {"step": step, "epoch": epoch, **values})
        with _room(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def bad_step(self, step: int, epoch: int, reason: str, samples: Sequence[str]) -> None:
        """Notes a step that changed nothing, and the samples of all processes in it."""
        line = {"step": step, "epoch": epoch, "reason": reason, "samples": list(samples)}
        self._append(BAD_STEPS, line)

    def bad_sample(self, step: int, epoch: int, bad: Bad) -> None:
        """Notes a sample that could not be read, and which one was read in its place."""
        self._append(BAD_SAMPLES, {"step": step, "epoch": epoch, **bad._asdict()})

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Shows a picture (H, W, 3) uint8."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def text(self, name: str, step: int, markdown: str) -> None:
        """Shows a text."""
        self.writer.add_text(name, markdown, step)

    def compare_by(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Lets runs be compared by their settings and the last values of these metrics."""
        plain = {name: _plain(value) for name, value in flat(settings)}
        if isinstance(self.writer, _WeightsAndBiases):
            self.writer.run.config.update(plain)
            return
        # The public add_hparams would make a second run beside this one.
        for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
            self.writer._get_file_writer().add_summary(summary)
        self.writer.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        self.writer.close()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False)
        with _room(self.folder), (self.folder / name).open("a") as file:
            file.write(text + "\n")


class _WeightsAndBiases:
    """What the logbook asks of TensorBoard's writer, for Weights & Biases."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise VideoclipError(
                "--run.report wandb needs Weights & Biases, which is not installed: pip install "
                "wandb, or leave the option out"
            ) from error
        self.wandb = wandb
        name, own = f"{folder.parent.name}-{folder.name}", folder / "wandb.id"
        if not own.is_file():
            own.write_text(uuid.uuid4().hex)
        self.run = wandb.init(
            dir=str(folder), project="videoclip", name=name, id=own.read_text(), resume="allow"
        )
        self.run.define_metric("*", step_metric="training_step")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.run.log({name: value, "training_step": step})

    def add_image(self, name: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        self.run.log({name: self.wandb.Image(pixels), "training_step": step})

    def add_text(self, name: str, markdown: str, step: int) -> None:
        self.run.log({name: self.wandb.Html(f"<pre>{markdown}</pre>"), "training_step": step})

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.run.finish()


def flat(settings: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """A tree of settings as (dotted name, value)."""
    if not isinstance(settings, Mapping):
        yield where, settings
        return
    for name, value in settings.items():
        yield from flat(value, f"{where}.{name}".removeprefix("."))


def _plain(value: Any) -> bool | int | float | str:
    """What TensorBoard takes for a setting."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; the last one is left out where a kill cut it off."""
    return _lines(folder / METRICS)


def read_bad_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's bad_steps.jsonl."""
    return _lines(folder / BAD_STEPS)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _cut(path: Path, last: int) -> None:
    """Leaves the lines of the steps up to `last`."""
    if not path.is_file():
        return
    partial = path.with_suffix(".part")
    kept = [line for line in _lines(path) if line["step"] <= last]
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Raises VideoclipError where the disk refuses what is written inside."""
    try:
        yield
    except OSError as error:
        raise VideoclipError(
            f"the numbers of the run cannot be written in {folder}: {error}; make room and run the "
            "same command again, it goes on from the last state"
        ) from error


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
