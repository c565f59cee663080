"""File -> frames that are kept: what is sampled of a clip is decoded once."""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
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
from videoclip.frames.packed import Packed, is_packed
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

    A file is kept as (takes, T, 3, size, size) uint8; with fit "whole" its short side is `size` and
    nothing is cut off. Take 0 is the deterministic sample that evaluation reads; the others are
    random within segments and serve the epochs of training in turn. With the rule "seconds" there
    is nothing to draw, and all takes are the same. Of a packed clip nothing is kept: the same
    frames are read from its store.
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
        self.enlarges = False
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, clips: Sequence[Clip], takes: int, label: str) -> list[Clip]:
        """Decodes what is missing and returns the clips that can be read.

        The others are listed in `unreadable`, with the reason; a rerun tries them again.
        """
        return self._fill(clips, self._takes(takes), label)

    def read(self, clip: Clip, takes: int, take: int = 0) -> Tensor:
        """One take of a clip, (T, 3, size, size) uint8; of a whole one, (T, 3, h, w)."""
        return self._read(clip, self._takes(takes), 0 if self.rule == "seconds" else take)

    def decoded(self, clip: Clip, takes: int) -> Tensor:
        """All takes of a clip, (takes, T, 3, size, size) uint8, decoded now and not kept.

        Raises VideoError where it cannot be read.
        """
        return self._decoded(clip, self._takes(takes))

    def fill_views(self, clips: Sequence[Clip], views: Views, label: str) -> list[Clip]:
        """As `fill`, for views."""
        return self._fill(clips, views, label)

    def read_views(self, clip: Clip, views: Views) -> Tensor:
        """The views of a clip, (clips * crops, T, 3, S, S) uint8; the crops of a clip side by side.

        They are cut out of whole frames here; the store's own `size` and `fit` play no part.
        """
        return crops_of(self._read(clip, views), views).transpose(0, 1).flatten(0, 1)

    def key(self, clip: Clip, kept: int | Views) -> str:
        """What names so many takes, or these views, of a clip: its file and how it is read.

        Raises VideoError where the file is gone.
        """
        key: list[Any] = [*_identity(clip.path), clip.start, clip.end]
        if isinstance(kept, Views):
            key += [self.frames, self.rule, kept.clips, kept.short_side, kept.seconds, "views"]
        else:
            key += [self.size, self.frames, kept, self.fit, self.rule]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def _takes(self, takes: int) -> int:
        """So many are different."""
        return takes if self.rule != "seconds" else 1

    def _read(self, clip: Clip, kept: int | Views, take: int | None = None) -> Tensor:
        """Where frames come from: of a file what was kept of it, of a packed clip its store.

        All takes or views, or one take.
        """
        if is_packed(clip.path):
            return self._decoded(clip, kept, take)
        every = _array(self._path(clip, kept))
        return torch.from_numpy((every if take is None else every[take]).copy())

    def _decoded(self, clip: Clip, kept: int | Views, take: int | None = None) -> Tensor:
        with open_video(clip.path) as video:
            samples = self._samples(video, clip, kept, take)
            wanted, places = np.unique(samples, return_inverse=True)
            size, fit = self._shape(kept)
            pixels = resize_and_crop(video.read(wanted), size, fit)
        if np.array_equal(wanted, samples.ravel()):  # the usual case, and nothing is moved
            return pixels.reshape(*samples.shape, *pixels.shape[1:])
        return pixels[torch.from_numpy(places.reshape(samples.shape))]

    def _shape(self, kept: int | Views) -> tuple[int, StoredFit]:
        """What frames become before they are kept."""
        return (kept.short_side, "whole") if isinstance(kept, Views) else (self.size, self.fit)

    def _samples(
        self, video: Video, clip: Clip, kept: int | Views, take: int | None = None
    ) -> np.ndarray:
        """Which frames of a video each take, or each clip of the views, shows; or one take."""
        if self.rule == "seconds" and not isinstance(kept, Views):
            indices = second_indices(
                len(video.timestamps), video.rate, self.frames, start=clip.start, end=clip.end
            )
            return indices if take is not None else indices[None]
        first, last = frame_range(video.timestamps, clip.start, clip.end)
        if isinstance(kept, Views):
            return first + view_indices(video.timestamps[first:last], self.frames, kept, self.rule)
        if take is not None:
            return first + self._take(last - first, clip, take)
        return first + np.stack([self._take(last - first, clip, take) for take in range(kept)])

    def _take(self, frames: int, clip: Clip, take: int) -> np.ndarray:
        """Which of so many frames a take shows."""
        middles, drawn = uniform_indices, random_indices
        if self.rule == "actionclip":
            middles, drawn = repeated_indices, repeated_random_indices
        if take == 0:
            return middles(frames, self.frames)
        return drawn(frames, self.frames, seed=0, epoch=take, sample=clip.video_id)

    def _fill(self, clips: Sequence[Clip], kept: int | Views, label: str) -> list[Clip]:
        bad: dict[str, str] = {}
        # Processes that share a folder begin at different places and find the rest done.
        first = rank() * len(clips) // world_size()
        order = [*clips[first:], *clips[:first]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(
                pool.map(partial(self._keep, kept=kept), order), f"decoding {label}", len(clips),
                unit="clip", disable=not main_process(),
            )  # fmt: skip
            for clip, reason in zip(order, bar, strict=True):
                if reason:
                    bad[clip.video_id] = reason
        self.unreadable |= bad
        return [clip for clip in clips if clip.video_id not in bad]

    def _path(self, clip: Clip, kept: int | Views) -> Path:
        return self.folder / f"{self.key(clip, kept)}.npy"

    def _keep(self, clip: Clip, kept: int | Views) -> str:
        """Writes what is shown of a file, where it is not there; a reason, or nothing."""
        try:
            if is_packed(clip.path):
                return self._find(clip, kept)
            if clip.path.exists() and self._path(clip, kept).exists():
                return ""
            pixels = self._decoded(clip, kept)
            path = self._path(clip, kept)
        except VideoError as error:
            return str(error)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            with unfinished.open("wb") as file:
                np.save(file, pixels.numpy())
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise VideoclipError(
                f"cannot keep the frames of {clip.video_id} in {self.folder}: {error}; "
                "free some space or choose another --output"
            ) from error
        return ""

    def _find(self, clip: Clip, kept: int | Views) -> str:
        """Looks whether a packed clip has what is shown; nothing is decoded. Raises VideoError."""
        with open_video(clip.path) as video:
            self._samples(video, clip, kept)
            size, _ = self._shape(kept)
            assert isinstance(video, Packed)
            if video.short_side < min(size, video.source_short_side) and not self.enlarges:
                self.enlarges = True
                tqdm.write(
                    f"packed frames have a short side of {video.short_side}, {size} is asked: they "
                    f"are enlarged; pack with --short-side {size} for sharp ones"
                )
        return ""


def _identity(path: Path) -> list[Any]:
    """What changes with a file or a packed video. Raises VideoError where the file is gone."""
    if is_packed(path):
        return ["packed", path.name]
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError(f"{path} is no longer there: {error.strerror}") from error
    return [str(path), status.st_size, status.st_mtime_ns]


@functools.lru_cache(maxsize=OPEN)
def _array(path: Path) -> np.ndarray:
    """An array of the store, kept open: a file is named by its content and never changes."""
    return np.load(path, mmap_mode="r")
