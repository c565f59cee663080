"""Manifest -> Batch: every draw is a pure function.

Order, texts, frames and augmentation of a sample depend on (seed, epoch, video id) and on nothing
else: not on who reads it, nor on how many processes share a batch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoclip.distributed import share
from videoclip.errors import VideoclipError
from videoclip.frames.ahead import STUCK, ReadAhead
from videoclip.frames.augment import Recipe, augment, tells_sides
from videoclip.frames.mixing import mix as mixed
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.tasks import Texts
from videoclip.tokenizer import Tokenizer
from videoclip.types import Bad, Batch, Features, Frames

BadSamples = Literal["skip", "zero", "fail"]
"""What becomes of a sample that cannot be read."""
DRAWS = 20
"""So many others are drawn in place of one; where none can be read, it is not the samples."""


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


class Loader:
    """The batches of a training, read ahead by processes that stay from epoch to epoch.

    Batches are of nearly equal size rather than leaving a small one at the end, where the
    contrastive loss would be easy; of each one the processes that share it take their parts.

    A sample that can no longer be read stands in its batch's `bad`. skip: in its place is another
    one of the epoch, drawn by (seed, epoch, sample), with the text and the frames of its own turn,
    so that the two match where they meet. zero: the batch is smaller, or empty. fail: an error.
    """

    def __init__(
        self,
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
        bad_samples: BadSamples = "skip",
        seed: int,
        workers: int = 0,
        stuck_seconds: float = STUCK,
    ) -> None:
        """Without workers the calling process reads.

        `texts` says what stands beside the clips; `size` is that of the tower's pictures, `crop`
        the smallest share of a frame's area that the recipe "crop" leaves. Where a label or caption
        says left or right nothing is mirrored.
        """
        self.reader = _Reader(
            samples=samples, store=store, tokenizer=tokenizer, batch_size=batch_size, takes=takes,
            texts=texts, size=size, recipe=augment, crop=crop, mirror=mirrors(augment, samples),
            mixes=mix != "none", bad_samples=bad_samples, seed=seed,
        )  # fmt: skip
        self.ahead = ReadAhead(self.reader, workers, stuck_seconds=stuck_seconds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, every sample once.

        Raises VideoclipError where a sample cannot be read and the training is to fail then, where
        none of `DRAWS` others can be read, and where the processes that read die again and again.
        """
        parts = [share(range(len(rows))) for rows in self.reader.rows(epoch)]
        return self.ahead((epoch, n, parts[n]) for n in range(start, len(parts)))

    def close(self) -> None:
        """Ends the processes that read, as the end of the program does."""
        self.ahead.close()


def mirrors(recipe: Recipe, clips: Sequence[Clip]) -> bool:
    """Whether the recipe may mirror these training clips: none, where one says left or right."""
    return not recipe.startswith("actionclip") or not tells_sides(
        text for clip in clips for text in (clip.label or "", *clip.captions)
    )


