"""`videoclip embed`: a manifest and a model -> features of frames, and a vector for each clip."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from videoclip import cluster
from videoclip.checkpoints.weights import load
from videoclip.commands.data import part_of_parts
from videoclip.distributed import device
from videoclip.errors import VideoclipError
from videoclip.evaluation.predict import FRAMES
from videoclip.features.store import FeatureStore, Kind, Look
from videoclip.frames.augment import Recipe
from videoclip.frames.loader import mirrors
from videoclip.frames.sampling import Rule
from videoclip.frames.store import FrameStore
from videoclip.layers import evaluating
from videoclip.manifest import Clip, read_manifest
from videoclip.model import VideoCLIP
from videoclip.reports.locked import needs_frames
from videoclip.reports.material import training_frames
from videoclip.types import Features

SHOWN = 10
"""So many bad clips are printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Embeds every frame and every clip of a manifest; run again, it does only what is missing.

    The features of frames go to OUTPUT as training reads them: with --finetune.lock both, a
    comparison that gets --run.features OUTPUT and the same settings of frames passes no frame
    through the vision tower. With --takes those of training are made too.

    OUTPUT/embeddings.parquet has a row for every clip: video_id, embedding (not normalized), and
    reason, which says why a clip has none.
    """

    manifest: tyro.conf.Positional[Path]
    """The clips: a .jsonl or .parquet file."""
    model: str
    """Whatever videoclip.load opens: a folder, a file, ViT-B/32, a name on the Hugging Face hub."""
    output: Path
    """A folder."""
    split: Literal["train", "val", "test", "all"] = "all"
    """Only clips of this split."""
    shard: str = "1/1"
    """Embed only part i of n, as 3/16, one on each of n machines; they may share the folder. The
    vectors are then in embeddings-i-of-n.parquet."""
    frames: int | None = None
    """Frames a clip. Default: as many as the model was trained with, or 8."""
    sampling: Rule = "segments"
    """Which ones, as --data.sampling."""
    takes: int = 0
    """So many random draws of every clip are made too, as --data.takes; training asks for them."""
    augment: Recipe = "crop"
    """What changes the frames of these, as --data.augment."""
    crop: float = 0.8
    """With augment crop, the smallest share of a frame that is kept, as --data.crop."""
    kind: Kind = "float32"
    """How features are kept, as --data.features."""
    workers: int = 2
    """Processes that decode; their number changes no result."""
    ray: str | None = None
    """The address of a Ray cluster that does the work, such as auto; local: one on this machine.
    All its machines must see the videos under the same paths."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, embeds, writes the vectors and prints the counts."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip embed", description=Options.__doc__,
        config=(tyro.conf.FlagConversionOff,),
    )  # fmt: skip
    number, of = part_of_parts(options.shard)
    every = read_manifest(options.manifest)
    chosen = [clip for clip in every if options.split in ("all", clip.split)]
    clips = chosen[number - 1 :: of]
    if not clips:
        raise VideoclipError(
            f"{options.manifest} has {len(chosen)} clips of split {options.split!r}, and none is "
            f"left for part {options.shard}"
        )
    model = load(options.model).to(device()).eval()
    reason = needs_frames(model)
    if reason:
        raise VideoclipError(
            f"{options.model} has no features of single frames: {reason}; embed the weights "
            "without that module"
        )
    with cluster.joined(options.ray) if options.ray else nullcontext():
        store = filled(model, clips, options, mirror=mirrors(options.augment, every))
    vectors = clip_vectors(model, store, clips)
    name = "embeddings.parquet" if of == 1 else f"embeddings-{number}-of-{of}.parquet"
    _write(options.output / name, clips, vectors, store.unreadable)
    bad = [clip for clip in clips if clip.video_id in store.unreadable]
    print(f"{len(vectors):,} embedded + {len(bad):,} bad = {len(clips):,}")
    for clip in bad[:SHOWN]:
        # A name may hold signs that a terminal takes for commands.
        print(f"  {clip.video_id!a}: {store.unreadable[clip.video_id]!a}")
    if len(bad) > SHOWN:
        print(f"  and {len(bad) - SHOWN:,} more")
    print(options.output / name)


def filled(
    model: VideoCLIP, clips: Sequence[Clip], options: Options, *, mirror: bool
) -> FeatureStore:
    """The features of evaluation; those of training are made too where they are asked for."""
    size, fit = model.config.visual.image_size, model.config.pixels.fit
    how = {"frames": options.frames or model.config.frames or FRAMES, "rule": options.sampling}
    fill = cluster.fill if options.ray else partial(FeatureStore.fill, workers=options.workers)
    # What is decoded goes to the tower at once; nothing is written there.
    frames = FrameStore(options.output / "frames", size=size, fit=fit, **how)
    if options.takes:
        shown = training_frames(options.output / "frames", options.augment, size, fit, **how)
        look = Look(options.augment, options.crop, mirror, options.kind)
        training = FeatureStore(options.output, model, shown, look)
        fill(training, model, clips, options.takes, "draws of clips")
        frames.unreadable.update(training.unreadable)
    store = FeatureStore(options.output, model, frames, Look(kind=options.kind))
    fill(store, model, clips, 1, "clips")
    return store


@torch.no_grad()
def clip_vectors(
    model: VideoCLIP, store: FeatureStore, clips: Sequence[Clip]
) -> dict[str, list[float]]:
    """What the head makes of the features of every readable clip, by its id."""
    found = {}
    with evaluating(model):
        for clip in tqdm(clips, "vectors", unit="clip", delay=3):
            if clip.video_id not in store.unreadable:
                frames = store.read(clip, 1)[None].to(model.device)
                mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
                found[clip.video_id] = model.embed_video(Features(frames, mask)).vector[0].tolist()
    return found


def _write(
    path: Path, clips: Sequence[Clip], vectors: dict[str, list[float]], bad: dict[str, str]
) -> None:
    names = [clip.video_id for clip in clips]
    table = {
        "video_id": names,
        "embedding": [vectors.get(name) for name in names],
        "reason": [bad.get(name) for name in names],
    }
    part = path.with_suffix(".part")
    pd.DataFrame(table).to_parquet(part)
    part.replace(path)
