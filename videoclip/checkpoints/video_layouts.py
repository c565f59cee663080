"""The key names of CLIP4Clip, ActionCLIP and mmaction2's port of it: our name <-> theirs, per head.

Where a key is `module.transformer.resblocks.0...` of one of ActionCLIP's two dictionaries, it is
spoken of as `fusion_model_state_dict.transformer.resblocks.0...`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from videoclip.checkpoints.layouts import Layout
from videoclip.heads import LSTM, ClassToken, Convolution, Head, Mean, Transformer
from videoclip.mixers import Joint, Mixer, NoMixer, Shift
from videoclip.model import Model
from videoclip.scorers import Cosine, Scorer, Tight
from videoclip.towers import ResNet
from videoclip.towers.resnet import DEEP

Project = Literal["clip4clip", "actionclip", "mmaction2"]
PROJECTS: tuple[Project, ...] = get_args(Project)
TITLES: dict[str, str] = {
    "clip4clip": "CLIP4Clip", "actionclip": "ActionCLIP", "mmaction2": "mmaction2's ActionCLIP",
    "tsm": "TSM",
}  # fmt: skip
Variant = Literal["reference", "fixed"]
VARIANTS: dict[Project, Variant] = {
    "clip4clip": "reference", "actionclip": "reference", "mmaction2": "fixed",
}  # fmt: skip
"""What each project's own code computes: mmaction2's takes OpenAI's layer normalization."""
MODEL, FUSION = "model_state_dict.", "fusion_model_state_dict."


class Named(NamedTuple):
    """A head as a project calls it."""

    head: type[Head]
    scorer: type[Scorer]
    marks: tuple[str, ...] = ()
    """The beginnings of its keys; a file that has one of them has this head."""


HEADS: dict[Project, dict[str, Named]] = {
    "clip4clip": {
        "meanP": Named(Mean, Cosine),
        "seqLSTM": Named(LSTM, Cosine, ("lstm_visual.",)),
        "seqTransf": Named(Transformer, Cosine, ("transformerClip.",)),
        "tightTransf": Named(Mean, Tight, ("cross.", "similarity_dense.")),
    },
    "actionclip": {
        "meanP": Named(Mean, Cosine),
        "Conv_1D": Named(Convolution, Cosine, (f"{FUSION}shift.",)),
        "LSTM": Named(LSTM, Cosine, (f"{FUSION}lstm_visual.",)),
        "Transf": Named(Transformer, Cosine, (f"{FUSION}transformer.resblocks.",)),
        "Transf_cls": Named(
            ClassToken,
            Cosine,
            tuple(f"{FUSION}transformer.{part}" for part in ("transformer_enc.", "cls_", "pos_")),
        ),
    },
    "mmaction2": {"Transf": Named(Transformer, Cosine, ("adapter.",))},
}
"""What each project calls its heads (its option `sim_header`)."""
NAMES: dict[Project, list[tuple[str, str]]] = {
    "clip4clip": [
        (r"^head\.positions$", "frame_position_embeddings.weight"),
        (r"^head\.transformer\.", "transformerClip."),
        (r"^head\.lstm\.", "lstm_visual."),
        (r"^scorer\.positions$", "cross.embeddings.position_embeddings.weight"),
        (r"^scorer\.transformer\.", "cross.transformer."),
        (r"^scorer\.(ln_pool|dense)\.", r"cross.pooler.\1."),
        (r"^scorer\.similarity\.", "similarity_dense."),
    ],
    "actionclip": [
        (r"^clip\.", MODEL),
        (r"^mixers\.0\.time_embedding$", f"{MODEL}visual.time_embedding"),
        (r"^head\.positions$", f"{FUSION}frame_position_embeddings.weight"),
        (r"^head\.transformer\.", f"{FUSION}transformer."),
        (r"^head\.lstm\.", f"{FUSION}lstm_visual."),
        (r"^head\.shift\.", f"{FUSION}shift."),
    ],
    "mmaction2": [
        (r"^head\.positions$", "adapter.frame_position_embeddings.weight"),
        (r"^head\.transformer\.", "adapter.transformer."),
    ],
}
TABLES: dict[Project, str] = {
    "clip4clip": "frame_position_embeddings.weight",
    "actionclip": f"{FUSION}frame_position_embeddings.weight",
    "mmaction2": "adapter.frame_position_embeddings.weight",
}
"""Positions of frames, which both projects make for every head with weights; transformers alone
read them, and CLIP4Clip's tightTransf and ActionCLIP's Transf_cls have tables of their own."""
AGGREGATE = f"{FUSION}transformer."
"""What stands before the keys of ActionCLIP's Transf_cls."""
POSITIONS = f"{AGGREGATE}pos_embed"
FRAMES, CLASS = f"{POSITIONS} (frames)", f"{POSITIONS} (class token)"
"""The two parts of its table of positions, which are two parameters here."""
TOKEN = f"{AGGREGATE}cls_token"
ROW = f"{TOKEN} (as a row)"
"""Its class token, which has an axis more than ours."""
CLASS_TOKEN = [
    (r"^head\.encoder\.", f"{AGGREGATE}transformer_enc."),
    (r"^head\.class_token$", ROW),
    (r"^head\.class_position$", CLASS),
    (r"^head\.positions$", FRAMES),
]
WRAPPED = {
    "tokens": re.compile(r"(visual\.transformer\.resblocks\.(\d+))\.net\."),
    "residual": re.compile(r"(visual\.layer\d\.(\d+)\.conv1)\.net\."),
    "block": re.compile(r"(visual\.layer\d\.(\d+))\.net\."),
}
"""The wrapper of a temporal shift in the keys: around the blocks of a ViT (ActionCLIP), around the
first convolution of those of a ResNet (TSM's blockres) or around them (TSM's block)."""


