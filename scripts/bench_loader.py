"""Times the loader: samples a second by the number of workers, what they cost to start, memory.

Run: .venv/bin/python scripts/bench_loader.py
"""

import dataclasses
import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from tqdm import tqdm

from videoclip.frames.augment import Recipe
from videoclip.frames.loader import Loader
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.tasks import Retrieval
from videoclip.tokenizer import Tokenizer

SOAKED = 32
"""Pixels and clips of the store by which memory is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Reads batches as training does, but trains nothing: how fast can they be had?

    The clips are small pictures that a frame store holds as training reads them. By the number of
    workers (0: the training process itself reads) the table shows samples a second in the second
    epoch, work of all processes in both epochs, and seconds until the first batch was there: of the
    first epoch, which starts the workers, and of the second, which finds them. The numbers of
    workers take turns. Where others use the machine, the work says more than the seconds.

    Then clips of 32 x 32 pixels pass through two workers, and it is shown what memory all three
    processes hold on the way (PSS: what they share counts once).
    """

    clips: int = 256
    """In an epoch."""
    frames: int = 8
    """Of a clip."""
    size: int = 224
    """Pixels of a side."""
    batch_size: int = 32
    """Clips of a batch."""
    augment: Recipe = "crop"
    """What is done with a clip."""
    workers: tuple[int, ...] = (0, 1, 2, 4)
    """Numbers of workers."""
    rounds: int = 3
    """Of which the medians are shown."""
    soak: int = 20_000
    """Clips that pass through while memory is looked at; 0: none."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures and prints the table."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__)
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(["", *speeds(options, Path(folder))]))
        if options.soak:
            print("\n".join(["", *memory(options, Path(folder) / "soak")]))


def speeds(options: Options, folder: Path) -> list[str]:
    """The table of the numbers of workers."""
    clips, store = filled(folder, options.clips, options.frames, options.size)
    found: dict[int, list[tuple[float, ...]]] = {workers: [] for workers in options.workers}
    for _ in tqdm(range(options.rounds), "measuring", unit="round"):
        for workers, times in found.items():
            loader = Loader(
                clips, store, Tokenizer(32), batch_size=options.batch_size, takes=1, crop=0.8,
                texts=Retrieval().texts, size=options.size, augment=options.augment,
                seed=0, workers=workers,
            )  # fmt: skip
            before = processor()
            (started, _), (kept, whole) = epoch(loader, 1), epoch(loader, 2)
            loader.close()
            times.append((started, kept, whole, processor() - before))
    lines = [
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {options.clips} clips of "
        f"{options.frames} frames, {options.size} pixels, batches of {options.batch_size}, augment "
        f"{options.augment}",
        "",
        "| workers | samples a second | processor, ms a sample | first batch, s | of epoch 2, s |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for workers, times in found.items():
        started, kept, whole, work = (median(column) for column in zip(*times, strict=True))
        lines.append(
            f"| {workers} | {options.clips / whole:.0f} | {500 * work / options.clips:.1f} | "
            f"{started:.2f} | {kept:.2f} |"
        )
    return lines


def processor() -> float:
    """Seconds of work of this process and of those that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def epoch(loader: Loader, number: int) -> tuple[float, float]:
    """Seconds until the first batch of an epoch was there, and until the last was."""
    began, first = time.perf_counter(), None
    for _ in loader.epoch(number):
        first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


def memory(options: Options, folder: Path) -> list[str]:
    """What the processes hold while many clips pass through."""
    clips, store = filled(folder, 1_000, 4, SOAKED)
    loader = Loader(
        clips, store, Tokenizer(32), batch_size=SOAKED, takes=1, crop=0.8,
        texts=Retrieval().texts, size=SOAKED, seed=0, workers=2,
    )  # fmt: skip
    lines, passed, due = ["| clips | MiB |", "| ---: | ---: |"], 0, 0
    bar = tqdm(desc="memory", total=options.soak, unit="clip")
    for number in range(1, 1 + -(-options.soak // len(clips))):
        for batch in loader.epoch(number):
            batch.frames.pixels.max()  # what nobody looks at would not count
            passed += len(batch.names)
            bar.update(len(batch.names))
            if passed >= due:
                gc.collect()
                lines.append(f"| {passed:,} | {held(loader):.1f} |")
                due += max(options.soak // 10, 1)
    bar.close()
    loader.close()
    return lines


def held(loader: Loader) -> float:
    """MiB that this process and those of the loader hold."""
    processes = [os.getpid(), *(line.process.pid for line in loader.ahead.lines)]
    texts = [Path(f"/proc/{number}/smaps_rollup").read_text() for number in processes]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts) / 1024


def filled(folder: Path, count: int, frames: int, size: int) -> tuple[list[Clip], FrameStore]:
    """So many clips of noise, and a store that holds them."""
    folder.mkdir(exist_ok=True)
    numbers, clips = np.random.default_rng(0), []
    store = FrameStore(folder / "frames", size=size, frames=frames)
    for number in range(count):
        path = folder / f"{number}.npy"
        path.write_bytes(b"kept already")
        clips.append(Clip(f"clip{number}", path, (f"clip number {number}",)))
        pixels = numbers.integers(0, 256, (1, frames, 3, size, size), dtype=np.uint8)
        np.save(store.folder / f"{store.key(clips[-1], 1)}.npy", pixels)
    return clips, store


if __name__ == "__main__":
    main(sys.argv[1:])
