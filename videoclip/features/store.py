"""Frames -> Features that are kept: what a locked vision tower makes of each frame, made once.

A feature store stands where a frame store stands: it has the same clips, takes and views, and gives
(T, D) where that one gives (T, 3, S, S). What training changes in frames is drawn once per take
here, not anew in every epoch; `takes` says how many there are.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.distributed import gather_objects, main_process, rank, world_size
from videoclip.errors import VideoclipError, VideoError
from videoclip.features.fingerprint import visual_fingerprint
from videoclip.features.shards import opened, shards_of, write_shard
from videoclip.frames.ahead import ReadAhead
from videoclip.frames.augment import Recipe, augment
from videoclip.frames.store import FrameStore
from videoclip.frames.views import Views
from videoclip.layers import evaluating
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP

AT_ONCE = 128
"""Frames of a clip that go through the tower together."""
CLIPS, SECONDS = 256, 60.0
"""A shard is written after so many clips, or so many seconds of work that a kill would cost."""
Kind = Literal["float32", "float16"]


class Look(NamedTuple):
    """How the frames of a clip are shown to the tower."""

    recipe: Recipe = "none"
    """What training changes in them, drawn once per take."""
    crop: float = 1.0
    """The smallest share of a frame's area that the recipe "crop" leaves."""
    mirror: bool = True
    """Whether ActionCLIP's recipe may mirror them."""
    kind: Kind = "float32"
    """How features are kept."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is kept."""
        return torch.float16 if self.kind == "float16" else torch.float32


