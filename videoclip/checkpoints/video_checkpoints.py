"""Files of CLIP4Clip, ActionCLIP and mmaction2's port -> our configuration and their weights.

Those of TSM on torchvision's ResNet, which are no CLIP, are handed on to tsm_checkpoints.py.

Whose file it is, which head it holds and all sizes are read off the keys; what keys cannot tell is
asked for. What those projects' released code computes differently from what it was meant to is
computed here too (variant reference), so that the numbers are theirs.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from videoclip.checkpoints import tsm_checkpoints
from videoclip.checkpoints.archives import read
from videoclip.checkpoints.clip_checkpoints import (
    Checkpoint,
    agreed,
    cleaned,
    from_weights,
    numbered,
    sizes,
    usual,
)
from videoclip.checkpoints.layouts import shape_of
from videoclip.checkpoints.origin import WRAPPERS, opened
from videoclip.checkpoints.video_layouts import (
    AGGREGATE,
    FRAMES,
    FUSION,
    HEADS,
    MODEL,
    PROJECTS,
    TABLES,
    TITLES,
    VARIANTS,
    Project,
    Variant,
    layout_of,
    mixer_of,
    split,
    wrapper_in,
)
from videoclip.errors import WeightsError, explained, nearest
from videoclip.heads import LSTM, ClassToken, Convolution, Head, Mean, Transformer
from videoclip.layers import Activation, attention_heads
from videoclip.mixers import Joint, Mixer
from videoclip.scorers import Cosine, Scorer, Tight

FUSED = FUSION.rstrip(".")
CLIPS = MODEL.rstrip(".")
"""The names of ActionCLIP's two dictionaries."""
CROSS_TABLE = "cross.embeddings.position_embeddings.weight"
"""The positions of CLIP4Clip's tightTransf."""
CLASS_TOKEN_HEADS = 8
"""Attention heads of ActionCLIP's Transf_cls, whatever the width."""
LAYOUTS = ("openai", *PROJECTS, "tsm")
"""Whose names the keys of a file may have."""


class Stated(NamedTuple):
    """What a user says of a file beside its path."""

    activation: Activation | None = None
    layout: str | None = None
    variant: Variant | None = None
    head: str | None = None
    frames: int | None = None
    classes: tsm_checkpoints.Classes = None


NOTHING = Stated()


def from_file(path: Path, stated: Stated = NOTHING) -> Checkpoint:
    """A file of weights, whoever wrote it.

    Raises WeightsError for what is damaged, and for what cannot be known without being stated.
    """
    return from_found(path, read(path), stated)


def from_found(path: Path, found: Mapping[str, Any], stated: Stated = NOTHING) -> Checkpoint:
    """What a file holds, as `archives.read` gives it, and the path that messages name.

    Raises WeightsError as `from_file` does.
    """
    for name, known in (("layout", LAYOUTS), ("variant", ("reference", "fixed"))):
        value = getattr(stated, name)
        if value is not None and value not in known:
            raise WeightsError(f"{name} is {value!r}; {nearest(str(value), known)}")
    project = stated.layout or _project(path, found)
    if project == "tsm":
        _refuse(path, stated, ("activation", "variant", "head"), "TSM's files have no such choice")
        return tsm_checkpoints.from_found(path, found, stated.frames, stated.classes)
    if project in PROJECTS:
        return _video(path, found, project, stated)
    refuse_stated(path, stated._replace(layout=None))
    held = found.get(CLIPS)
    if isinstance(held, Mapping):  # which is not written again: only ActionCLIP's files have two
        return from_weights(path, held, stated.activation)._replace(origin=None)
    return from_weights(path, found, stated.activation)


def refuse_stated(source: object, stated: Stated) -> None:
    """Raises WeightsError where something is stated that only files of the video projects need."""
    titles = ", ".join(TITLES.values())
    _refuse(source, stated, ("layout", "variant", "head", "frames"),
            f"it says itself what it holds; that is for files of {titles}")  # fmt: skip
    _refuse(source, stated, ("classes",), "it is no classifier; that is for files of TSM")


def _refuse(source: object, stated: Stated, names: Sequence[str], reason: str) -> None:
    """Raises WeightsError where one of these is stated."""
    for name in names:
        if (value := getattr(stated, name)) is not None:
            raise WeightsError(
                f"{source} needs no {name} ({textwrap.shorten(str(value), 50)}): {reason}; leave "
                f"{name} out"
            )