def wrapper_in(keys: Iterable[str]) -> str | None:
    """Which kind of WRAPPED some keys have."""
    found = {kind for key in keys for kind, mark in WRAPPED.items() if mark.search(key)}
    return min(found, default=None)


def wrapped(key: str, kind: str | None, *, stages: Sequence[int] = ()) -> str:
    """A key of ours with the wrapper of this kind, where it belongs.

    `stages` are the blocks of a ResNet's stages: of a deep one TSM wraps every second.
    """
    place = kind and re.search(WRAPPED[kind].pattern.replace(r"net\.", ""), key)
    every_second = len(stages) == 4 and stages[2] >= DEEP and kind == "residual"
    if not place or (every_second and int(place[2]) % 2):
        return key
    return f"{key[: place.end(1)]}.net.{key[place.end() :]}"


def wrapper_of(project: Project, model: Model) -> str | None:
    """Which kind of WRAPPED a project's keys for a model get; only ActionCLIP has a shift."""
    if project != "actionclip" or not isinstance(model.mixer, Shift):
        return None
    return model.mixer.placement if isinstance(model.visual, ResNet) else "tokens"


def layout_of(
    project: Project,
    head: Head,
    wrapper: str | None,
    *,
    blocks: tuple[int, ...] = (),
    bare: bool = False,
) -> Layout:
    """The project's names for the parameters of a model with this head and shift.

    `blocks` are the bottlenecks of a ResNet's stages. `bare`: ActionCLIP's first dictionary by
    itself, under OpenAI's names.
    """
    patterns = [*(CLASS_TOKEN if isinstance(head, ClassToken) else []), *NAMES[project]]

    def names(key: str) -> tuple[str, ...]:
        for pattern, replacement in patterns:
            key, found = re.subn(pattern, replacement, key)
            if found:
                break
        key = wrapped(key, wrapper, stages=blocks)
        return (key.removeprefix(MODEL) if bare else key,)

    return names


def split(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transf_cls's class token and positions as our parameters; what is no such stays as it is."""
    token, table = weights.get(TOKEN), weights.get(POSITIONS)
    weights = dict(weights)
    if isinstance(token, Tensor) and token.shape[:2] == (1, 1):
        weights[ROW] = weights.pop(TOKEN)[0]
    if isinstance(table, Tensor) and table.ndim == 3 and len(table) == 1 and table.shape[1] > 1:
        table = weights.pop(POSITIONS)[0]
        weights[CLASS], weights[FRAMES] = table[:1].clone(), table[1:].clone()
    return weights


def joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split`."""
    found = {key: value for key, value in weights.items() if key not in (ROW, CLASS, FRAMES)}
    if ROW in weights:
        found[TOKEN] = weights[ROW][None]
        found[POSITIONS] = torch.cat([weights[CLASS], weights[FRAMES]])[None]
    return found


def name_of(project: Project, head: Head, scorer: Scorer) -> str | None:
    """What a project calls a head and a scorer; None where it has none such."""
    for name, named in HEADS[project].items():
        if (type(head), type(scorer)) == (named.head, named.scorer):
            return name
    return None


def mixer_of(wrapper: str | None, variant: Variant, time_rows: int | None) -> Mixer:
    """The mixer that the keys tell, `time_rows` being those of joint attention's table."""
    if time_rows is not None:
        return Joint(max_frames=time_rows)
    if wrapper is None:
        return NoMixer()
    if wrapper == "tokens":
        return Shift(placement="block" if variant == "reference" else "residual")
    return Shift(placement="block" if wrapper == "block" else "residual")
