"""An experiment's manifest -> its splits, its classes and its frames, decoded once.

What a comparison and a training run share before the first step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.experiment import Experiment
from videoclip.features.store import Store
from videoclip.frames.augment import Recipe
from videoclip.frames.sampling import Rule
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import StoredFit
from videoclip.frames.views import Views, views_named
from videoclip.manifest import SPLITS, Clip, manifest_hash, read_manifest, with_splits
from videoclip.tasks import Recognition, class_names

MARGIN = 256 / 224
"""Stored frames that are cut in training have a short side so much longer than the tower's, as
ActionCLIP resizes before it cuts."""


class Stores(NamedTuple):
    """The frames of one experiment."""

    training: Store
    """Takes for training; whole frames where the augmentation cuts them."""
    evaluation: Store
    """Take 0, or the views, as the tower reads them."""
    views: Views | None
    """Clips and crops whose probabilities are averaged; None: one clip, its middle."""


class Material(NamedTuple):
    """What all models that are trained on a manifest share."""

    experiment: Experiment
    """The base of all rows."""
    splits: Mapping[str, Sequence[Clip]]
    """train, val and test; test holds the unreadable clips too."""
    classes: tuple[str, ...]
    """The classes of recognition; empty in retrieval."""
    folder: Path
    """Where the frames are kept."""
    key: str
    """A hash of the manifest: another manifest, other models."""
    notes: list[str]
    """What a reader of the table must know about the data."""
    unreadable: dict[str, str]
    """Clips that cannot be read, and why."""

    def stores(self, experiment: Experiment) -> Stores:
        """The stores of the base experiment or of one of its rows, without decoding anything."""
        model, data, task = experiment.model, experiment.data, experiment.task
        size, fit = model.visual.image_size, model.pixels.fit

        how = {"frames": data.frames, "rule": data.sampling}
        training = training_frames(self.folder, data.augment, size, fit, **how)
        evaluation = FrameStore(self.folder, size=size, fit=fit, **how)
        for store in (training, evaluation):
            store.unreadable.update(self.unreadable)
        views = None
        if isinstance(task, Recognition) and task.views is not None:
            views = views_named(task.views, size=size)
        return Stores(training, evaluation, views)

    def evaluated(self, clip: Clip) -> Tensor:
        """What the base experiment sees of a clip in evaluation, (T, 3, S, S) uint8."""
        _, store, views = self.stores(self.experiment)
        return store.read(clip, 1) if views is None else store.read_views(clip, views)[0]


def training_frames(
    folder: Path, recipe: Recipe, size: int, fit: StoredFit, *, frames: int, rule: Rule
) -> FrameStore:
    """The frames that a recipe of augmentation changes for a tower of this size."""
    if recipe.startswith("actionclip"):
        size, fit = round(size * MARGIN), "whole"
    return FrameStore(folder, size=size, frames=frames, fit=fit, rule=rule)


def gather(experiments: Sequence[Experiment], folder: Path) -> Material:
    """Reads the manifest of experiments that differ in their models and decodes every clip once.

    Raises ManifestError or VideoclipError where there is nothing to train or to test on.
    """
    experiment = experiments[0]
    path = experiment.data.manifest
    if path is None:
        raise VideoclipError("no manifest is given; use --data MANIFEST")
    experiment.model.tokenizer(experiment.data.words)  # before anything is decoded
    clips = read_manifest(path)
    experiment.task.require(clips, path)
    needed = SPLITS if experiment.selection == "best" else ("train", "test")
    by_split, note = with_splits(clips, path, needed)
    protocol = experiment.task.check(by_split["test"])
    classes: tuple[str, ...] = ()
    if isinstance(experiment.task, Recognition):
        classes = class_names(clips, experiment.task.classes)
    material = Material(
        experiment, by_split, classes, folder / "frames", manifest_hash(path),
        [line for line in (note, protocol) if line], {},
    )  # fmt: skip
    _decode(material, experiments)
    splits = {split: _readable(by_split[split], material) for split in SPLITS}
    for split in needed:
        if not splits[split]:
            raise VideoclipError(
                f"none of the {len(by_split[split])} clips of split {split!r} can be read; "
                "the reasons are listed above"
            )
    lost = len(by_split["train"]) - len(splits["train"])
    if lost:
        lines = f"{lost} of {len(by_split['train'])} training clips cannot be read."
        material.notes.append(lines)
    return material._replace(splits={**splits, "test": by_split["test"]})


def _decode(material: Material, experiments: Sequence[Experiment]) -> None:
    """Fills the stores of all experiments; each different one once."""
    filled = set()
    for experiment in experiments:
        stores, takes = material.stores(experiment), experiment.data.takes
        for split in SPLITS:
            training = split == "train"
            store = stores.training if training else stores.evaluation
            views = None if training else stores.views
            key = (split, store.size, store.frames, store.fit, store.rule, takes, views)
            if key in filled:
                continue
            filled.add(key)
            clips = material.splits[split]
            if views is None:
                store.fill(clips, takes if training else 1, split)
            else:
                store.fill_views(clips, views, split)
            material.unreadable.update(store.unreadable)
    for video_id, reason in material.unreadable.items():
        tqdm.write(f"unreadable: {video_id}: {reason}")


def _readable(clips: Sequence[Clip], material: Material) -> list[Clip]:
    return [clip for clip in clips if clip.video_id not in material.unreadable]
