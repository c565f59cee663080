"""Manifest -> Batch: every draw is a pure function.

Order, texts, frames and augmentation of a sample depend on (seed, epoch, video id) and on nothing
else: not on who reads it, nor on how many processes share a batch.
"""

import atexit
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videoclip.distributed import share
from videoclip.errors import VideoclipError
from videoclip.frames.augment import Recipe, augment, tells_sides
from videoclip.frames.mixing import mix as mixed
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.tasks import Texts
from videoclip.tokenizer import Tokenizer
from videoclip.types import Batch, Features, Frames


def collate(clips: Sequence[Tensor]) -> Frames | Features:
    """Clips of ragged length, padded with zeros at the end.

    Pixels (T, 3, H, W) become Frames, what a tower made of them, (T, D), Features.
    """
    longest = max(len(clip) for clip in clips)
    pixels = torch.zeros(len(clips), longest, *clips[0].shape[1:], dtype=clips[0].dtype)
    mask = torch.zeros(len(clips), longest, dtype=torch.bool)
    for row, clip in enumerate(clips):
        pixels[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return (Features if clips[0].ndim == 2 else Frames)(pixels, mask)


def batches(
    samples: Sequence[Clip],
    store: FrameStore,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    takes: int,
    texts: Callable[[Sequence[Clip], Sequence[np.random.Generator]], Texts],
    size: int,
    augment: Recipe = "crop",
    crop: float = 1.0,
    mix: Literal["none", "mixup-cutmix"] = "none",
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batches of an epoch from number `start` on, every sample once.

    Batches are of nearly equal size rather than leaving a small one at the end, where the
    contrastive loss would be easy; of each one the processes that share it take their parts.
    `texts` says what stands beside the clips; `size` is that of the tower's pictures, `crop` the
    smallest share of a frame's area that the recipe "crop" leaves. Where a label or caption says
    left or right nothing is mirrored.

    Raises VideoclipError where a clip can no longer be read or a worker dies.
    """
    order = generator(seed, epoch, "order").permutation(len(samples))
    chosen = np.array_split(order, number_of_batches(len(samples), batch_size))
    sides = augment.startswith("actionclip") and tells_sides(
        text for clip in samples for text in (clip.label or "", *clip.captions)
    )
    reader = _Reader(
        samples, store, tokenizer, chosen, takes=takes, texts=texts, size=size, recipe=augment,
        crop=crop, mirror=not sides, mixes=mix != "none", seed=seed, epoch=epoch,
    )  # fmt: skip
    for made in read_ahead(reader, range(start, len(chosen)), workers):
        if isinstance(made, VideoclipError):
            raise made
        yield made


def number_of_batches(clips: int, batch_size: int) -> int:
    """Batches of one epoch."""
    return max(1, -(-clips // batch_size))


class _Reader(Dataset):
    """The number of a batch -> this process's part of it, or the error that prevents it."""

    def __init__(
        self,
        samples: Sequence[Clip],
        store: FrameStore,
        tokenizer: Tokenizer,
        chosen: Sequence[np.ndarray],
        *,
        takes: int,
        texts: Callable[[Sequence[Clip], Sequence[np.random.Generator]], Texts],
        size: int,
        recipe: Recipe,
        crop: float,
        mirror: bool,
        mixes: bool,
        seed: int,
        epoch: int,
    ) -> None:
        self.samples, self.store, self.tokenizer, self.chosen = samples, store, tokenizer, chosen
        self.takes, self.texts, self.size, self.mixes = takes, texts, size, mixes
        self.key = {"seed": seed, "epoch": epoch}
        self.augment = partial(
            augment, size=size, recipe=recipe, smallest=crop, mirror=mirror, **self.key
        )

    def __getitem__(self, number: int) -> Batch | VideoclipError:
        rows = self.chosen[number]
        own = share(range(len(rows)))
        try:
            batch = self._batch(rows[list(own)])
            if not self.mixes:
                return batch
            after = None
            if len(own) < len(rows):  # what the next process has first; the last one's is the first
                after = self._batch(rows[[own.stop % len(rows)]])
            return mixed(batch, **self.key, step=number, after=after)
        except VideoclipError as error:  # an error that a worker raises would lose its plain words
            return error

    def _batch(self, rows: np.ndarray) -> Batch:
        clips = [self.samples[row] for row in rows]
        numbers = [generator(*self.key.values(), clip.video_id) for clip in clips]
        sentences, keys = self.texts(clips, numbers)
        pixels = []
        for clip, number in zip(clips, numbers, strict=True):
            frames = self.store.read(clip, self.takes, int(number.integers(self.takes)))
            if frames.ndim == 4:  # features are of frames that were changed already
                frames = self.augment(frames, sample=clip.video_id)
            pixels.append(frames)
        nothing = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        frames = collate(pixels or [nothing])
        frames = type(frames)(*(part[: len(pixels)] for part in frames[:2]))
        names = tuple(clip.video_id for clip in clips)
        return Batch(frames, self.tokenizer(list(sentences)), keys.matches(), names, keys)


def read_ahead(reader: Dataset, numbers: Sequence[Any], workers: int) -> Iterator[Any]:
    """What the reader has under these numbers, in their order, read ahead by so many processes.

    Raises VideoclipError where one of them dies.
    """
    loader = DataLoader(
        reader,
        batch_size=None,  # the reader makes whole batches, and they stay as they are
        collate_fn=_same,
        sampler=numbers,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # so that the loader draws nothing from the global one
    )
    running = [iter(loader)]
    # After an error its traceback may hold this generator, and Python would wait at its end for
    # readers that nobody has told to stop.
    atexit.register(running.clear)
    try:
        for _ in numbers:
            yield next(running[0])
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise VideoclipError(
            f"a process that reads samples has died: {error}; often memory is short, then fewer "
            "--data.workers help"
        ) from error
    finally:
        atexit.unregister(running.clear)
        running.clear()


def _same(made: Any) -> Any:
    return made


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach readers too; who trains then ends them in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