def _project(path: Path, found: Mapping[str, Any]) -> Project | Literal["tsm"] | None:
    """Whose file it is; None where it is no video model's."""
    if isinstance(found.get(CLIPS), Mapping):
        if isinstance(found.get(FUSED), Mapping):
            return "actionclip"
        raise WeightsError(
            f"{path} has {CLIPS} but no {FUSED}, so that it may be ActionCLIP's meanP or a plain "
            "CLIP; say layout='actionclip' or layout='openai'"
        )
    held = found.get("state_dict")
    keys = [WRAPPERS.sub("", str(k), count=1) for k in (held if isinstance(held, dict) else found)]
    if any(key.startswith("clip.") for key in keys):
        marks = [mark for named in HEADS["clip4clip"].values() for mark in named.marks]
        marks.append(TABLES["clip4clip"])
        ported = any(key.startswith("adapter.") for key in keys)
        if ported and any(key.startswith(tuple(marks)) for key in keys):
            raise WeightsError(
                f"{path} has keys of both CLIP4Clip and mmaction2's ActionCLIP; say whose it is "
                "with layout='clip4clip' or layout='mmaction2'"
            )
        return "mmaction2" if ported else "clip4clip"
    if tsm_checkpoints.is_tsm(keys):
        return "tsm"
    return "actionclip" if wrapper_in(keys) else None


def _video(path: Path, found: Mapping[str, Any], project: Project, stated: Stated) -> Checkpoint:
    agreed(stated.activation, "quick_gelu", path)
    _refuse(path, stated, ("classes",), "it reads texts; that is for files of TSM")
    origin, raw = opened(found, project)
    bare = CLIPS not in origin.parts
    weights = split(cleaned(raw))
    variant = stated.variant or VARIANTS[project]
    name = _head_name(path, weights, project, stated.head)
    wrapper = wrapper_in(weights) if project == "actionclip" else None

    def plain(key: str) -> str:
        """A key of the CLIP inside, as this file has it."""
        prefix = {"actionclip": "" if bare else MODEL}.get(project, "clip.")
        return prefix + key

    if not any(key.startswith(plain("visual.")) for key in weights):
        some = ", ".join(sorted(weights)[:5]) or "nothing"
        raise WeightsError(
            f"{path} is no file of {TITLES[project]}: none of its keys starts with "
            f"{plain('visual.')}; it has {some}; leave layout out, or say another"
        )
    stages = [numbered(weights, plain(f"visual.layer{stage}"), path) for stage in (1, 2, 3, 4)]
    time = shape_of(weights.get(plain("visual.time_embedding")))
    mixer = mixer_of(wrapper, variant, time[0] if time else None)
    with explained(f"{path} holds sizes that no model has", "get it again"):
        head, scorer = _slots(path, weights, project, name, variant, plain)
        context = (shape_of(weights.get(plain("positional_embedding"))) or (77,))[0]
    layout = layout_of(project, head, wrapper, blocks=tuple(stages), bare=bare)
    model = sizes(
        {key: value for key, value in weights.items() if key != plain("logit_bias")},
        layout, "quick_gelu", path,
        mixer=mixer, head=head, scorer=scorer,
        frames=_frames(path, project, head, mixer, context, stated.frames),
        templates=() if project == "clip4clip" else ("actionclip",),
    )  # fmt: skip
    if stated.variant != "fixed" and project != "mmaction2":
        _require_rows(path, weights, project, plain("positional_embedding"))
    unread = _unread(weights, project, name, (context, model.embedding), stated.head)
    title = f"{TITLES[project]}'s {name}"
    return Checkpoint(model, weights, layout, origin, unread, title)


def _head_name(path: Path, weights: Mapping[str, Any], project: Project, stated: str | None) -> str:
    """What the project calls the head of a file."""
    known = HEADS[project]
    if stated is not None:
        if stated not in known:
            raise WeightsError(
                f"{TITLES[project]} has no head {stated!r}; {nearest(stated, known)}"
            )
        return stated
    held = [
        name for name, named in known.items()
        if named.marks and any(key.startswith(named.marks) for key in weights)
    ]  # fmt: skip
    if len(held) > 1:
        raise WeightsError(
            f"{path} holds weights of the heads {' and '.join(held)}, and its keys do not say "
            f"which of them is meant; say head={held[0]!r} or head={held[1]!r}"
        )
    if not held and project != "mmaction2" and TABLES[project] in weights:
        of_table = [n for n, named in known.items() if named.head is not Mean]
        raise WeightsError(
            f"{path} has {TABLES[project]}, as {', '.join(of_table)} have it, but no other weights "
            f"of them (keys {', '.join(known[n].marks[0] + '*' for n in of_table)}); get it again"
        )
    return held[0] if held else "meanP" if "meanP" in known else "Transf"


