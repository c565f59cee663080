"""File -> frames that are kept: what is sampled of a clip is decoded once."""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.distributed import main_process, rank, world_size
from videoclip.errors import VideoclipError, VideoError
from videoclip.frames.decode import Video, open_video
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

    def decoded(self, clip: Clip, takes: int) -> Tensor:
        """All takes of a clip, (takes, T, 3, size, size) uint8, decoded now and not kept.

        Raises VideoError where it cannot be read.
        """
        with open_video(clip.path) as video:
            places, pixels = self._sample(video, clip, takes)
        return pixels[torch.from_numpy(places)]

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

    def key(self, clip: Clip, kept: int | Views) -> str:
        """What names so many takes, or these views, of a clip: its file and how it is read.

        Raises VideoError where the file is gone.
        """
        try:
            status = clip.path.stat()
        except OSError as error:
            raise VideoError(f"{clip.path} is no longer there: {error.strerror}") from error
        key: list[Any] = [str(clip.path), status.st_size, status.st_mtime_ns, clip.start, clip.end]
        if isinstance(kept, Views):
            key += [self.frames, self.rule, kept.clips, kept.short_side, kept.seconds, "views"]
        else:
            key += [self.size, self.frames, kept, self.fit, self.rule]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def _path(self, clip: Clip, kept: int | Views) -> Path:
        return self.folder / f"{self.key(clip, kept)}.npy"

    def _decode(self, clip: Clip, takes: int) -> str:
        sample = partial(self._sample, clip=clip, takes=takes)
        return self._keep(clip, takes if self.rule != "seconds" else 1, sample)

    def _sample(self, video: Video, clip: Clip, takes: int) -> tuple[np.ndarray, Tensor]:
        """The frames that the takes show, each once, and which of them stands where."""
        samples = self._samples(video, clip, takes)
        wanted, places = np.unique(samples, return_inverse=True)
        pixels = resize_and_crop(video.read(wanted), self.size, self.fit)
        return places.reshape(samples.shape), pixels

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
