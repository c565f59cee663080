"""Locked towers -> stores of what they make of clips and texts, read in place of both.

So all epochs, seeds and rows of a comparison pass the towers once.
"""

from typing import NamedTuple

from videoclip.experiment import Experiment
from videoclip.features.store import FeatureStore, Look
from videoclip.features.texts import TextFeatures
from videoclip.frames.loader import mirrors
from videoclip.mixers import NoMixer
from videoclip.model import VideoCLIP
from videoclip.reports.material import Material, Stores
from videoclip.tasks.base import Mix
from videoclip.towers import ResNet, ViT
from videoclip.training.optim import half_parameters, round_to_half


class Locked(NamedTuple):
    """What one model reads where its towers are locked."""

    stores: Stores
    """Of features, or of frames where the vision tower must see these."""
    texts: TextFeatures | None
    """None: the text tower is trained, and reads texts itself."""
    note: str | None
    """What a reader of the table must know about it."""


def locked(model: VideoCLIP, experiment: Experiment, material: Material) -> Locked:
    """What training and evaluation of the model read; what is missing of it is made now.

    All processes must call it together, before the model is trained.
    """
    stores, optim = material.stores(experiment), experiment.finetune
    if optim.lock == "none":
        return Locked(stores, None, None)
    if optim.precision == "reference-fp16":  # as the engine will, and locked weights stay so
        round_to_half(*half_parameters(model))
    folder = experiment.run.features or material.folder.with_name("features")
    texts = None
    if optim.lock in ("text", "both"):
        texts = TextFeatures(folder, model)
        clips = [clip for split in material.splits.values() for clip in split]
        sentences = experiment.task.sentences(clips, material.classes)
        texts.fill(sentences, (experiment.data.words, None))
    if optim.lock == "text":
        return Locked(stores, texts, None)
    reason = needs_frames(model, experiment.task.mix)
    if reason:
        return Locked(stores, texts, f"the vision tower is locked, but sees every epoch: {reason}")
    note = "trained on features that the locked vision tower made once; ms per clip is without it"
    return Locked(_of_features(model, experiment, material, stores), texts, note)


def needs_frames(model: VideoCLIP, mix: Mix = "none") -> str | None:
    """Why a model cannot learn from kept features of single frames; None where it can."""
    config = model.config
    if config.mixer != NoMixer():
        return f"the mixer {type(config.mixer).__name__} works inside it"
    plain = isinstance(config.visual, ResNet) or (
        isinstance(config.visual, ViT) and config.visual.patch_frames == 1
    )
    if not plain:
        return f"{type(config.visual).__name__} looks at several frames at once"
    if getattr(model.head, "reads_layers", 0):
        return f"the head {type(config.head).__name__} reads its layers"
    if mix != "none":
        return f"{mix} mixes the pixels of clips"
    return None


def _of_features(
    model: VideoCLIP, experiment: Experiment, material: Material, stores: Stores
) -> Stores:
    data, views = experiment.data, stores.views
    folder = experiment.run.features or material.folder.with_name("features")
    mirror = mirrors(data.augment, material.splits["train"])
    look = Look(data.augment, data.crop, mirror, data.features)
    training = FeatureStore(folder, model, stores.training, look)
    training.fill(
        model, material.splits["train"], data.takes, "clips to train on", workers=data.workers
    )
    evaluation = FeatureStore(folder, model, stores.evaluation, Look(kind=data.features))
    for split in ("val", "test"):
        evaluation.fill(
            model, material.splits[split], views or 1, f"clips of {split}", workers=data.workers
        )
    return Stores(training, evaluation, views)
