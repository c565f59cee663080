"""How weights stood in the file they came from, so that they can be written back exactly so.

CLIP4Clip and ActionCLIP write half-precision tensors among others, put their keys under prefixes
and into several dictionaries, and save parameters that nothing reads. A model here is float32 and
holds what is computed; this is the rest.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from videoclip.checkpoints.layouts import shape_of

WRAPPERS = re.compile(r"((module|_orig_mod)\.)*")
"""What wrappers for several processes and for compilation put before every key."""
PREFIXES = {"": "", "state_dict": "", "model_state_dict": "model_state_dict.",
            "fusion_model_state_dict": "fusion_model_state_dict."}  # fmt: skip
"""The dictionaries of a file that hold tensors ("" is the file itself), and what we put before
their keys. ActionCLIP's two hold keys of the same name."""
Precision = Literal["file", "float32", "float16", "bfloat16"]


class Entry(NamedTuple):
    """How one tensor stood in the file."""

    part: str
    """The dictionary that held it, one of PREFIXES."""
    name: str
    """Its key there."""
    type: str
    """Such as float16."""
    shape: tuple[int, ...]


class Origin(NamedTuple):
    """What a file says beside a model's weights. Keys are those in our messages."""

    layout: str
    """Whose file it was, such as clip4clip."""
    parts: tuple[str, ...]
    """The dictionaries of tensors, in the file's order; ("",) where the file is one itself."""
    beside: dict[str, Any]
    """The numbers and texts that stood beside them, such as the epoch."""
    order: tuple[str, ...]
    """The names of `parts` and `beside` as they followed each other."""
    left_out: tuple[str, ...]
    """What else stood there and belongs to no model: the optimizer's state."""
    entries: dict[str, Entry]
    """Every tensor, in the file's order."""
    unread: dict[str, Tensor]
    """The parameters that nothing reads."""


def opened(found: Mapping[str, Any], layout: str) -> tuple[Origin, dict[str, Any]]:
    """What a file holds -> its origin, and all values of its state dicts under cleaned keys."""
    parts = [str(name) for name, value in found.items() if _is_part(name, value)]
    beside = {str(n): v for n, v in found.items() if parts and n not in parts and _is_plain(v)}
    order = tuple(str(n) for n in found if n in parts or n in beside)
    left_out = tuple(str(n) for n in found if parts and n not in order)
    entries: dict[str, Entry] = {}
    weights: dict[str, Any] = {}
    for part in parts or [""]:
        held = {str(key): value for key, value in (found[part] if part else found).items()}
        wrapped = len({WRAPPERS.match(key)[0] for key in held}) == 1
        for name, value in held.items():
            key = PREFIXES[part] + (WRAPPERS.sub("", name, count=1) if wrapped else name)
            weights[key] = value
            if (shape := shape_of(value)) is not None:
                entries[key] = Entry(part, name, str(value.dtype).removeprefix("torch."), shape)
    origin = Origin(layout, tuple(parts or [""]), beside, order, left_out, entries, {})
    return origin, weights


def _is_part(name: Any, value: Any) -> bool:
    return bool(name) and name in PREFIXES and isinstance(value, Mapping)


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


def restored(
    origin: Origin, weights: Mapping[str, Tensor], precision: Precision = "file"
) -> tuple[dict[str, Any], list[str]]:
    """Weights under cleaned keys -> what the file held, and the keys that became another type.

    `precision` is "file", a tensor's type in the file unless a value would be rounded, which then
    stays float32; or a type for all of them.
    """
    held: dict[str, dict[str, Tensor]] = {part: {} for part in origin.parts}
    changed = []
    for key, entry in origin.entries.items():
        value = weights[key].reshape(entry.shape)
        stored = value
        if value.is_floating_point():
            stored = value.to(getattr(torch, entry.type if precision == "file" else precision))
            if precision == "file" and not _same(stored.to(value.dtype), value):
                stored = value
        if str(stored.dtype) != f"torch.{entry.type}":
            changed.append(key)
        # One memory each: torch would otherwise write the whole tensor that this is a part of.
        held[entry.part][entry.name] = stored.clone(memory_format=torch.contiguous_format)
    if origin.parts == ("",):
        return held[""], changed
    return {name: held.get(name, origin.beside.get(name)) for name in origin.order}, changed


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def to_text(origin: Origin) -> str:
    """An origin without its tensors, as strict JSON."""
    return json.dumps(origin._replace(unread={})._asdict(), allow_nan=False)


def from_text(text: str, unread: dict[str, Tensor]) -> Origin:
    """The inverse of `to_text`. Raises ValueError, TypeError or KeyError for anything else."""
    held = json.loads(text)
    entries = {
        key: Entry(part, name, kind, tuple(shape))
        for key, (part, name, kind, shape) in held["entries"].items()
    }
    types = {entry.type for entry in entries.values()}
    if not all(isinstance(getattr(torch, name, None), torch.dtype) for name in types):
        raise ValueError(f"it names a type that no tensor has, of {', '.join(sorted(types))}")
    parts = tuple(held["parts"])
    if {entry.part for entry in entries.values()} - set(parts) or set(parts) - PREFIXES.keys():
        raise ValueError("it names parts that no file has")
    order, left_out = tuple(held["order"]), tuple(held["left_out"])
    return Origin(held["layout"], parts, held["beside"], order, left_out, entries, unread)
