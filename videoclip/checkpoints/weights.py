"""Weights <-> model: opens every kind of CLIP checkpoint, writes one that others open too.

Nothing that is read is executed, and a key that is missing, unexpected or misshapen is an error
that lists all of them.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from videoclip.checkpoints import clip_checkpoints as checkpoints
from videoclip.checkpoints import hugging_face, named, origin, video_checkpoints
from videoclip.checkpoints.archives import read
from videoclip.checkpoints.card import MARK, model_card
from videoclip.checkpoints.clip_checkpoints import Checkpoint
from videoclip.checkpoints.downloads import OUR_SLOTS, OURS, hub_folder
from videoclip.checkpoints.layouts import (
    Layout,
    faults,
    from_file,
    inside,
    openai,
    to_file,
    transformers,
)
from videoclip.checkpoints.tsm_checkpoints import Classes
from videoclip.checkpoints.video_checkpoints import Stated, refuse_stated
from videoclip.checkpoints.video_layouts import Variant
from videoclip.config import from_json, nearest, to_json
from videoclip.errors import WeightsError, explained
from videoclip.layers import Activation
from videoclip.model import Model, count_parameters
from videoclip.towers import Text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from videoclip.model import VideoCLIP

WEIGHTS = hugging_face.WEIGHTS
CONFIG = OURS
SLOTS = OUR_SLOTS
ORIGIN = "origin.safetensors"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""What has such an end, also before a number as in pytorch_model.bin.4, is never a hub's name."""
FORMAT = 2


def load(
    source: str | Path,
    *,
    activation: Activation | None = None,
    layout: str | None = None,
    variant: Variant | None = None,
    head: str | None = None,
    frames: int | None = None,
    classes: Classes = None,
) -> "VideoCLIP":
    """Opens a model in evaluation mode and float32, whoever wrote its weights.

    `source` is a folder that `save_pretrained` wrote, a folder in transformers' form, one of
    OpenAI's files, a state dict of open_clip or of OpenAI's code, a file of CLIP4Clip, ActionCLIP,
    mmaction2's ActionCLIP or TSM; else the name of one of OpenAI's models (ViT-B/32) or, as a
    string, a name on the Hugging Face hub (owner/name). Activation, normalization, context length,
    temporal modules and, where they are told, frames and templates come with the weights. Only a
    bare state dict does not say which `activation` it needs, and is taken to be normalized as
    OpenAI's models are.

    What the keys of a video model cannot tell is asked for: `layout` (openai, clip4clip,
    actionclip, mmaction2, tsm), the `head` by the project's own name for it, such as seqTransf. The
    `frames` that it was trained with may be stated, to travel with the model, and of a classifier
    of TSM the `classes`: their names in order, or a file of them. With `variant` fixed
    the weights are used without the faults of the code they come from; that is meant for models
    which were trained so here and then written in those layouts.

    Raises WeightsError, which lists every key that does not fit and says what to do.
    """
    name, path = str(source), Path(source)
    stated = Stated(activation, layout, variant, head, frames, classes)
    if path.is_file():
        if path.name in (WEIGHTS, SLOTS, ORIGIN) and (path.parent / CONFIG).is_file():
            raise WeightsError(f"{path} is a part of a model; give its folder, {path.parent}")
        return _built(video_checkpoints.from_file(path, stated), path)
    if path.is_dir():
        refuse_stated(name, stated)
        return _built(_folder(path, activation), path)
    if name in named.ARCHITECTURES:
        refuse_stated(name, stated)
        path = named.fetch(name)
        return _built(checkpoints.from_weights(path, read(path), activation), name)
    is_file_name = any(suffix in SUFFIXES for suffix in path.suffixes)
    if re.match(r"vit-|rn\d", name.lower()) and not is_file_name:
        raise WeightsError(
            f"there is no file or folder {name}, and OpenAI has no such model; "
            f"{nearest(name, named.ARCHITECTURES)}"
        )
    is_name = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    if is_name and not is_file_name:
        refuse_stated(name, stated)
        return _built(_folder(hub_folder(name), activation), name)
    raise WeightsError(
        f"there is no file or folder {name}; give the path of one that is there, a name on the "
        f"Hugging Face hub (owner/name) or a model of OpenAI ({', '.join(named.ARCHITECTURES)})"
    )


def _folder(folder: Path, activation: Activation | None) -> Checkpoint:
    if any((folder / name).is_file() for name in (CONFIG, CONFIG + ".part")):
        return _saved(folder, activation)
    if hugging_face.is_clip(folder / hugging_face.CONFIG) and hugging_face.weights_of(folder):
        return hugging_face.from_folder(folder, activation)
    for file in checkpoints.OPEN_CLIP_WEIGHTS:
        if (folder / file).is_file():
            return checkpoints.from_weights(folder / file, read(folder / file), activation)
    files = [f.name for f in folder.iterdir() if f.is_file() and set(f.suffixes) & {*SUFFIXES}]
    there = f" ({', '.join(sorted(files)[:5])})" if files else ""
    raise WeightsError(
        f"{folder} holds no complete model: neither {CONFIG} (ours) nor a {hugging_face.CONFIG} of "
        f"model_type clip with {' or '.join(hugging_face.NAMES)} (transformers) nor "
        f"{' or '.join(checkpoints.OPEN_CLIP_WEIGHTS)} (open_clip); for another file give its "
        f"path{there}"
    )


