"""Other people's checkpoints -> our configuration and their weights, not yet in a model.

The sizes follow from the weights, or stand in the open_clip_config.json beside them; then they are
checked against the weights when those are loaded. For transformers' folders see hugging_face.py.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videoclip.checkpoints.archives import is_torchscript, program_activation
from videoclip.checkpoints.layouts import (
    Layout,
    custom_text,
    faults,
    inside,
    openai,
    shape_of,
    to_file,
)
from videoclip.checkpoints.origin import Origin, opened
from videoclip.errors import WeightsError, explained
from videoclip.frames.transforms import Pixels
from videoclip.layers import Activation, attention_heads
from videoclip.model import Model
from videoclip.tokenizer import VOCABULARY
from videoclip.towers import ResNet, Text, Visual, ViT


class Checkpoint(NamedTuple):
    """Weights as a file holds them, and all that is needed to put them into a model."""

    model: Model
    weights: dict[str, Any]
    layout: Layout
    """From the keys of a whole model to the file's."""
    origin: Origin | None = None
    """How the file held them, where that can be written again."""
    unread: Mapping[str, tuple[int, ...]] = {}
    """The keys, with their shapes, of what must be there and is not read."""
    title: str = ""
    """Such as CLIP4Clip's seqTransf, where the keys told that."""


# What files hold beside the weights.

OPENAI_ONLY = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that only OpenAI's own files hold beside the weights."""
DERIVED = {
    "attn_mask", "text.attn_mask", "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
}  # fmt: skip
"""Buffers that older files hold and that follow from the sizes."""


