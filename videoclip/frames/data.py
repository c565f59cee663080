"""Manifest -> Batch: clips are decoded once, and every draw is a pure function.

Order, texts, frames and augmentation of a sample depend on (seed, epoch, video id) and on nothing
else: not on who reads it, nor on how many processes share a batch.
"""

import atexit
import functools
import hashlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from videoclip.distributed import main_process, rank, share, world_size
from videoclip.errors import VideoclipError, VideoError
from videoclip.frames.augment import Recipe, augment, tells_sides
from videoclip.frames.decode import Video, open_video
from videoclip.frames.mixing import mix as mixed
from videoclip.frames.sampling import (
    Rule,
    frame_range,
    random_indices,
    repeated_indices,
    repeated_random_indices,
    second_indices,
    uniform_indices,
)
from videoclip.frames.transforms import StoredFit, resize_and_crop
from videoclip.frames.views import Views, crops_of, view_indices
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.tasks import Texts
from videoclip.tokenizer import Tokenizer
from videoclip.types import Batch, Frames

OPEN = 256
"""Arrays that are kept open; each takes one of the file descriptors, of which 1,024 are usual."""


class FrameStore:
    """The sampled frames of clips, decoded once into a folder of arrays.

    A clip is kept as (takes, T, 3, size, size) uint8; with fit "whole" its short side is `size` and
    nothing is cut off. Take 0 is the deterministic sample that evaluation reads; the others are
    random within segments and serve the epochs of training in turn. With the rule "seconds" there
    is nothing to draw, and all takes are the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        frames: int,
        fit: StoredFit = "crop",
        rule: Rule = "segments",
    ) -> None:
        self.folder, self.size, self.frames, self.fit, self.rule = folder, size, frames, fit, rule
        self.unreadable: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, clips: Sequence[Clip], takes: int, label: str) -> list[Clip]:
        """Decodes what is missing and returns the clips that can be read.

        The others are listed in `unreadable`, with the reason; a rerun tries them again.
        """
        return self._fill(clips, partial(self._decode, takes=takes), label)

    def read(self, clip: Clip, takes: int, take: int = 0) -> Tensor:
        """One take of a clip, (T, 3, size, size) uint8; of a whole one, (T, 3, h, w)."""
        if self.rule == "seconds":
            takes, take = 1, 0
        return torch.from_numpy(_array(self._path(clip, takes))[take].copy())

    def fill_views(self, clips: Sequence[Clip], views: Views, label: str) -> list[Clip]:
        """As `fill`, for views."""
        return self._fill(clips, partial(self._decode_views, views=views), label)

    def read_views(self, clip: Clip, views: Views) -> Tensor:
        """The views of a clip, (clips * crops, T, 3, S, S) uint8; the crops of a clip side by side.

        They are cut out of whole frames here; the store's own `size` and `fit` play no part.
        """
        whole = torch.from_numpy(_array(self._path(clip, views)).copy())
        return crops_of(whole, views).transpose(0, 1).flatten(0, 1)

    def _fill(self, clips: Sequence[Clip], decode: Callable[[Clip], str], label: str) -> list[Clip]:
        bad: dict[str, str] = {}
        # Processes that share a folder begin at different places and find the rest done.
        first = rank() * len(clips) // world_size()
        order = [*clips[first:], *clips[:first]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(
                pool.map(decode, order), f"decoding {label}", len(clips), unit="clip",
                disable=not main_process(),
            )  # fmt: skip
            for clip, reason in zip(order, bar, strict=True):
                if reason:
                    bad[clip.video_id] = reason
        self.unreadable |= bad
        return [clip for clip in clips if clip.video_id not in bad]

    def _path(self, clip: Clip, kept: int | Views) -> Path:
        """Where so many takes, or these views, of a clip are kept."""
        try:
            status = clip.path.stat()
        except OSError as error:
            raise VideoError(f"{clip.path} is no longer there: {error.strerror}") from error
        key: list[Any] = [str(clip.path), status.st_size, status.st_mtime_ns, clip.start, clip.end]
        if isinstance(kept, Views):
            key += [self.frames, self.rule, kept.clips, kept.short_side, kept.seconds, "views"]
        else:
            key += [self.size, self.frames, kept, self.fit, self.rule]
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"

    def _decode(self, clip: Clip, takes: int) -> str:
        def sample(video: Video) -> tuple[np.ndarray, Tensor]:
            samples = self._samples(video, clip, takes)
            wanted, places = np.unique(samples, return_inverse=True)
            pixels = resize_and_crop(video.read(wanted), self.size, self.fit)
            return places.reshape(samples.shape), pixels

        return self._keep(clip, takes if self.rule != "seconds" else 1, sample)

    def _samples(self, video: Video, clip: Clip, takes: int) -> np.ndarray:
        """Which frames of a video each take shows: (takes, T)."""
        if self.rule == "seconds":
            indices = second_indices(
                len(video.timestamps), video.rate, self.frames, start=clip.start, end=clip.end
            )
            return indices[None]
        first, last = frame_range(video.timestamps, clip.start, clip.end)
        middles, drawn = uniform_indices, random_indices
        if self.rule == "actionclip":
            middles, drawn = repeated_indices, repeated_random_indices
        samples = [middles(last - first, self.frames)] + [
            drawn(last - first, self.frames, seed=0, epoch=take, sample=clip.video_id)
            for take in range(1, takes)
        ]
        return first + np.stack(samples)

    def _decode_views(self, clip: Clip, views: Views) -> str:
        def sample(video: Video) -> tuple[np.ndarray, Tensor]:
            first, last = frame_range(video.timestamps, clip.start, clip.end)
            shown = video.timestamps[first:last]
            samples = first + view_indices(shown, self.frames, views, self.rule)
            wanted, places = np.unique(samples, return_inverse=True)
            pixels = resize_and_crop(video.read(wanted), views.short_side, "whole")
            return places.reshape(samples.shape), pixels

        return self._keep(clip, views, sample)

    def _keep(
        self,
        clip: Clip,
        kept: int | Views,
        sample: Callable[[Video], tuple[np.ndarray, Tensor]],
    ) -> str:
        """Writes what `sample` makes of the video, where it is not there; a reason, or nothing."""
        try:
            if clip.path.exists() and self._path(clip, kept).exists():
                return ""
            with open_video(clip.path) as video:
                places, pixels = sample(video)
            path = self._path(clip, kept)
        except VideoError as error:
            return str(error)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            with unfinished.open("wb") as file:
                np.save(file, pixels.numpy()[places])
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise VideoclipError(
                f"cannot keep the frames of {clip.video_id} in {self.folder}: {error}; "
                "free some space or choose another --output"
            ) from error
        return ""


@functools.lru_cache(maxsize=OPEN)
def _array(path: Path) -> np.ndarray:
    """An array of the store, kept open: a file is named by its content and never changes."""
    return np.load(path, mmap_mode="r")


def collate(clips: Sequence[Tensor]) -> Frames:
    """Clips (T, 3, H, W) of ragged length -> Frames, padded with zeros at the end."""
    longest = max(len(clip) for clip in clips)
    pixels = torch.zeros(len(clips), longest, *clips[0].shape[1:], dtype=clips[0].dtype)
    mask = torch.zeros(len(clips), longest, dtype=torch.bool)
    for row, clip in enumerate(clips):
        pixels[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return Frames(pixels, mask)


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
            pixels.append(self.augment(frames, sample=clip.video_id))
        nothing = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        frames = collate(pixels or [nothing])
        frames = Frames(*(part[: len(pixels)] for part in frames))
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