class FeatureStore:
    """What the vision tower of a model makes of the clips of a frame store.

    The features are made when `fill` is called and never depend on who makes them. They are found
    again by the tower's weights, the look, the clip's file and its frames.
    """

    def __init__(
        self, folder: Path, model: VideoCLIP, frames: FrameStore, look: Look | None = None
    ) -> None:
        self.frames, self.look = frames, look or Look()
        self.unreadable = frames.unreadable  # one list of both
        self.size = model.config.visual.image_size
        key = json.dumps([visual_fingerprint(model), *self.look]).encode()
        self.folder = folder / f"clips-{hashlib.sha256(key).hexdigest()[:32]}"
        self.shards: dict[str, Path] = {}
        self._take(shards_of(self.folder))

    def fill(
        self, model: VideoCLIP, clips: Sequence[Clip], kept: int | Views, label: str,
        *, workers: int = 0,
    ) -> list[Clip]:  # fmt: skip
        """Makes the features of so many takes, or of these views, that are missing.

        Frames that the frame store does not hold are decoded and not kept. Returns the clips that
        can be read; the others are listed in `unreadable`. Processes that call it together share
        the work.
        """
        wanted = self.missing(clips, kept)
        own = [key for key in list(wanted)[rank() :: world_size()] if key not in self.shards]
        ahead = ReadAhead(Shown(self, [wanted[key][0] for key in own], kept), workers)
        bar = tqdm(
            zip(own, ahead(range(len(own))), strict=True), f"embedding {label}", len(own),
            unit="clip", disable=not own or not main_process(),
        )  # fmt: skip
        kind = self.look.dtype
        made = (
            (key, shown if isinstance(shown, str) else embed(model, shown).to(kind))
            for key, shown in bar
        )
        self.keep(made, wanted)
        ahead.close()
        return [clip for clip in clips if clip.video_id not in self.unreadable]

    def missing(self, clips: Sequence[Clip], kept: int | Views) -> dict[str, list[Clip]]:
        """What is to be made, and the clips that show it; those of one file share it.

        All that processes share, whoever has it already: they see new shards at different times.
        """
        wanted: dict[str, list[Clip]] = {}
        for clip in clips:
            try:
                if clip.video_id not in self.unreadable:
                    wanted.setdefault(self.frames.key(clip, kept), []).append(clip)
            except VideoError as error:
                self.unreadable[clip.video_id] = str(error)
        return wanted

    def keep(
        self, made: Iterable[tuple[str, Tensor | str]], wanted: Mapping[str, Sequence[Clip]]
    ) -> None:
        """Writes features, or lists the reasons why there are none, as they come.

        Processes that call it together have all of it then.
        """
        bad: dict[str, str] = {}
        written = [write_shard(self.folder, done) for done in _in_shards(made, bad)]
        for paths, reasons in gather_objects((written, bad)):
            self._take(paths)
            for key, reason in reasons.items():
                self.unreadable.update((clip.video_id, reason) for clip in wanted[key])

    def alone(self) -> "FeatureStore":
        """The store without what it knows of its clips, to be sent to who shows them."""
        other = copy.copy(self)
        other.shards, other.unreadable = {}, {}
        return other

    def read(self, clip: Clip, takes: int, take: int = 0) -> Tensor:
        """One take of a clip, (T, D) float32."""
        return self._kept(clip, takes)[take].float()

    def read_views(self, clip: Clip, views: Views) -> Tensor:
        """The views of a clip, (clips * crops, T, D) float32."""
        return self._kept(clip, views)[:].float()

    def shown(self, clip: Clip, kept: int | Views) -> Tensor:
        """The takes or views of a clip as the tower sees them, (takes, T, 3, S, S) uint8.

        Raises VideoError where it cannot be read.
        """
        if isinstance(kept, Views):
            return self.frames.read_views(clip, kept)
        try:
            every = [self.frames.read(clip, kept, take) for take in range(kept)]
        except FileNotFoundError:
            every = list(self.frames.decoded(clip, kept))
            every *= kept // len(every)  # the rule "seconds" has nothing to draw
        # By the file and not the clip's name: clips that share a file share their features.
        sample = f"{clip.path.name} {clip.start} {clip.end}"
        return torch.stack(
            [
                augment(
                    pixels, self.size, self.look.recipe, seed=0, epoch=take, sample=sample,
                    smallest=self.look.crop, mirror=self.look.mirror,
                )
                for take, pixels in enumerate(every)
            ]
        )  # fmt: skip

    def _kept(self, clip: Clip, kept: int | Views) -> Tensor:
        key = self.frames.key(clip, kept)
        if key not in self.shards:
            raise VideoclipError(
                f"the features of {clip.video_id} are not in {self.folder}: its file has changed, "
                "or the shard with them is gone; start the same command again"
            )
        return opened(self.shards[key]).get_slice(key)

    def _take(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.shards |= dict.fromkeys(opened(path).keys(), path)


Store = FrameStore | FeatureStore
"""Where training and evaluation read clips."""


class Shown(NamedTuple):
    """The number of a clip -> what the tower sees of it, or the reason why there is nothing."""

    store: FeatureStore
    clips: Sequence[Clip]
    kept: int | Views

    def read(
        self, number: int, tell: Callable[[str], None], refused: Mapping[str, str]
    ) -> Tensor | str:
        """See ahead.Reader."""
        clip = self.clips[number]
        if clip.video_id in refused:
            return refused[clip.video_id]
        tell(clip.video_id)
        try:
            return self.store.shown(clip, self.kept)
        except VideoError as error:
            return str(error)


def embed(model: VideoCLIP, pixels: Tensor) -> Tensor:
    """The frames of one clip (..., 3, S, S) uint8 -> their features (..., D) float32, on the CPU.

    Of one clip, so that they are the same to the last bit whoever makes them beside which others.
    """
    with torch.no_grad(), evaluating(model):
        parts = pixels.flatten(0, -4).split(AT_ONCE)
        found = [model.encode_image(part.to(model.device)).float().cpu() for part in parts]
    return torch.cat(found).unflatten(0, pixels.shape[:-3])


def _in_shards(
    made: Iterable[tuple[str, Tensor | str]], bad: dict[str, str]
) -> Iterator[dict[str, Tensor]]:
    """Features one by one -> as many as a shard should hold; reasons go to the bad ones."""
    done: dict[str, Tensor] = {}
    since = time.monotonic()
    for key, features in made:
        if isinstance(features, str):
            bad[key] = features
            continue
        done[key] = features
        if len(done) == CLIPS or time.monotonic() - since > SECONDS:
            yield done
            done, since = {}, time.monotonic()
    if done:
        yield done
