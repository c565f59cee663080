"""`videoclip evaluate recognition`: a model on labelled clips, by a protocol; a table and files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from videoclip.checkpoints.weights import load
from videoclip.distributed import device, main_process, start
from videoclip.errors import ManifestError, VideoclipError
from videoclip.evaluation.evaluate import FrameOrder
from videoclip.evaluation.recognition import Ensemble, Temperature, evaluate_parts
from videoclip.features.fingerprint import fingerprint
from videoclip.frames.sampling import Rule
from videoclip.frames.store import FrameStore
from videoclip.frames.views import views_named
from videoclip.heads import Mean
from videoclip.manifest import manifest_hash, read_manifest, with_splits
from videoclip.mixers import NoMixer
from videoclip.model import VideoCLIP
from videoclip.prompts import templates_of
from videoclip.reports.recognition_report import report
from videoclip.scorers import Cosine
from videoclip.tasks import class_names
from videoclip.tasks.action_protocols import (
    Part,
    Protocol,
    action_protocol,
    check_published,
    parts,
    spelled,
)

NAMED = 10
"""How many clips an error message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Says of every clip which of the classes it shows, and prints top-1, top-5, mean per class.

    Classes are told by sentences about them, so the model needs no training on them. Every clip is
    scored once; one that is missing or cannot be read is listed and counts as wrong. Under torchrun
    the processes share the work; the result is the same.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder that train or compare wrote, a file of ActionCLIP's, a
    CLIP such as ViT-B/32, or a name on the Hugging Face hub."""
    data: tuple[Path, ...]
    """The manifest, .jsonl or .parquet, with a label for every clip; for zs-splits3, zs-half10 and
    zs-full the manifests of all official splits."""
    protocol: str | None = None
    """How published figures are measured (docs/protocols.md): 1x1, 3x1, 4x3, 10x3; zero-shot
    zs-val1, zs-splits3, zs-half10, zs-full, zs-k600-160x3; fewshot-2, -4, -8, -16; base-to-novel.
    Default: the clips of the split among all classes."""
    expect: str | None = None
    """Refuses to run where classes or clips are not as many as published: ucf101, hmdb51,
    kinetics400, kinetics600 or ssv2."""
    split: str = "test"
    """Which clips are tested; "all" is every clip."""
    classes: Path | None = None
    """The classes in order: one a line, or a .csv with a column `name`. Default: the labels of the
    manifests, sorted."""
    class_lists: tuple[Path, ...] = ()
    """Some of the classes, one a line or a .csv with a column `name`: the three lists of
    zs-k600-160x3, base and novel of base-to-novel."""
    names: str = "reference"
    """How sentences call the classes. reference: as the manifest does (ApplyEyeMakeup), as
    ActionCLIP has them; words: split (apply eye makeup); or a file, JSON {"class": "name"} or one a
    line in the order of the classes."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the class, a text file of them, or a published set: actionclip (16),
    kinetics400 (CLIP's 28), ucf101 (CLIP's 48). Default: the weights' own, else actionclip."""
    base_clip: Literal["middle", "mean"] | None = None
    """Measures a CLIP without temporal modules as its authors do: on the middle frame, or on the
    mean of --frames; the sentences of a class become one by the mean of their embeddings."""
    ensemble: Ensemble | None = None
    """What the sentences of a class have in common. mean: the mean of their probabilities
    (ActionCLIP; the default); embeddings: one sentence, their mean (CLIP; default with
    --base-clip)."""
    temperature: Temperature | None = None
    """What cosines are multiplied with. reference: 100, as ActionCLIP's test does whatever the
    weights say (the default); model: the weights' own (default with --base-clip)."""
    views: str | None = None
    """Clips in time x crops in space whose probabilities are averaged, such as 4x3. none: the
    middle of the clip, prepared as for retrieval. Default: the protocol's, else none."""
    frames: int | None = None
    """Frames per clip. Default: what the weights were trained with, else 8."""
    sampling: Rule = "segments"
    """Which frames. segments: the middles of equal parts of the clip, each once; actionclip: the
    same, but a clip that is too short repeats some, as ActionCLIP's lists do; seconds: one a
    second, then evenly chosen, as CLIP4Clip has it."""
    view_seconds: float | None = None
    """How long a clip of --views is, as in dense sampling (TSM, SlowFast). Default: each spans the
    whole video, with other frames (X-CLIP, Text4Vis)."""
    frame_order: FrameOrder = "normal"
    """What a model loses when frames are shuffled or reversed is what it knew from their order."""
    batch_size: int = 32
    """Views per forward pass."""
    output: Path | None = None
    """A folder for index.html, evaluation.json, scores.parquet (a line per clip, a column per
    class), predictions.parquet, per_class.csv and the pictures. Default: beside the model."""

    def __post_init__(self) -> None:
        """Raises VideoclipError for numbers with which nothing can be measured."""
        if not self.data:
            raise VideoclipError("no manifest is given; name one: --data clips.jsonl")
        if self.view_seconds is not None and self.views in (None, "none"):
            raise VideoclipError(
                f"--view-seconds is {self.view_seconds}, but no views of that length are asked "
                "for; say how many: --views 10x3"
            )
        for name in ("frames", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise VideoclipError(f"--{name.replace('_', '-')} is {value}; give at least 1")
        if self.base_clip == "middle" and self.frames not in (None, 1):
            raise VideoclipError(
                f"--base-clip middle reads one frame, but --frames is {self.frames}; leave it out, "
                "or take --base-clip mean"
            )


class Asked(NamedTuple):
    """What is to be measured, before a model is opened."""

    protocol: Protocol | None
    classes: tuple[str, ...]
    parts: list[Part]
    notes: list[str]
    """What a reader of the figures must know about the data."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints and writes."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate recognition", description=Options.__doc__
    )
    start()
    asked = _asked(options)
    names = dict(zip(asked.classes, spelled(asked.classes, options.names), strict=True))
    model = load(options.model).to(device())
    model.tokenizer()  # a vocabulary that is not CLIP's is refused before anything is decoded
    templates = templates_of(options.templates or model.config.templates or _usual(options))
    if options.base_clip:
        _require_base(model, options)
    output = options.output or _output(options)
    size = model.config.visual.image_size
    one = 1 if options.base_clip == "middle" else None
    store = FrameStore(
        output / "frames",
        size=size,
        frames=options.frames or one or model.config.frames or 8,
        fit=model.config.pixels.fit,
        rule=options.sampling,
    )
    named = options.views or (asked.protocol.views if asked.protocol else "none")
    named = "none" if options.base_clip and not options.views else named
    views = None
    if named != "none":
        views = views_named(named, size=size, seconds=options.view_seconds)
    clips = list({clip.video_id: clip for part in asked.parts for clip in part.clips}.values())
    if views:
        store.fill_views(clips, views, "clips")
    else:
        store.fill(clips, 1, "clips")
    ensemble = options.ensemble or ("embeddings" if options.base_clip else "mean")
    temperature = options.temperature or ("model" if options.base_clip else "reference")
    found = evaluate_parts(
        model, asked.parts, store, templates, names=names, views=views, order=options.frame_order,
        probabilities=ensemble, temperature=temperature, batch_size=options.batch_size,
    )  # fmt: skip
    if not main_process():
        return
    notes = [
        *asked.notes,
        f"frames {store.frames} by {options.sampling}, views {named}, order {options.frame_order}; "
        f"{len(templates)} templates, averaged as {_averaged(ensemble)}, temperature "
        f"{_temperature(model, temperature)}; "
        f"classes are called as in {options.names}, e.g. {next(iter(names.values()))!r}",
    ]
    record = {
        "protocol": asked.protocol._asdict() if asked.protocol else None,
        "views": views or named,
        "frames": store.frames,
        "ensemble": ensemble,
        "temperature": temperature,
        "templates": templates,
        "class_names": names,
        "manifest_hash": {str(path): manifest_hash(path) for path in options.data},
        "model_fingerprint": fingerprint(model),
        "options": dataclasses.asdict(options),
    }
    shown = report(
        asked.parts, found, asked.protocol, store.unreadable, output,
        notes=notes, record=record,
    )  # fmt: skip
    print(f"\n{shown}")


def _asked(options: Options) -> Asked:
    """The clips and classes of the protocol. Raises ManifestError or ProtocolError."""
    protocol = action_protocol(options.protocol) if options.protocol else None
    manifests = []
    for path in options.data:
        clips = read_manifest(path)
        without = [clip.video_id for clip in clips if not clip.label]
        if without:
            raise ManifestError(
                f"{path}: {len(without)} of {len(clips)} clips have no label, among them "
                f"{', '.join(without[:NAMED])}; give one for each"
            )
        manifests.append(clips)
    classes = class_names([clip for clips in manifests for clip in clips], options.classes)
    notes = []
    if protocol is None:
        if len(manifests) > 1 or options.class_lists:
            raise VideoclipError(
                f"{len(manifests)} manifests and {len(options.class_lists)} class lists are given "
                "without a protocol that reads them; name it: --protocol zs-splits3"
            )
        [path], [clips] = options.data, manifests
        if options.split != "all":
            by_split, note = with_splits(clips, path, needed=(options.split,))
            clips, notes = by_split[options.split], [note] if note else []
        found = [Part(f"{path.stem}, {options.split}", tuple(clips), classes)]
    else:
        lists = [class_names([], path) for path in options.class_lists]
        found = parts(protocol, manifests, classes, split=options.split, lists=lists)
        notes.append(f"{protocol.name}: {protocol.help}.")
        notes += _order_note(protocol, options)
        if all(clip.split is None for clips in manifests for clip in clips):
            notes.append("The manifests have no splits: all their clips are tested.")
    if options.expect:
        notes.append(check_published(options.expect, protocol, manifests, classes, found))
    return Asked(protocol, classes, found, notes)


def _order_note(protocol: Protocol, options: Options) -> list[str]:
    """Draws of classes depend on their order, which only a label file knows."""
    by_order = protocol.kind == "halves" or (
        protocol.kind == "base and novel" and not options.class_lists
    )
    if options.classes or not by_order:
        return []
    return [
        "The choice of classes depends on their order, here the alphabet's; published figures have "
        "the order of the data set's label file: --classes LABELS.csv."
    ]


def _usual(options: Options) -> tuple[str, ...]:
    """The templates where neither the user nor the weights name some."""
    if not options.base_clip:
        return ("actionclip",)
    return ("ucf101",) if options.expect == "ucf101" else ("kinetics400",)


def _require_base(model: VideoCLIP, options: Options) -> None:
    slots = (model.config.mixer, model.config.head, model.config.scorer)
    plain = (NoMixer, Mean, Cosine)
    if any(type(own) is not kind for own, kind in zip(slots, plain, strict=True)):
        inside = ", ".join(type(own).__name__ for own in slots)
        raise VideoclipError(
            f"--base-clip is for a CLIP without temporal modules, but {options.model} has "
            f"{inside}; leave it out, or give the CLIP that it started from"
        )


def _output(options: Options) -> Path:
    """The folder whose name says what departs from the plain way."""
    beside = Path(options.model) if Path(options.model).is_dir() else Path("runs")
    words = ["recognition", options.data[0].stem, options.protocol, options.views]
    words += [f"base-clip-{options.base_clip}" if options.base_clip else None]
    words += [options.frame_order if options.frame_order != "normal" else None]
    words += [f"split-{options.split}" if options.split != "test" else None]
    return beside / "-".join(word for word in words if word)


def _temperature(model: VideoCLIP, temperature: Temperature) -> str:
    if not isinstance(model.config.scorer, Cosine):
        return "none"
    return "100" if temperature == "reference" else "of the model"


def _averaged(ensemble: Ensemble) -> str:
    return "probabilities" if ensemble == "mean" else "embeddings"
