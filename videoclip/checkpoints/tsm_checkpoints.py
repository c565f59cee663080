"""Files of MIT's TSM -> our configuration and their weights: classifiers on torchvision's ResNet.

Depth, kind of block and place of the shift are read off the keys; the names of the classes stand in
no file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from videoclip.checkpoints.clip_checkpoints import Checkpoint, cleaned, numbered
from videoclip.checkpoints.layouts import Layout, shape_of
from videoclip.checkpoints.origin import opened
from videoclip.checkpoints.video_layouts import wrapped, wrapper_in
from videoclip.errors import WeightsError
from videoclip.frames.transforms import Pixels
from videoclip.heads import Mean
from videoclip.model import Model
from videoclip.scorers import Dot
from videoclip.tasks import class_names
from videoclip.towers import TSM, Labels
from videoclip.towers.labels import UNNAMED

Classes = Sequence[str] | str | Path | None
"""Class names in the order of the classifier, or a file of them; None: nobody says."""
TRUNK = "base_model."
CLASSIFIER, INNER = "new_fc", f"{TRUNK}fc"
"""The last layer: of its own where there was dropout before it, else that of the ResNet."""
TEMPERATURE = "logit_scale"
"""Which a model here has and a classifier does not: nothing reads it."""
IMAGENET = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NAMES = {
    "resnet18": TSM(block="basic", layers=(2, 2, 2, 2)),
    "resnet34": TSM(block="basic"),
    "resnet50": TSM(),
    "resnet101": TSM(layers=(3, 4, 23, 3)),
    "resnet152": TSM(layers=(3, 8, 36, 3)),
}
"""What files call these ResNets (`arch`)."""
NOT_BUILT = {
    r"\.(nl|block)\.": "has non-local blocks",
    r"^layer\d\.net\.": "halves its frames after the first stage (temporal pooling)",
    r"^features\.": "is on MobileNetV2",
    r"^(conv1_7x7_s2|inception_\w+?)[._]": "is on BN-Inception",
}
"""What keys behind `base_model.` say that is not built here."""
INPUTS = {10: "optical flow", 15: "differences of frames"}
"""What a first convolution of so many channels reads."""


def is_tsm(keys: Sequence[str]) -> bool:
    """Whether keys without wrappers are those of its code."""
    return any(key.startswith(TRUNK) for key in keys)


def from_found(
    path: Path, found: Mapping[str, Any], frames: int | None, classes: Classes
) -> Checkpoint:
    """What a file of TSM holds, as `archives.read` gives it, and the path that messages name.

    Raises WeightsError for what is not built here, and where arch or classes say something else
    than the weights.
    """
    origin, raw = opened(found, "tsm")
    weights = cleaned(raw)
    _refuse_others(path, weights)
    tower = _tower(path, weights)
    arch = origin.beside.get("arch")
    known = NAMES.get(arch) if isinstance(arch, str) else None
    if known and (known.block, known.layers) != (tower.block, tower.layers):
        raise WeightsError(
            f"{path} says that it is {arch}, with {known.layers} {known.block} blocks, but its "
            f"keys have {tower.layers} {tower.block} blocks; get it again, or correct its arch"
        )
    if frames is not None and frames < 1:
        raise WeightsError(f"frames is {frames}; give at least 1, or leave frames out")
    classifier = classifier_in(weights)
    model = Model(
        visual=tower, text=Labels(classes=_class_names(path, weights, classes), bias=True),
        embedding=tower.channels, pixels=IMAGENET, frames=frames, templates=("{}",),
        head=Mean(average="plain"), scorer=Dot(),
    )  # fmt: skip
    weights = {TEMPERATURE: torch.tensor(0.0), **weights}
    return Checkpoint(model, weights, layout_of(tower, classifier), origin, title="TSM")


def classifier_in(keys: Mapping[str, Any]) -> str:
    """What keys call the last layer."""
    inner = any(key.startswith(f"{INNER}.") for key in keys)
    return INNER if inner and f"{CLASSIFIER}.weight" not in keys else CLASSIFIER


def layout_of(tower: TSM, classifier: str = CLASSIFIER) -> Layout:
    """Its names for the parameters of a model."""
    place = None if tower.placement == "none" else tower.placement

    def names(key: str) -> tuple[str, ...]:
        key = wrapped(key.removeprefix("clip."), place, stages=tower.layers)
        key = re.sub(r"^visual\.", TRUNK, key)
        key = re.sub(r"^label_embedding\.", f"{classifier}.", key)
        return (re.sub(r"^label_bias$", f"{classifier}.bias", key),)

    return names


def beside(tower: TSM) -> dict[str, Any]:
    """What its code reads beside the weights."""
    arch = [name for name, known in NAMES.items()
            if (known.block, known.layers) == (tower.block, tower.layers)]  # fmt: skip
    return {"epoch": 0, **({"arch": arch[0]} if arch else {}), "best_prec1": 0.0}


def _refuse_others(path: Path, weights: Mapping[str, Any]) -> None:
    """Raises WeightsError for a network that is not built here, by its name."""
    keys = [key.removeprefix(TRUNK) for key in weights if key.startswith(TRUNK)]
    for pattern, what in NOT_BUILT.items():
        if found := [key for key in keys if re.search(pattern, key)]:
            raise WeightsError(
                f"{path} {what} (key {TRUNK}{found[0]}), which is not built here; read is TSM on "
                "torchvision's ResNets, without non-local blocks and temporal pooling"
            )
    if not any(key.startswith("layer1.") for key in keys):
        some = ", ".join(sorted(weights)[:5]) or "nothing"
        raise WeightsError(
            f"{path} is no file of TSM: none of its keys starts with {TRUNK}layer1.; it has {some}"
        )
    shape = shape_of(weights.get(f"{TRUNK}conv1.weight")) or ()
    if len(shape) == 4 and shape[1] in INPUTS:
        raise WeightsError(
            f"{path} reads {INPUTS[shape[1]]} ({TRUNK}conv1.weight has {shape[1]} input channels); "
            "read here is TSM on RGB frames"
        )


def _tower(path: Path, weights: Mapping[str, Any]) -> TSM:
    """The network that the keys tell."""
    wrapper = wrapper_in(key.replace(TRUNK, "visual.", 1) for key in weights)
    stages = [numbered(weights, f"{TRUNK}layer{stage}", path) for stage in (1, 2, 3, 4)]
    return TSM(
        block="bottleneck" if any(".conv3." in key for key in weights) else "basic",
        layers=tuple(stages),
        placement={"residual": "residual", "block": "block"}.get(wrapper, "none"),
    )


def _class_names(path: Path, weights: Mapping[str, Any], given: Classes) -> tuple[str, ...]:
    """A name for every row of the classifier."""
    layer = classifier_in(weights)
    shapes = {f"{layer}.{part}": axes for part, axes in (("weight", 2), ("bias", 1))}
    found = {key: shape_of(weights.get(key)) or () for key in shapes}
    rows = {key: shape[0] for key, shape in found.items() if len(shape) == shapes[key]}
    if len(set(rows.values())) > 1:
        told = " and ".join(f"{count} in {key}" for key, count in rows.items())
        raise WeightsError(f"{path} has a number of classes of {told}; get it again")
    count = next(iter(rows.values()), 1)  # where there is none, loading lists it as missing
    if given is None:
        return tuple(UNNAMED.format(number) for number in range(count))
    is_file = isinstance(given, str | Path)
    names = class_names([], Path(given)) if is_file else tuple(given)
    if len(names) != count or len(set(names)) < count:
        what = f"of which {len(set(names))} differ" if len(names) == count else f"of {count}"
        raise WeightsError(
            f"classes gives {len(names)} names, {what}, and {path} has {count} classes "
            f"({layer}.weight); name each once, in the order of its label file"
        )
    return names