def number_of_batches(clips: int, batch_size: int) -> int:
    """Batches of one epoch."""
    return max(1, -(-clips // batch_size))


@functools.lru_cache(maxsize=2)
def batches_of_epoch(samples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each batch of an epoch."""
    order = generator(seed, epoch, "order").permutation(samples)
    return np.array_split(order, number_of_batches(samples, batch_size))


class _Turn(NamedTuple):
    """When samples are read, and what is to be known about it."""

    epoch: int
    tell: Callable[[str], None]
    """Is told the name of each sample before it is read."""
    refused: Mapping[str, str]
    """Samples that are not read, and why."""


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Epoch, number of a batch and this process's places in it -> its part of the batch."""

    samples: Sequence[Clip]
    store: FrameStore
    tokenizer: Tokenizer
    batch_size: int
    takes: int
    texts: Callable[[Sequence[Clip], Sequence[np.random.Generator]], Texts]
    size: int
    recipe: Recipe
    crop: float
    mirror: bool
    mixes: bool
    bad_samples: BadSamples
    seed: int

    def rows(self, epoch: int) -> list[np.ndarray]:
        """Which samples each batch of an epoch has."""
        return batches_of_epoch(len(self.samples), self.batch_size, self.seed, epoch)

    def read(
        self,
        number: tuple[int, int, range],
        tell: Callable[[str], None],
        refused: Mapping[str, str],
    ) -> Batch:
        """See ahead.Reader."""
        epoch, place, own = number
        rows, turn = self.rows(epoch)[place], _Turn(epoch, tell, refused)
        batch = self._batch(rows[list(own)], turn)
        if not self.mixes:
            return batch
        after = self._after(rows, own.stop, turn) if len(own) < len(rows) else None
        return mixed(batch, seed=self.seed, epoch=epoch, step=place, after=after)

    def _after(self, rows: np.ndarray, stop: int, turn: _Turn) -> Batch | None:
        """What the next process has first; after the last one comes the first.

        None where nothing of the whole batch can be read.
        """
        for place in range(stop, stop + len(rows)):
            after = self._batch(rows[[place % len(rows)]], turn)
            if after.names:
                return after
        return None

    def _batch(self, rows: np.ndarray, turn: _Turn) -> Batch:
        clips: list[Clip | None] = [self.samples[row] for row in rows]
        texts, frames = self._read(clips, turn)
        bad = []
        for place, clip in enumerate(clips):
            if isinstance(reason := frames[place], str):
                clips[place], frames[place] = self._instead(clip, reason, turn)
                bad.append(Bad(clip.video_id, reason, clips[place] and clips[place].video_id))
        if bad:
            clips, frames = ([x for x in there if x is not None] for there in (clips, frames))
            texts = self.texts(clips, self._numbers(clips, turn))
        nothing = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        shown = collate(frames or [nothing])
        return Batch(
            type(shown)(*(part[: len(clips)] for part in shown[:2])),
            self.tokenizer(list(texts.sentences)),
            texts.keys.matches(),
            tuple(clip.video_id for clip in clips),
            texts.keys,
            tuple(bad),
        )

    def _numbers(self, clips: Sequence[Clip], turn: _Turn) -> list[np.random.Generator]:
        return [generator(self.seed, turn.epoch, clip.video_id) for clip in clips]

    def _read(self, clips: Sequence[Clip], turn: _Turn) -> tuple[Texts, list[Tensor | str]]:
        """The texts of clips, and for each its frames or what is wrong with it."""
        numbers = self._numbers(clips, turn)
        texts = self.texts(clips, numbers)
        takes = [int(number.integers(self.takes)) for number in numbers]
        return texts, [self._frames(*one, turn) for one in zip(clips, takes, strict=True)]

    def _frames(self, clip: Clip, take: int, turn: _Turn) -> Tensor | str:
        if clip.video_id in turn.refused:
            return turn.refused[clip.video_id]
        turn.tell(clip.video_id)
        try:
            frames = self.store.read(clip, self.takes, take)
        except VideoclipError as error:
            return str(error)
        except (OSError, ValueError, EOFError, IndexError) as error:
            return f"what is kept of {clip.path} is damaged ({error})"
        if not len(frames):
            return f"no frame is kept of {clip.path}"
        if frames.ndim == 2:  # features are of frames that were changed already
            return frames
        return augment(
            frames, self.size, self.recipe, smallest=self.crop, mirror=self.mirror,
            seed=self.seed, epoch=turn.epoch, sample=clip.video_id,
        )  # fmt: skip

    def _instead(
        self, clip: Clip, reason: str, turn: _Turn
    ) -> tuple[Clip, Tensor] | tuple[None, None]:
        """What takes the place of a clip that cannot be read.

        Raises VideoclipError where nothing can.
        """
        if self.bad_samples == "fail":
            raise VideoclipError(reason)
        if self.bad_samples == "zero":
            return None, None
        numbers = generator(self.seed, turn.epoch, clip.video_id, "instead")
        for row in numbers.integers(len(self.samples), size=DRAWS):
            if self.samples[row].video_id == clip.video_id:
                continue
            _, [frames] = self._read([self.samples[row]], turn)
            if not isinstance(frames, str):
                return self.samples[row], frames
        raise VideoclipError(
            f"{reason}, and none of {DRAWS} others that were drawn in its place can be read; see "
            "whether the disk is still there; the same command decodes again what is missing"
        )
