"""Configuration as strict JSON: frozen dataclasses out and in, nothing imported by name.

A slot (mixer, head, scorer) and the vision tower are written as the member's file name and fields,
such as `{"kind": "lstm", "layers": 1}`. Members are the subclasses of the slot's base class, which
are known once the slot's folder is imported.
"""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from videoclip.errors import VideoclipError, nearest
from videoclip.heads import Head
from videoclip.mixers import Mixer
from videoclip.scorers import Scorer
from videoclip.tasks import Task
from videoclip.towers import Language, Visual

SLOTS: dict[str, type] = {"mixer": Mixer, "head": Head, "scorer": Scorer}
"""The fields of `Model` that hold a temporal module, and the base class of their members."""
CHOICES = (Visual, Language, Task, *SLOTS.values())
"""The base classes whose members are told apart by their `kind`."""

EARLIER = {Visual: "vit", Language: "text"}
"""What files mean that were written when there was one tower of a kind only."""


class ConfigError(VideoclipError):
    """A configuration that does not fit; the message names the field and the nearest one."""


def kind(member: type) -> str:
    """The name that users give a slot's member: the name of its file."""
    return member.__module__.rpartition(".")[2]


def members(slot: type) -> dict[str, type]:
    """All members of a slot, by name."""
    return {kind(member): member for member in slot.__subclasses__()}


def to_json(value: Any) -> Any:
    """A configuration as what `json.dumps` writes; Path becomes a string, a tuple a list."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        is_member = type(value).__mro__[1] in CHOICES
        return {"kind": kind(type(value)), **fields} if is_member else fields
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(annotation: Any, value: Any, where: str = "") -> Any:
    """Builds what `annotation` says from JSON.

    Raises ConfigError for an unknown field or member (naming the nearest) and for a wrong type.
    """
    if annotation in CHOICES:
        annotation, value = _member(annotation, value, where)
    if dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, value, where)
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Literal and value in options:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return from_json(next(o for o in options if o is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        inner = [options[0]] * len(value) if options[-1] is ... else options
        if len(inner) == len(value):
            return tuple(from_json(o, v, where) for o, v in zip(inner, value, strict=True))
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and type(value) in (int, float):
        return float(value)
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    raise ConfigError(f"{where or 'the configuration'} is {value!r}; expected {annotation}")


def _member(slot: type, value: Any, where: str) -> tuple[type, dict[str, Any]]:
    if slot in EARLIER and isinstance(value, Mapping):
        value = {"kind": EARLIER[slot], **value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ConfigError(f"{where} is {value!r}; expected an object with a 'kind'")
    known = members(slot)
    if value["kind"] not in known:
        raise ConfigError(
            f"{where} has the unknown kind {value['kind']!r}; {nearest(str(value['kind']), known)}"
        )
    return known[value["kind"]], {k: v for k, v in value.items() if k != "kind"}


def _dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {value!r}; expected an object")
    hints = get_type_hints(cls)
    for name in value:
        if name not in hints:
            raise ConfigError(f"{where or cls.__name__} has no {name!r}; {nearest(name, hints)}")
    prefix = f"{where}." if where else ""
    return cls(**{k: from_json(hints[k], v, prefix + k) for k, v in value.items()})