def _slots(
    path: Path,
    weights: Mapping[str, Any],
    project: Project,
    name: str,
    variant: Variant,
    plain: Callable[[str], str],
) -> tuple[Head, Scorer]:
    """The head and the scorer that a project calls `name`, in the sizes of the weights."""
    named = HEADS[project][name]
    average = "normalized" if project == "clip4clip" else "plain"
    text_width = (shape_of(weights.get(plain("token_embedding.weight"))) or (0, 64))[-1]
    embedding = (shape_of(weights.get(plain("text_projection"))) or (0, 64))[-1]

    def rows(key: str) -> int:
        return (shape_of(weights.get(key)) or (77,))[0]

    def blocks(prefix: str) -> int:
        return max(1, numbered(weights, prefix, path))

    if named.scorer is Tight:
        layers = blocks("cross.transformer.resblocks")
        return Mean(), Tight(layers=layers, max_tokens=rows(CROSS_TABLE), variant=variant)
    prefix = {"clip4clip": "transformerClip", "actionclip": f"{FUSION}transformer"}
    if named.head is Transformer:
        heads = attention_heads(text_width)
        return Transformer(
            average=average, variant=variant, max_frames=rows(TABLES[project]),
            layers=blocks(prefix.get(project, "adapter.transformer") + ".resblocks"),
            attention_heads=None if heads == attention_heads(embedding) else heads,
            start="text" if project == "clip4clip" else "random",
        ), Cosine()  # fmt: skip
    if named.head is ClassToken:
        encoder = f"{AGGREGATE}transformer_enc.layers"
        inner, outer = (shape_of(weights.get(f"{encoder}.0.linear{n}.weight")) for n in (1, 2))
        bias = shape_of(weights.get(f"{encoder}.0.linear1.bias"))
        hidden = usual(*(inner or (2048,))[:1], *(bias or (2048,)), *(outer or (2048,))[-1:])
        return ClassToken(
            average=average, layers=blocks(encoder), hidden=hidden,
            attention_heads=CLASS_TOKEN_HEADS, max_frames=rows(FRAMES),
        ), Cosine()  # fmt: skip
    if named.head is Convolution:
        return Convolution(average=average, variant=variant), Cosine()
    return (LSTM if named.head is LSTM else Mean)(average=average), Cosine()


def _require_rows(path: Path, weights: Mapping[str, Any], project: Project, of_text: str) -> None:
    """Raises WeightsError for a table of frames' positions of another length than the text's.

    The code of both projects makes them alike; models trained here need not be like that.
    """
    for key in (TABLES[project], CROSS_TABLE):
        shapes = shape_of(weights.get(key)), shape_of(weights.get(of_text))
        if all(shapes) and shapes[0][0] != shapes[1][0]:
            raise WeightsError(
                f"{path} has {key} of shape {shapes[0]} and {of_text} of shape {shapes[1]}, and "
                f"{TITLES[project]} makes as many rows of both; get it again, or say "
                "variant='fixed' if it was trained with videoclip"
            )


def _frames(
    path: Path, project: Project, head: Head, mixer: Mixer, context: int, stated: int | None
) -> int | None:
    """The frames that the weights were trained with: as stated, or a table has a row for each."""
    ported = project == "mmaction2" and isinstance(head, Transformer) and head.max_frames != context
    table = next((part for part in (mixer, head) if isinstance(part, Joint | ClassToken)), None)
    table = head if ported else table
    known = table.max_frames if table else None
    if stated is not None and (stated < 1 or known not in (None, stated)):
        raise WeightsError(
            f"frames is {stated}, but {path} was trained with {known or 'at least 1'}; leave "
            "frames out"
        )
    return known or stated


def _unread(
    weights: Mapping[str, Any],
    project: Project,
    name: str,
    table: tuple[int, int],
    stated: str | None,
) -> dict[str, tuple[int, ...]]:
    """The parameters that stand in the file and that nothing reads, with their shapes."""
    named = HEADS[project][name]
    has_table = named.head in (LSTM, Convolution, ClassToken)
    unread: dict[str, tuple[int, ...]] = {TABLES[project]: table} if has_table else {}
    if stated is None:
        return unread
    # Where the user chooses a head, the weights of the others are kept and not read.
    others = [m for other, n in HEADS[project].items() if other != name for m in n.marks]
    if named.head is Mean:
        others.append(TABLES[project])
    for key, value in weights.items():
        is_other = key.startswith(tuple(others)) and not key.startswith(named.marks or ("\0",))
        if is_other and isinstance(value, Tensor):
            unread[key] = tuple(value.shape)
    return unread
