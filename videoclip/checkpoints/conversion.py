"""A model -> a file in another project's layout, from which the same model is read again.

What is written is read back before it is kept, as that project's files are read: where another
model would come out, the layout cannot express this one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from videoclip.checkpoints import hugging_face, tsm_checkpoints
from videoclip.checkpoints.clip_checkpoints import OPENAI_ONLY
from videoclip.checkpoints.layouts import Layout, faults, inside, openai, to_file
from videoclip.checkpoints.origin import PREFIXES, Entry, Origin, Precision, restored
from videoclip.checkpoints.video_checkpoints import Stated, from_found
from videoclip.checkpoints.video_layouts import (
    FUSION,
    MODEL,
    PROJECTS,
    TABLES,
    TITLES,
    VARIANTS,
    Project,
    Variant,
    joined,
    layout_of,
    name_of,
    wrapper_of,
)
from videoclip.checkpoints.weights import save
from videoclip.config import to_json
from videoclip.errors import WeightsError, nearest
from videoclip.heads import LSTM, ClassToken, Convolution
from videoclip.layers import attention_heads
from videoclip.model import Model, VideoCLIP
from videoclip.towers import TSM, Labels, ResNet, Text
from videoclip.towers.labels import UNNAMED

Target = Literal[
    "clip4clip", "actionclip", "mmaction2", "tsm", "openai", "transformers", "videoclip"
]  # fmt: skip
TARGETS: tuple[Target, ...] = get_args(Target)
FOLDERS = ("transformers", "videoclip")
"""The layouts that are folders, written by `save`."""
IN_TRAINING = {"start", "dropout", "pairs_at_once", "frames", "templates"}
"""Settings that change nothing of what the weights compute."""


class Written(NamedTuple):
    """What a file in another project's layout holds, and what a user should know of it."""

    found: dict[str, Any]
    """As `torch.save` writes it."""
    retyped: tuple[str, ...]
    """The keys whose type is another than in the file that they came from."""
    left_out: tuple[str, ...]
    """What stood in that file and belongs to no model."""
    untold: tuple[str, ...]
    """What the model says of itself that the layout has no place for."""


