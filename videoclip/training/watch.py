"""What people see of a run while it trains: a live line on a terminal, plain lines elsewhere."""

import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

GIB = 2**30
PAUSE = 0.2
"""Seconds between two drawings of the live line."""
TOLD = (
    ("loss", "loss {:.3f}"),
    ("learning_rate", "learning rate {:.2g}"),
    ("module_rate", "of new modules {:.2g}"),
    ("gradient_norm", "gradient {:.3g}"),
    ("samples_per_second", "{:.1f} {unit}/s"),
    ("waiting_for_data", "{:.0%} waiting for data"),
    ("memory", "{:.1f} GiB"),
    ("gpu_memory", "{:.1f} GiB on the GPU"),
    ("skipped", "{:.0f} skipped"),
    ("bad_steps", "{:.0f} bad steps"),
    ("validation", "validation {:.1f}"),
    ("zero_shot", "zero-shot {:.1f}"),
)
"""What is told, in this order, and how."""


class Watch:
    """The progress of a run on stderr; in processes other than the main one it says nothing."""

    def __init__(
        self, label: str, *, total: int, done: int, epochs: int, unit: str, silent: bool = False
    ) -> None:
        """`done` of `total` steps lie behind the run when it starts here."""
        self.label, self.total, self.done, self.epochs, self.unit = label, total, done, epochs, unit
        self.silent = silent
        self.console = Console(stderr=True)
        self._epoch, self._values = 0, dict[str, float]()
        self._from, self._began, self._drawn = done, time.monotonic(), 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Watch":
        if self.console.is_terminal and not self.silent:
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            self.console.print(self._picture())

    def _start(self) -> None:
        # Nothing refreshes it by itself: a thread must not hold a lock where readers are forked.
        self._live = Live(self._picture(), console=self.console, auto_refresh=False, transient=True)
        self._live.start(refresh=True)

    def show(self, done: int, epoch: int, values: Mapping[str, float]) -> None:
        """So many steps are behind the run; a line only where there are new numbers."""
        self.done, self._epoch = done, epoch
        self._values |= values
        now = time.monotonic()
        if self._live and (values or now - self._drawn > PAUSE):
            self._live.update(self._picture(), refresh=True)
            self._drawn = now
        elif values and not self._live:
            steps = f"step {done:,}/{self.total:,}"
            self.say(f"{self.label}: epoch {epoch}/{self.epochs}, {steps}, {self.told(values)}")

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.silent:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In this context the terminal belongs to others, such as the bar of an evaluation."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._start()

    def told(self, values: Mapping[str, float]) -> str:
        """Numbers in words."""
        found = [form.format(values[name], unit=self.unit) for name, form in TOLD if name in values]
        return ", ".join([*found, f"{self.left()} left"])

    def left(self) -> timedelta:
        """How long the run will still take, evaluations included, at the pace that it has here."""
        taken = time.monotonic() - self._began
        per_step = taken / max(self.done - self._from, 1)
        return timedelta(seconds=round(per_step * (self.total - self.done)))

    def _picture(self) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"{self.label}, epoch {self._epoch}/{self.epochs}", style="bold"),
            ProgressBar(total=max(self.total, 1), completed=self.done, width=30),
            f"{self.done:,}/{self.total:,} steps",
        )
        return Group(bar, Text(self.told(self._values)))


def memory() -> dict[str, float]:
    """GiB that this process holds now, and the most that it held on its GPU so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        held = int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    else:  # macOS counts bytes, and only the most that was held
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"memory": held / GIB}
    if torch.cuda.is_available():
        found["gpu_memory"] = torch.cuda.max_memory_allocated() / GIB
    return found
