"""The names that our parameters have in other people's files.

A layout says under which name, or under which three, each of our parameters stands in a file. It
is used in both directions and for the messages, so that they speak of the keys in the file. Ours
are OpenAI's names.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Layout = Callable[[str], tuple[str, ...]]
"""From one of our keys to the file's, one or (query, key, value)."""


def openai(key: str) -> tuple[str, ...]:
    """OpenAI's names, which are ours; also open_clip's `CLIP`."""
    return (key,)


def inside(layout: Layout) -> Layout:
    """The layout of a whole model: CLIP's keys as in the file, the slots' as they are."""

    def names(key: str) -> tuple[str, ...]:
        return layout(key.removeprefix("clip.")) if key.startswith("clip.") else (key,)

    return names


def custom_text(key: str) -> tuple[str, ...]:
    """open_clip's `CustomTextCLIP`, with the text tower in a module of its own."""
    whole = key.startswith(("visual.", "logit_"))
    return (key if whole else f"text.{key}",)


TRANSFORMERS = [
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # their spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".self_attn.*_proj.\1"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]


def transformers(key: str) -> tuple[str, ...]:
    """The names of transformers' `CLIPModel`, which keeps query, key and value apart."""
    for pattern, replacement in TRANSFORMERS:
        key = re.sub(pattern, replacement, key)
    return tuple(key.replace("*", part) for part in "qkv") if "*" in key else (key,)


def to_file(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our weights under a file's names."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        names = layout(key)
        turned = value.T if _is_turned(key, names) else value
        found |= zip(names, turned.chunk(len(names)) if len(names) > 1 else [turned], strict=True)
    return found


def from_file(
    weights: Mapping[str, Tensor], keys: Iterable[str], layout: Layout
) -> dict[str, Tensor]:
    """The weights of a file under our names."""
    found: dict[str, Tensor] = {}
    for key in keys:
        names = layout(key)
        parts = [weights[name] for name in names]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[key] = joined.T.contiguous() if _is_turned(key, names) else joined
    return found


def _is_turned(key: str, names: tuple[str, ...]) -> bool:
    """Whether a bare matrix of ours is a linear layer there, hence transposed."""
    return key.endswith(("visual.proj", "text_projection")) and names[0].endswith(".weight")


def shape_of(value: object) -> tuple[int, ...] | None:
    """The shape of a tensor whose numbers the file holds, each of them; None for all else.

    A tensor may also be sparse or nested, have no numbers, or say a few of them a million times.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return None
    if value.is_meta or value.numel() * value.itemsize > value.untyped_storage().nbytes():
        return None
    return tuple(value.shape)


def faults(
    wanted: Mapping[str, Tensor], found: Mapping[str, Any], *, sized: bool = True
) -> list[str]:
    """One line for every key that is missing, unexpected (with the nearest) or misshapen.

    Where the sizes of `wanted` are not known, only the number of axes is compared.
    """
    shapes = {key: tuple(value.shape) for key, value in wanted.items()}
    missing = {key: shape for key, shape in shapes.items() if key not in found}
    lines = [f"  missing: {key}" for key in missing]
    for key, value in found.items():
        shape = shape_of(value)
        if key not in wanted:
            lines.append(f"  unexpected: {key}{_nearest(key, shape if sized else None, missing)}")
        elif shape is None:
            what = "a tensor of another kind" if isinstance(value, Tensor) else type(value).__name__
            lines.append(f"  no plain tensor: {key} is {what}")
        elif sized and shape != shapes[key]:
            lines.append(f"  misshapen: {key} is {shape}, expected {shapes[key]}")
        elif len(shape) != len(shapes[key]):
            lines.append(f"  misshapen: {key} is {shape}, expected {len(shapes[key])} axes")
        elif value.is_floating_point() != wanted[key].is_floating_point():
            lines.append(f"  wrong type: {key} is {value.dtype}, expected {wanted[key].dtype}")
    return sorted(lines)


def _nearest(
    key: str, shape: tuple[int, ...] | None, missing: Mapping[str, tuple[int, ...]]
) -> str:
    """The missing key that an unexpected one may stand for: of its shape, if there is one."""
    known = [name for name, size in missing.items() if size == shape] or list(missing)
    # A prefix too many or too few is the usual fault, and is found quickly for thousands of keys.
    ends = [name for name in known if key.endswith(name) or name.endswith(key)]
    close = [max(ends, key=len)] if ends else difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