def convert(
    model: VideoCLIP,
    target: Path,
    layout: Target,
    *,
    variant: Variant | None = None,
    precision: Precision = "file",
) -> Written | None:
    """Writes a model in a layout: a file, or a folder for `videoclip` and `transformers` (None).

    The `variant` is that with which the file is to be read again, as in `videoclip.load`. Raises
    WeightsError where something is there already, where the layout cannot express the model, and
    where the file cannot be written.
    """
    if layout not in TARGETS:
        raise WeightsError(f"layout is {layout!r}; {nearest(layout, TARGETS)}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise WeightsError(f"{target} is there already; delete it, or give another name")
    if layout in FOLDERS:
        if layout == "transformers":
            _require_kind(model.config, layout)
            _require_plain(model.config, "transformers")
            if hugging_face.files(model.config) is None:
                raise WeightsError(
                    "transformers' CLIP is a ViT and a text tower without a logit bias, and this "
                    "model is another; write it as --layout openai or videoclip"
                )
        save(model, target)
        return None
    written = in_layout(model, layout, variant=variant, precision=precision)
    _write(written.found, target)
    return written


def in_layout(
    model: VideoCLIP,
    layout: Target,
    *,
    variant: Variant | None = None,
    precision: Precision = "file",
) -> Written:
    """What `convert` writes into a file.

    A model that was read from a file of this layout gives that file again: its keys, its types and
    the parameters that nothing reads. Raises WeightsError where the layout cannot express it.
    """
    config = model.config
    _require_kind(config, layout)
    name = _head_name(config, layout) if layout in PROJECTS else None
    held = model.origin if model.origin is not None and model.origin.layout == layout else None
    names = _names(config, layout, held)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    tensors = joined(to_file(state, names))
    if held is None:
        tensors |= _unread(model, layout)
        held = _fresh(config, layout, tensors)
    else:
        tensors |= held.unread
    found, retyped = restored(held, tensors, precision)
    activation = config.text.activation if layout == "openai" else None
    classes = config.text.classes if isinstance(config.text, Labels) else None
    stated = Stated(activation, layout, variant, name, classes=classes)
    if layout not in PROJECTS:
        stated = stated._replace(variant=None)
    again, wrong = _read(config, found, stated)
    if wrong:
        then = "Next: write it in another --layout"
        if variant is None and layout in PROJECTS:
            other: Variant = "fixed" if VARIANTS[layout] == "reference" else "reference"
            if not _read(config, found, stated._replace(variant=other))[1]:
                then = (
                    f"Next: --variant {other} writes it, and `videoclip.load(file, variant="
                    f"{other!r})` gives it back; the code of {TITLES[layout]} itself computes "
                    "other numbers with it"
                )
        raise WeightsError("\n".join([f"{layout} cannot express this model:", *wrong, then]))
    untold = [
        f"{name} {value}"
        for name in ("frames", "templates")
        if (value := getattr(config, name)) not in (None, (), getattr(again, name))
    ]
    if classes and classes[0] != UNNAMED.format(0):
        untold.append(f"the names of {len(classes)} classes")
    return Written(
        found, tuple(retyped) if held is model.origin else (), held.left_out, tuple(untold)
    )


def _head_name(config: Model, project: Project) -> str:
    name = name_of(project, config.head, config.scorer)
    if name is None:
        raise WeightsError(
            f"{TITLES[project]} has no head for {config.head} with {config.scorer}; write the "
            "model as --layout videoclip"
        )
    return name


def _names(config: Model, layout: Target, held: Origin | None) -> Layout:
    """The file's names for the parameters, where they stood in that file if there was one."""
    if layout == "openai":
        return inside(openai)
    if layout == "tsm":
        return tsm_checkpoints.layout_of(
            config.visual, tsm_checkpoints.classifier_in(held.entries if held else {})
        )
    bare = held is not None and MODEL.rstrip(".") not in held.parts
    blocks = config.visual.layers if isinstance(config.visual, ResNet) else ()
    return layout_of(layout, config.head, wrapper_of(layout, config), blocks=blocks, bare=bare)


def _unread(model: VideoCLIP, layout: Target) -> dict[str, Tensor]:
    """What the layout's own code wants to find and does not read."""
    text, visual = model.config.text, model.config.visual
    if layout == "tsm":
        return {}
    assert isinstance(text, Text)
    if layout == "openai":
        if text.activation != "quick_gelu":
            return {}  # that code has no other, and these numbers say that the file is its own
        numbers = (visual.image_size, text.context_length, text.vocabulary)
        names = ("input_resolution", "context_length", "vocab_size")
        assert set(names) == OPENAI_ONLY
        return {n: torch.tensor(number) for n, number in zip(names, numbers, strict=True)}
    if not isinstance(model.config.head, LSTM | Convolution | ClassToken):
        return {}
    table = torch.zeros(text.context_length, model.config.embedding)
    if text.width == model.config.embedding:  # where that code starts it
        table = model.clip.positional_embedding.detach().cpu().float()
    return {TABLES[layout]: table}


def _fresh(config: Model, layout: Target, tensors: Mapping[str, Tensor]) -> Origin:
    """How a file of a layout is laid out: flat, or in the dictionaries that its code reads."""
    beside: dict[str, Any] = {}
    parts: tuple[str, ...] = ("",)
    if layout == "actionclip":
        parts, beside = (MODEL.rstrip("."), FUSION.rstrip(".")), {"epoch": 0}
    if layout == "mmaction2":
        parts, beside = ("state_dict",), {"meta": {}}
    if layout == "tsm":
        parts, beside = ("state_dict",), tsm_checkpoints.beside(config.visual)
    entries = {}
    for key, value in tensors.items():
        if layout == "tsm" and key == tsm_checkpoints.TEMPERATURE:
            continue
        part = next((p for p in parts if p and key.startswith(PREFIXES[p] or key)), parts[0])
        name = key.removeprefix(PREFIXES[part])
        # ActionCLIP's fusion module and TSM are saved inside the wrapper for several GPUs.
        name = f"module.{name}" if PREFIXES[part] == FUSION or layout == "tsm" else name
        entries[key] = Entry(
            part, name, str(value.dtype).removeprefix("torch."), tuple(value.shape)
        )
    return Origin(layout, parts, beside, (*beside, *(p for p in parts if p)), (), entries, {})


def _require_kind(config: Model, layout: Target) -> None:
    """Raises WeightsError for a classifier in a layout of CLIPs, and for a CLIP in TSM's."""
    if layout == "tsm" and not isinstance(config.visual, TSM):
        raise WeightsError(
            f"tsm files hold a classifier on a ResNet, and this model has {config.visual}; write "
            "it as --layout videoclip"
        )
    if layout != "tsm" and not isinstance(config.text, Text):
        raise WeightsError(
            f"{layout} files hold a CLIP; this model has no text tower; write it as --layout "
            "videoclip"
        )


def _require_plain(config: Model, layout: str) -> None:
    """Raises WeightsError for temporal modules in a layout that has none."""
    plain = Model(visual=config.visual, text=config.text, embedding=config.embedding)
    wrong = [
        f"  {slot}: the model has {getattr(config, slot)}"
        for slot in ("mixer", "head", "scorer")
        if getattr(config, slot) != getattr(plain, slot)
    ]
    if wrong:
        lines = "\n".join(wrong)
        raise WeightsError(
            f"{layout} files hold no temporal modules:\n{lines}\nWrite it as --layout videoclip"
        )


def _read(config: Model, found: dict[str, Any], stated: Stated) -> tuple[Model, list[str]]:
    """What is read again of a file, and a line for everything in which that is another model."""
    try:
        again = from_found(Path(f"the {stated.layout} file"), found, stated)
    except WeightsError as error:
        return config, [f"  {error}"]
    ours, theirs = _flat(config), _flat(again.model)
    wrong = [
        f"  {name}: the model has {ours.get(name)!r}, the file means {theirs.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if not wrong:
        with torch.device("meta"):
            wanted = to_file(again.model.build().state_dict(), again.layout)
        wanted |= {key: torch.empty(shape, device="meta") for key, shape in again.unread.items()}
        wrong = faults(wanted, again.weights)
    return again.model, wrong


def _flat(config: Model) -> dict[str, Any]:
    """What decides the numbers of a model, field by field, nothing left to be derived."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any, width: int) -> None:
        if not isinstance(value, dict):
            found[prefix] = value
            return
        width = value.get("width", width)
        for name, inner in value.items():
            if name in IN_TRAINING:
                continue
            if inner is None and name == "attention_heads":
                inner = attention_heads(width)
            if inner is None and name == "mlp_width":
                inner = 4 * width
            walk(f"{prefix}.{name}".lstrip("."), inner, width)

    walk("", to_json(config), config.embedding)
    return found


def _write(found: Mapping[str, Any], target: Path) -> None:
    """Writes a file, which gets its name last."""
    partial = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            if not all(isinstance(value, Tensor) for value in found.values()):
                raise WeightsError(
                    f"{target}: this layout is several dictionaries, and safetensors hold one; "
                    "choose a name that ends in .pt"
                )
            save_file(dict(found), partial, metadata={"format": "pt"})
        else:
            torch.save(dict(found), partial)
        partial.replace(target)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise WeightsError(
            f"{target} cannot be written: {error}; free some space or choose another place"
        ) from error
