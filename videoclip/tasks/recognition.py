"""Say which action a clip shows: its class among all classes, told by sentences about them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from videoclip.errors import ManifestError
from videoclip.manifest import Clip
from videoclip.prompts import lines_of, templates_of
from videoclip.tasks.action_protocols import base_classes, few_shot, spelled
from videoclip.tasks.base import Measure, Mix, Task, Texts
from videoclip.types import Keys

NAMED = 10
"""How many clips an error message names."""


@dataclass(frozen=True, kw_only=True)
class Recognition(Task):
    """Action recognition by top-1 accuracy, with sentences about the classes as the classifier."""

    templates: tuple[str, ...] = ("actionclip",)
    """Sentences with {} for the class; a published set by its name (actionclip: the 16 of its
    paper). Training draws one a clip, evaluation averages the probabilities of all."""
    classes: Path | None = None
    """A file with the class names in order: one a line, or a .csv with a column `name`. None: the
    labels of the manifest, sorted."""
    names: str = "reference"
    """How classes are spelled in the sentences. reference: as in the manifest (ApplyEyeMakeup), as
    ActionCLIP has them; words: split (apply eye makeup); or a file, as for evaluate recognition."""
    views: str | None = None
    """Clips in time x crops in space whose probabilities are averaged in evaluation, such as 4x3;
    frames are resized as ActionCLIP does. None: one clip, its middle, as in retrieval."""
    targets: Literal["texts", "classes"] = "texts"
    """What a clip is compared with in training. texts: the sentences of its batch (ActionCLIP,
    loss kl). classes: one sentence for every class, of the first template (loss ce)."""
    shots: int | None = None
    """So many training clips of every class, drawn by the seed. None: all."""
    known: Literal["all", "base"] = "all"
    """Which classes are trained. base: the half with the most training clips (base-to-novel)."""
    mix: Mix = "none"
    """mixup-cutmix: two clips in one, and their labels in proportion (X-CLIP's strengths)."""

    measure: ClassVar[Measure] = Measure(
        directions={"video_to_class": "video to class"},
        hits={"top-1": 1, "top-5": 5},
        positions=False,
        queries="clips",
    )

    def require(self, clips: Sequence[Clip], path: Path) -> None:
        """Raises ManifestError that names the clips without a label."""
        without = [clip.video_id for clip in clips if not clip.label]
        if without:
            raise ManifestError(
                f"{path}: {len(without)} of {len(clips)} clips have no label, among them "
                f"{', '.join(without[:NAMED])}; recognition needs one each"
            )

    def samples(self, training: Sequence[Clip], classes: Sequence[str], seed: int) -> list[Clip]:
        """The training clips, or those of the base classes, or a few of every class.

        Raises ProtocolError where a class has fewer clips than `shots`.
        """
        chosen = list(training)
        if self.known == "base":
            base = set(base_classes(classes, training))
            chosen = [clip for clip in chosen if clip.label in base]
        return few_shot(chosen, self.shots, seed) if self.shots is not None else chosen

    def sentences(self, clips: Sequence[Clip], classes: Sequence[str]) -> list[str]:
        """Every template with every class."""
        names = _words(tuple(classes), self.names).values()
        return [t.replace("{}", name) for t in templates_of(self.templates) for name in names]

    def texts(
        self,
        clips: Sequence[Clip],
        numbers: Sequence[np.random.Generator],
        classes: Sequence[str] = (),
    ) -> Texts:
        """A sentence about the class of each clip, or about every class."""
        templates, words = templates_of(self.templates), _words(tuple(classes), self.names)
        labels = [str(clip.label) for clip in clips]
        if self.targets == "classes":
            every = tuple(templates[0].replace("{}", words[name]) for name in classes)
            return Texts(every, Keys.of(classes, labels, shared=True))
        drawn = [templates[number.integers(len(templates))] for number in numbers]
        pairs = zip(drawn, labels, strict=True)
        return Texts(tuple(t.replace("{}", words[c]) for t, c in pairs), Keys.of(labels, labels))


@functools.lru_cache
def _words(classes: tuple[str, ...], names: str) -> dict[str, str]:
    """What sentences say for each class."""
    return dict(zip(classes, spelled(classes, names), strict=True))


def class_names(clips: Sequence[Clip], listed: Path | None) -> tuple[str, ...]:
    """The class names in the order of the label file, or the labels of the clips, sorted.

    Raises ManifestError where a clip has a label that the file does not list.
    """
    found = sorted({str(clip.label) for clip in clips})
    if listed is None:
        return tuple(found)
    lines = lines_of(listed, "the class names")
    if listed.suffix == ".csv":
        import pandas as pd

        table = pd.read_csv(listed, dtype=str, keep_default_na=False)
        if "name" not in table:
            raise ManifestError(
                f"{listed} has the columns {', '.join(table.columns)}; the class names must stand "
                "in one that is called name"
            )
        lines = list(table["name"])
    unknown = sorted(set(found) - set(lines))
    if unknown or len(set(lines)) < len(lines):
        what = f"{len(unknown)} labels of the clips are not in {listed}, such as {unknown[:3]}"
        raise ManifestError(
            f"{what}; spell them as the manifest does"
            if unknown
            else f"{listed} lists a class twice; list each once"
        )
    return tuple(lines)