def _saved(folder: Path, activation: Activation | None) -> Checkpoint:
    """A folder that `save` wrote."""
    if not (folder / CONFIG).is_file():
        raise WeightsError(
            f"{folder} holds no complete model: writing it was interrupted; save it again"
        )
    with explained(f"{folder} is damaged", "save the model again"):
        written = json.loads((folder / CONFIG).read_text())
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        found = written.get("format") if isinstance(written, dict) else None
        raise WeightsError(
            f"{folder} has format {found!r}, this version reads {FORMAT}; "
            "use the version of videoclip that wrote it"
        )
    with explained(f"{folder / CONFIG} cannot be used", "save the model again"):
        model = from_json(Model, written.get("model"), "model")
    if isinstance(model.text, Text):
        checkpoints.agreed(activation, model.text.activation, folder)
    weights = read(folder / WEIGHTS)
    if (folder / SLOTS).is_file():
        weights |= read(folder / SLOTS)
    layout = openai if hugging_face.files(model) is None else transformers
    beside = None
    if (folder / ORIGIN).is_file():
        beside = _origin(folder / ORIGIN)
    return Checkpoint(model, checkpoints.cleaned(weights), inside(layout), beside)


def _origin(path: Path) -> origin.Origin:
    """What `save` wrote beside a model that came from another project's file."""
    with (
        explained(f"{path} cannot be used", "delete it: the model itself does not need it"),
        safe_open(path, "pt") as file,
    ):
        unread = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return origin.from_text(file.metadata()[ORIGIN], unread)


def _built(checkpoint: Checkpoint, source: object) -> "VideoCLIP":
    """The model of a checkpoint; built without memory, since it takes over the file's tensors."""
    with explained(f"{source} describes a model that cannot be built", "get it again"):
        _require_sizes(checkpoint.model)
        with torch.device("meta"):
            model = checkpoint.model.build()
    read_as = f", read as {checkpoint.title}," if checkpoint.title else ""
    load_exactly(
        model, checkpoint.weights, f"{source}{read_as}", checkpoint.layout, checkpoint.unread
    )
    if checkpoint.origin is not None:
        unread = {key: checkpoint.weights[key] for key in checkpoint.unread}
        model.origin = checkpoint.origin._replace(unread=checkpoint.origin.unread | unread)
    still = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not still, f"buffers that are not saved must be made on the CPU by name: {still}"
    return model.eval()


def _require_sizes(model: Model) -> None:
    """Raises ConfigError or ValueError for what is no size; other projects' files may hold any."""
    from_json(Model, to_json(model), "model")
    for name, tower in (("visual", model.visual), ("text", model.text)):
        for field, value in vars(tower).items():
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is int and number < (field != "end_of_text"):
                    raise ValueError(f"{name}.{field} is {value}")
    if model.embedding < 1:
        raise ValueError(f"embedding is {model.embedding}")


def load_exactly(
    module: "nn.Module",
    weights: "dict[str, Tensor]",
    source: str,
    layout: Layout = openai,
    unread: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Loads weights into a module, or raises WeightsError that lists every key that is wrong.

    A module on the meta device takes over the tensors themselves. `unread` keys must be there in
    these shapes and are not read.
    """
    own = module.state_dict()
    beside = {key: torch.empty(shape, device="meta") for key, shape in (unread or {}).items()}
    wrong = faults(to_file(own, layout) | beside, weights)
    if wrong:
        raise WeightsError(
            f"the weights of {source} do not fit the model; get them again, or put these keys "
            "right:\n" + "\n".join(wrong)
        )
    is_meta = any(value.is_meta for value in own.values())
    module.load_state_dict(from_file(weights, own, layout), assign=is_meta)


def save(model: "VideoCLIP", folder: Path) -> None:
    """Writes a model into a folder, from which `load` gets it back exactly.

    What transformers' CLIPModel can compute is written as CLIPModel reads it (config.json and
    model.safetensors), else under OpenAI's names; the slots' weights stand in a file of their own.
    Our configuration gets its name last, so half a folder never loads. Raises WeightsError.
    """
    files = hugging_face.files(model.config)
    layout = openai if files is None else transformers
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    clip = {k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")}
    slots = {key: value for key, value in state.items() if not key.startswith("clip.")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / (CONFIG + ".part")
        partial.write_text(_json({"format": FORMAT, "model": to_json(model.config)}))
        for stale in (CONFIG, SLOTS, ORIGIN, hugging_face.CONFIG, *hugging_face.PROCESSORS):
            (folder / stale).unlink(missing_ok=True)
        _write_tensors(to_file(clip, layout), folder / WEIGHTS)
        if slots:
            _write_tensors(slots, folder / SLOTS)
        if model.origin is not None:
            text = origin.to_text(model.origin)
            _write_tensors(model.origin.unread, folder / ORIGIN, {ORIGIN: text})
        for name, content in (files or {}).items():
            (folder / name).write_text(_json(content))
        card = folder / "README.md"
        if not card.is_file() or MARK.encode() in card.read_bytes():
            parameters = count_parameters(list(model.parameters()))
            card.write_text(model_card(model.config, parameters, for_transformers=bool(files)))
        partial.replace(folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the model cannot be written to {folder}: {error}; free some space or choose another "
            "folder"
        ) from error


def _write_tensors(
    weights: "dict[str, Tensor]", path: Path, beside: Mapping[str, str] | None = None
) -> None:
    partial = path.with_name(path.name + ".part")
    # Parts of one tensor share memory, which safetensors refuses.
    whole = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()
    }
    save_file(whole, partial, metadata={"format": "pt", **(beside or {})})
    # safetensors writes for the owner alone; who may read the other files may read this one.
    shutil.copymode(path.with_name(CONFIG + ".part"), partial)
    partial.replace(path)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
