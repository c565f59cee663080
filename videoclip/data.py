"""Manifest -> Batch: clips are decoded once, and every draw is a pure function.

Order, caption, frames and crop of a sample depend on (seed, epoch, video id) and on nothing else.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.decode import open_video
from videoclip.errors import VideoclipError, VideoError
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.sampling import frame_range, random_indices, uniform_indices
from videoclip.tokenizer import Tokenizer
from videoclip.transforms import Fit, random_crop, resize_and_crop
from videoclip.types import Batch, Frames


class FrameStore:
    """The sampled frames of clips, decoded once into a folder of arrays.

    A clip is kept as (takes, T, 3, size, size) uint8. Take 0 is the uniform sample that evaluation
    reads; the others are random within segments and serve the epochs of training in turn.
    """

    def __init__(self, folder: Path, *, size: int, frames: int, fit: Fit = "crop") -> None:
        self.folder, self.size, self.frames, self.fit = folder, size, frames, fit
        self.unreadable: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, clips: Sequence[Clip], takes: int, label: str) -> list[Clip]:
        """Decodes what is missing and returns the clips that can be read.

        The others are listed in `unreadable`, with the reason; a rerun tries them again.
        """
        bad: dict[str, str] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = pool.map(partial(self._decode, takes=takes), clips)
            for clip, reason in zip(
                clips, tqdm(reasons, f"decoding {label}", len(clips), unit="clip"), strict=True
            ):
                if reason:
                    bad[clip.video_id] = reason
        self.unreadable |= bad
        return [clip for clip in clips if clip.video_id not in bad]

    def read(self, clip: Clip, takes: int, take: int = 0) -> Tensor:
        """One take of a clip, (T, 3, size, size) uint8."""
        return torch.from_numpy(_array(self._path(clip, takes))[take].copy())

    def _path(self, clip: Clip, takes: int) -> Path:
        status = clip.path.stat()
        key = [str(clip.path), status.st_size, status.st_mtime_ns, clip.start, clip.end]
        key += [self.size, self.frames, takes, self.fit]
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"

    def _decode(self, clip: Clip, takes: int) -> str:
        try:
            if clip.path.exists() and self._path(clip, takes).exists():
                return ""
            with open_video(clip.path) as video:
                first, last = frame_range(video.timestamps, clip.start, clip.end)
                count = last - first
                samples = [uniform_indices(count, self.frames)] + [
                    random_indices(count, self.frames, seed=0, epoch=take, sample=clip.video_id)
                    for take in range(1, takes)
                ]
                wanted, places = np.unique(np.stack(samples), return_inverse=True)
                pixels = resize_and_crop(video.read(first + wanted), self.size, self.fit).numpy()
        except VideoError as error:
            return str(error)
        path = self._path(clip, takes)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        try:
            with unfinished.open("wb") as file:
                np.save(file, pixels[places.reshape(takes, -1)])
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise VideoclipError(
                f"cannot keep the frames of {clip.video_id} in {self.folder}: {error}; "
                "free some space or choose another --output"
            ) from error
        return ""


@functools.lru_cache(maxsize=32768)
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
    clips: Sequence[Clip],
    store: FrameStore,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    takes: int,
    crop: float,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    """The batches of one epoch, every clip once with one of its captions.

    Batches are of nearly equal size rather than leaving a small one at the end, where the
    contrastive loss would be easy.
    """
    order = generator(seed, epoch, "order").permutation(len(clips))
    for chosen in np.array_split(order, number_of_batches(len(clips), batch_size)):
        rows = [clips[i] for i in chosen]
        numbers = [generator(seed, epoch, clip.video_id) for clip in rows]
        captions = [
            clip.captions[number.integers(len(clip.captions))]
            for clip, number in zip(rows, numbers, strict=True)
        ]
        draws = [int(number.integers(takes)) for number in numbers]
        pixels = [
            random_crop(
                store.read(clip, takes, take), crop, seed=seed, epoch=epoch, sample=clip.video_id
            )
            for clip, take in zip(rows, draws, strict=True)
        ]
        same = [[a == b for b in captions] for a in captions]
        names = tuple(clip.video_id for clip in rows)
        yield Batch(collate(pixels), tokenizer(captions), torch.tensor(same), names)


def number_of_batches(clips: int, batch_size: int) -> int:
    """Batches of one epoch."""
    return max(1, -(-clips // batch_size))