def cleaned(found: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict in float32, without what follows from the sizes."""
    weights = {str(key): value for key, value in found.items()}
    weights = {key: value for key, value in weights.items() if key not in DERIVED}
    taken: set[int] = set()
    for key, value in weights.items():
        if shape_of(value) is None:
            continue  # which is listed with the other faults
        value = value.detach()
        if value.is_floating_point():
            value = value.float()
        memory = value.untyped_storage().data_ptr()
        if memory in taken:
            value = value.clone()  # of two tensors in one memory, training would change both
        taken.add(memory)
        weights[key] = value
    if not any(key.endswith(COUNTER) for key in weights):  # which nothing reads
        means = [key for key in weights if key.endswith("running_mean")]
        counters = [key.removesuffix("running_mean") + COUNTER for key in means]
        weights |= {key: torch.tensor(0) for key in counters}
    return weights


COUNTER = "num_batches_tracked"
"""The end of the name of batch normalization's counter, which some files hold none of."""


def with_scalars(weights: dict[str, Any]) -> dict[str, Any]:
    """The same with temperature and bias as scalars, of which sharded training makes vectors."""
    for name in ("logit_scale", "logit_bias"):
        if shape_of(weights.get(name)) == (1,):
            weights[name] = weights[name][0]
    return weights


def agreed(stated: Activation | None, known: Activation, source: object) -> Activation:
    """The activation a checkpoint says it has; WeightsError where the user states another."""
    if stated is not None and stated != known:
        raise WeightsError(
            f"{source} was trained with {known}, not with {stated}: with the wrong activation the "
            f"weights give other numbers and no error; leave activation out or say {known!r}"
        )
    return known


# The three kinds of checkpoint.


def from_weights(
    path: Path, found: Mapping[str, Any], stated: Activation | None = None
) -> Checkpoint:
    """A file: OpenAI's archive, or a state dict with an open_clip_config.json beside it or without.

    `found` is what the file holds, as `archives.read` gives it.

    Raises WeightsError where something cannot be known: the activation, if neither the file nor
    the user says it, and the attention heads of towers wider than OpenAI's; and where OpenAI's
    weights are to be used with another activation than theirs.
    """
    origin, raw = opened(found, "openai")
    weights = with_scalars(cleaned(raw))
    known = program_activation(path) if is_torchscript(path) else None
    if weights.keys() >= OPENAI_ONLY:
        known = known or "quick_gelu"
        weights = {key: value for key, value in weights.items() if key not in OPENAI_ONLY}
    if known is not None:
        agreed(stated, known, path)
    if (path.parent / OPEN_CLIP).is_file():
        checkpoint = _described(weights, path, stated, known)
    else:
        checkpoint = _bare(weights, path, stated or known)
    if any(key.startswith("text.") for key in weights):
        return checkpoint  # open_clip's other layout, which nothing here writes
    unread = {key: raw[key] for key in origin.entries if key not in weights}
    return checkpoint._replace(origin=origin._replace(unread=unread))


def _bare(weights: dict[str, Any], source: Path, activation: Activation | None) -> Checkpoint:
    """A state dict without a configuration: the sizes follow from the weights."""
    layout = _layout(weights, source)
    if activation is None:
        raise WeightsError(
            f"{source} does not say which activation its weights were trained with, and the wrong "
            "one gives wrong numbers without an error; say load(..., activation='quick_gelu') for "
            "OpenAI's weights and models that open_clip calls -quickgelu, activation='gelu' for "
            f"its other models, or put the model's {OPEN_CLIP} beside the file"
        )
    model = sizes(weights, inside(layout), activation, source)
    if isinstance(model.visual, ViT) and model.visual.width > 1024:
        raise WeightsError(
            f"{source} has a vision tower of width {model.visual.width}; over 1024 the number of "
            "attention heads differs between models and cannot be read off the weights; put the "
            f"model's {OPEN_CLIP} beside the file"
        )
    return Checkpoint(model, weights, inside(layout))


def _layout(weights: Mapping[str, Any], source: Path) -> Layout:
    if any(key.startswith(("text_model.", "vision_model.")) for key in weights):
        raise WeightsError(
            f"{source} has the key names of transformers, whose sizes stand in config.json; give "
            "the folder that holds both"
        )
    if not any(key.startswith("visual.") for key in weights):
        some = ", ".join(sorted(weights)[:5]) or "nothing"
        raise WeightsError(f"{source} holds no CLIP (no key starts with 'visual.'); it has {some}")
    for prefix in ("visual.trunk.", "text.transformer.embeddings."):
        if any(key.startswith(prefix) for key in weights):
            raise WeightsError(
                f"{source} has a tower of another library (keys {prefix}*); read here are CLIP's "
                "ViT, ResNet and text transformer; use open_clip"
            )
    return custom_text if any(key.startswith("text.") for key in weights) else openai


def sizes(
    weights: Mapping[str, Any],
    layout: Layout,
    activation: Activation,
    source: Path,
    **known: Any,
) -> Model:
    """The model that OpenAI's rules read off the weights; `known` fields are taken as they are.

    Raises WeightsError, which lists every key, where one is not there that says a size.
    """
    absent: set[str] = set()

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        [name] = layout(f"clip.{key}")
        found = shape_of(weights.get(name)) or ()
        if len(found) != dimensions:
            absent.add(name)
            return (64,) * dimensions  # so that all other keys can be looked at
        return found

    def count(prefix: str) -> int:
        [name] = layout(f"clip.{prefix}.0.")
        return numbered(weights, name.partition(".0.")[0], source)

    def mlp(prefix: str, width: int) -> int | None:
        start = f"{prefix}.0.mlp.c_"
        inner, outer = shape(f"{start}fc.weight", 2), shape(f"{start}proj.weight", 2)
        hidden = usual(inner[0], outer[1], *shape(f"{start}fc.bias", 1))
        return None if hidden == 4 * width else hidden

    vocabulary, *widths = shape("token_embedding.weight", 2)
    context, width = shape("positional_embedding", 2)
    projected, embedding = shape("text_projection", 2)
    width = usual(*widths, width, projected)
    text = Text(
        width=width, layers=count("transformer.resblocks"), context_length=context,
        vocabulary=vocabulary, activation=activation, mlp_width=mlp("transformer.resblocks", width),
    )  # fmt: skip
    visual: Visual
    if any(key.startswith(layout("clip.visual.layer1.")) for key in weights):
        cells, _ = shape("visual.attnpool.positional_embedding", 2)
        visual = ResNet(
            width=shape("visual.layer1.0.conv1.weight", 4)[0],
            layers=tuple(count(f"visual.layer{stage}") for stage in (1, 2, 3, 4)),
            image_size=32 * _side(cells),
        )
    else:
        width, _, patch, _ = shape("visual.conv1.weight", 4)
        tokens, other = shape("visual.positional_embedding", 2)
        width = usual(width, other, shape("visual.proj", 2)[0])
        blocks = "visual.transformer.resblocks"
        threefold = layout("clip.visual.conv2.weight")[0] in weights
        visual = ViT(
            width=width, layers=count(blocks), patch_size=patch, activation=activation,
            image_size=patch * _side(tokens), mlp_width=mlp(blocks, width),
            patch_frames=3 if threefold else 1,
        )  # fmt: skip
    bias = -10.0 if layout("clip.logit_bias")[0] in weights else None  # overwritten by the weights
    model = Model(visual=visual, text=text, embedding=embedding, logit_bias=bias, **known)
    if absent:
        with torch.device("meta"):
            wanted = to_file(model.build().state_dict(), layout)
        lines = faults(wanted, weights, sized=False)
        raise WeightsError(
            f"the sizes of {source} cannot be read off its weights: {', '.join(sorted(absent))} "
            "must be there for that:\n" + "\n".join(lines)
        )
    return model


def usual(*sizes: int) -> int:
    """Of several tensors' word for one size the most frequent, so that the odd one is named."""
    return Counter(sizes).most_common(1)[0][0]


def _side(tokens: int) -> int:
    """The side of a square of so many tokens, the class token among them."""
    return round(max(tokens - 1, 0) ** 0.5)


def numbered(weights: Mapping[str, Any], prefix: str, source: Path) -> int:
    """One more than the highest number after a prefix of keys, so that gaps show as missing.

    Raises WeightsError where it is more than the file has keys.
    """
    numbers = (re.match(re.escape(prefix) + r"\.(\d{1,18})\.", key) for key in weights)
    found = max((int(number[1]) + 1 for number in numbers if number), default=0)
    if found > len(weights):
        raise WeightsError(
            f"{source} has a key {prefix}.{found - 1}.* among {len(weights)} keys, and blocks are "
            "numbered from 0; get it again"
        )
    return found


# open_clip's configuration.

OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names of open_clip's files on the hub, the better first."""
UNREAD = {"patch_dropout", "pad_id"}
"""Settings of open_clip's towers that change nothing where nothing is trained."""
TOKENIZER = {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"}
"""Another tokenizer is no matter where the vocabulary tells it from CLIP's, which then refuses."""
USUAL = {
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
}
"""Other settings are followed where they switch nothing on, or have these values."""


def _described(
    weights: dict[str, Any], source: Path, stated: Activation | None, known: Activation | None
) -> Checkpoint:
    """A state dict with open_clip's configuration beside it."""
    path = source.parent / OPEN_CLIP
    layout = _layout(weights, source)
    with explained(f"{path} cannot be used", "get it again"):
        written = json.loads(path.read_text())
        config = written.get("model_cfg", written)
        if config.get("multimodal_cfg"):
            raise WeightsError(
                f"{path} describes CoCa, with a captioning decoder; this reads CLIP only"
            )
        quick = config.get("quick_gelu", False)
        if not isinstance(quick, bool):
            raise ValueError(f"quick_gelu is {quick!r}, expected true or false")
        activation: Activation = "quick_gelu" if quick else "gelu"
        agreed(stated, activation, path)
        if known not in (None, activation):
            raise WeightsError(
                f"{source} was trained with {known}, but {path} asks for {activation}: with the "
                "wrong activation the weights give other numbers and no error; correct quick_gelu "
                "there"
            )
        model = Model(
            visual=_open_clip_visual(dict(config["vision_cfg"]), activation, path),
            text=_open_clip_text(dict(config["text_cfg"]), activation, path),
            embedding=config["embed_dim"],
            pixels=_open_clip_pixels(written.get("preprocess_cfg", {}), path),
            logit_bias=-10.0 if "logit_bias" in weights else None,
        )
    return Checkpoint(model, weights, inside(layout))


def _open_clip_visual(config: dict[str, Any], activation: Activation, path: Path) -> Visual:
    width, layers = config.pop("width", 768), config.pop("layers", 12)
    patch, image = config.pop("patch_size", 16), config.pop("image_size", 224)
    head_width, ratio = config.pop("head_width", 64), config.pop("mlp_ratio", 4.0)
    _refuse_others(config, {**USUAL, "pool_type": "tok"}, path)
    if isinstance(layers, list):
        if head_width != 64:
            raise WeightsError(f"{path} has head_width {head_width}; a ResNet here has 64")
        return ResNet(width=width, layers=tuple(layers), image_size=image)
    heads, hidden = width // head_width, int(width * ratio)
    return ViT(
        width=width, layers=layers, patch_size=patch, image_size=image, activation=activation,
        attention_heads=None if head_width == 64 else heads,
        mlp_width=None if hidden == 4 * width else hidden,
    )  # fmt: skip


def _open_clip_text(config: dict[str, Any], activation: Activation, path: Path) -> Text:
    width, heads = config.pop("width", 512), config.pop("heads", 8)
    layers, ratio = config.pop("layers", 12), config.pop("mlp_ratio", 4.0)
    context, vocabulary = config.pop("context_length", 77), config.pop("vocab_size", 49408)
    end = config.pop("eos_id", 2)
    end = end if config.get("pool_type") == "eos" else None
    if vocabulary != VOCABULARY:
        config = {name: value for name, value in config.items() if name not in TOKENIZER}
    _refuse_others(config, {**USUAL, "pool_type": "eos" if end is not None else "argmax"}, path)
    hidden = int(width * ratio)
    return Text(
        width=width, layers=layers, context_length=context, vocabulary=vocabulary,
        activation=activation, end_of_text=end,
        attention_heads=None if heads == attention_heads(width) else heads,
        mlp_width=None if hidden == 4 * width else hidden,
    )  # fmt: skip


def _open_clip_pixels(config: Mapping[str, Any], path: Path) -> Pixels:
    constants = {name: tuple(config[name]) for name in ("mean", "std") if name in config}
    squashed = config.get("resize_mode") == "squash"
    usual = {"interpolation": "bicubic", "mode": "RGB"}
    usual["resize_mode"] = "squash" if squashed else "shortest"
    # The size is the tower's, which stands in the model's part too.
    read = {"mean", "std", "size", "fill_color"}
    _refuse_others({k: v for k, v in config.items() if k not in read}, usual, path)
    return Pixels(**constants, fit="squash" if squashed else "crop")


def _refuse_others(config: Mapping[str, Any], usual: Mapping[str, Any], path: Path) -> None:
    """Raises WeightsError for settings that change what the model computes and are not built."""
    others = {
        name: value
        for name, value in config.items()
        if name not in UNREAD and value and value != usual.get(name)
    }
    if others:
        listed = ", ".join(f"{name} = {value!r}" for name, value in others.items())
        raise WeightsError(f"{path} asks for what is not built here: {listed}; use open_clip")
