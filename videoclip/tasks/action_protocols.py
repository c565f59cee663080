"""Manifests -> which clips are told apart within which classes: recognition's protocols by name.

Three papers that print the same data set mean three things: mean over the official test splits,
ten random halves of the classes on all videos, or split 1 alone. A name says which one it was.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from videoclip.errors import nearest
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.tasks.protocols import ProtocolError

NAMED = 10
"""How many of what is wrong an error message names."""
HALVES = 10
"""Draws of half the classes (Wu et al. 2023, Text4Vis)."""
K600_CLASSES = 160
"""Classes of a Kinetics-600 list (Chen and Huang 2021)."""


class Part(NamedTuple):
    """Clips that are told apart within some classes: what one figure of a protocol is about."""

    name: str
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    """Every label of the clips is one of them."""


class Protocol(NamedTuple):
    """Which clips, which classes, and how the figures of several parts become one."""

    name: str
    help: str
    kind: Literal["test", "splits", "halves", "all", "lists", "base and novel"]
    """What its parts are."""
    views: str = "1x1"
    """Clips in time x crops in space whose probabilities are averaged."""
    shots: int | None = None
    """How many clips of a class the model may have been trained on."""


PROTOCOLS = (
    *(
        Protocol(views, f"supervised: the test split, {views} views", "test", views)
        for views in ("1x1", "3x1", "4x3", "10x3")
    ),
    Protocol("zs-val1", "zero-shot: the test split of split 1, all classes", "test"),
    Protocol("zs-splits3", "zero-shot: mean of the three official test splits", "splits"),
    Protocol("zs-half10", "zero-shot: ten random halves of the classes, all videos", "halves"),
    Protocol("zs-full", "zero-shot: all classes, all videos of all splits", "all"),
    Protocol("zs-k600-160x3", "zero-shot: three lists of 160 Kinetics-600 classes", "lists"),
    *(
        Protocol(f"fewshot-{k}", f"the test split, trained on {k} clips a class", "test", shots=k)
        for k in (2, 4, 8, 16)
    ),
    Protocol(
        "base-to-novel", "base classes with 16 clips each, and classes never seen",
        "base and novel", shots=16,
    ),
)  # fmt: skip


class DataSet(NamedTuple):
    """What is published about a data set."""

    classes: int
    videos: int | None = None
    """Of all splits."""
    tests: tuple[int, ...] = ()
    """Clips of the official test splits."""


DATA_SETS = {
    "ucf101": DataSet(101, 13_320, (3_783, 3_734, 3_696)),  # Soomro et al. 2012
    "hmdb51": DataSet(51, 6_766, (1_530, 1_530, 1_530)),  # Kuehne et al. 2011
    "kinetics400": DataSet(400),  # Kay et al. 2017; its videos disappear, so none are counted
    "kinetics600": DataSet(600),  # Carreira et al. 2018
    "ssv2": DataSet(174, None, (24_777,)),  # Goyal et al. 2017; the validation split is the test
}


def action_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises ProtocolError with the nearest one."""
    found = {protocol.name: protocol for protocol in PROTOCOLS}
    if name not in found:
        raise ProtocolError(f"no protocol is named {name!r}; {nearest(name, found)}")
    return found[name]


def parts(
    protocol: Protocol,
    manifests: Sequence[Sequence[Clip]],
    classes: Sequence[str],
    *,
    split: str = "test",
    lists: Sequence[Sequence[str]] = (),
) -> list[Part]:
    """What a protocol scores of one manifest per official split, `classes` in their order.

    The clips of `split` are the test clips; a manifest without splits is all test. `lists` of
    classes are for zs-k600-160x3 (three) and base-to-novel (base, novel).

    Raises ProtocolError that says what is missing.
    """
    wanted = 3 if protocol.kind == "splits" else None if protocol.kind in ("halves", "all") else 1
    if wanted and len(manifests) != wanted:
        files = " ".join(f"split{number}.jsonl" for number in range(1, wanted + 1))
        raise ProtocolError(
            f"{protocol.name} takes {wanted} manifest{'s' if wanted > 1 else ''}, one per official "
            f"split, and got {len(manifests)}: --data {files}"
        )
    if lists and protocol.kind not in ("lists", "base and novel"):
        raise ProtocolError(f"{protocol.name} reads no lists of classes; leave them out")
    tests = [tuple(_test(clips, split)) for clips in manifests]
    every = tuple(classes)
    match protocol.kind:
        case "test":
            return [Part(protocol.name, tests[0], every)]
        case "splits":
            if len({frozenset(clip.video_id for clip in clips) for clips in tests}) < len(tests):
                raise ProtocolError(
                    f"two of the manifests have the same test clips; {protocol.name} takes one "
                    "manifest per official split"
                )
            _union(manifests)  # which refuses those that disagree about a clip
            numbered = enumerate(tests, start=1)
            return [Part(f"split {number}", clips, every) for number, clips in numbered]
        case "all":
            return [Part("all videos", _union(manifests), every)]
        case "halves":
            whole = _union(manifests)
            drawn = (half_of(classes, seed) for seed in range(HALVES))
            return [_of_classes(f"draw {seed}", whole, half) for seed, half in enumerate(drawn)]
        case "lists":
            return _k600(tests[0], lists)
        case _:
            return _base_and_novel(manifests[0], tests[0], classes, lists)


def half_of(classes: Sequence[str], seed: int) -> tuple[str, ...]:
    """Half of the classes, rounded down, in their order: np.random.seed and permutation, as
    Text4Vis and BIKE draw them."""
    drawn = np.random.RandomState(seed).permutation(len(classes))[: len(classes) // 2]
    return tuple(classes[place] for place in sorted(drawn))


def base_classes(classes: Sequence[str], training: Sequence[Clip] = ()) -> tuple[str, ...]:
    """The half of the classes, rounded up, with the most training clips, in the order of `classes`.

    Of equally frequent ones the later are base, also of all where no clips are given. On split 1
    of UCF101 and HMDB51 these are the 51 and 26 base classes that ViFi-CLIP published (Rasheed et
    al. 2023). The other classes are the novel ones.
    """
    times = Counter(clip.label for clip in training)
    rarest_first = sorted(classes, key=lambda name: times[name])
    base = set(rarest_first[len(classes) // 2 :])
    return tuple(name for name in classes if name in base)


def few_shot(clips: Sequence[Clip], shots: int, seed: int) -> list[Clip]:
    """Exactly `shots` clips of every class, in the order of `clips`.

    A pure function of labels, video ids and seed: neither the order of the clips nor the number of
    processes changes it. The draws of one seed hold each other: those for 2 are among those for 4.

    Raises ProtocolError where a class has fewer clips.
    """
    own: dict[str, list[str]] = {}
    for clip in clips:
        own.setdefault(str(clip.label), []).append(clip.video_id)
    few = {name: len(ids) for name, ids in own.items() if len(ids) < shots}
    if few or shots < 1:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(few.items())[:NAMED])
        raise ProtocolError(
            f"{len(few)} of {len(own)} classes have fewer than {shots} clips: {listed}; draw fewer"
            if few
            else f"{shots} shots are asked for; draw at least 1"
        )
    drawn = {
        video_id
        for name, ids in own.items()
        for video_id in generator(seed, "few-shot", name).permutation(sorted(ids))[:shots]
    }
    return [clip for clip in clips if clip.video_id in drawn]


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n): base-to-novel's one figure."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def check_published(
    name: str,
    protocol: Protocol | None,
    manifests: Sequence[Sequence[Clip]],
    classes: Sequence[str],
    found: Sequence[Part],
) -> str:
    """Compares with what is published about a data set; returns the line that says so.

    Raises ProtocolError that lists every count that differs.
    """
    if name not in DATA_SETS:
        raise ProtocolError(
            f"nothing is known here about a data set {name!r}; {nearest(name, DATA_SETS)}"
        )
    known = DATA_SETS[name]
    said = [("classes", len(classes), known.classes)]
    kind = protocol.kind if protocol else "test"
    if kind in ("halves", "all") and known.videos:
        said.append(("videos", len(_union(manifests)), known.videos))
    if kind in ("test", "splits"):
        numbered = enumerate(zip(found, known.tests, strict=False), start=1)
        said += [(f"test clips of split {n}", len(p.clips), wanted) for n, (p, wanted) in numbered]
    wrong = [f"{has} {what}, published are {wanted}" for what, has, wanted in said if has != wanted]
    if wrong:
        raise ProtocolError(
            f"this is not {name} as published: {'; '.join(wrong)}. Keep clips that cannot be read "
            "in the manifest, they count as wrong; leave --expect out to evaluate what is there"
        )
    counts = ", ".join(f"{wanted:,} {what}" for what, _, wanted in said)
    return f"as published for {name}: {counts}"


def class_words(name: str) -> str:
    """A class name in words: ApplyEyeMakeup is apply eye makeup, brush_hair is brush hair.

    Names with spaces keep them; the brackets of Something-Something's placeholders go.
    """
    words = re.sub(r"[\[\]]", "", name)
    if " " not in words.strip():
        words = re.sub(r"[_\-]+", " ", words)
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", words)
    return " ".join(words.lower().split())


def spelled(classes: Sequence[str], names: str) -> tuple[str, ...]:
    """The classes as sentences say them.

    `names` is reference (as the manifest has them), words (split), or a file: JSON {"class":
    "name"}, or text with a name a line in the order of the classes.

    Raises ProtocolError where the file does not name every class, or calls two alike.
    """
    if names == "reference":
        return tuple(classes)
    found = (
        tuple(class_words(name) for name in classes)
        if names == "words"
        else _of_file(Path(names), classes)
    )
    alike = [name for name, times in Counter(found).items() if times > 1]
    if alike:
        raise ProtocolError(
            f"{len(alike)} of the names by {names} stand for several classes, such as "
            f"{alike[0]!r}: no sentence can tell these apart; give them different names in a file"
        )
    return found


def _of_file(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes as a file has them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ProtocolError(
            f"the names {str(path)!r} are neither reference nor words nor a file that can be read: "
            f"{error}"
        ) from error
    if isinstance(table, Mapping):
        without = [name for name in classes if not isinstance(table.get(name), str)]
        if without:
            raise ProtocolError(
                f"{path} has no name for {len(without)} of {len(classes)} classes: "
                f"{', '.join(without[:NAMED])}"
            )
        return tuple(table[name] for name in classes)
    lines = [line.strip() for line in table if isinstance(line, str) and line.strip()]
    if len(lines) != len(classes):
        raise ProtocolError(
            f"{path} has {len(lines)} names for {len(classes)} classes; give one a line, in the "
            f"order of the classes ({', '.join(classes[:3])}, ...)"
        )
    return tuple(lines)


def _test(clips: Sequence[Clip], split: str) -> list[Clip]:
    """The clips to be tested: those of a split, or all where none has one."""
    if all(clip.split is None for clip in clips) or split == "all":
        return list(clips)
    found = [clip for clip in clips if clip.split == split]
    if not found:
        present = sorted({str(clip.split) for clip in clips})
        raise ProtocolError(
            f"no clip is of split {split!r}, there are {', '.join(present)}; choose with --split"
        )
    return found


def _union(manifests: Sequence[Sequence[Clip]]) -> tuple[Clip, ...]:
    """Every clip once. Raises ProtocolError where manifests disagree about one."""
    found: dict[str, Clip] = {}
    for clip in (clip for clips in manifests for clip in clips):
        other = found.setdefault(clip.video_id, clip)
        if (other.path, other.label, other.start, other.end) != (
            clip.path, clip.label, clip.start, clip.end,
        ):  # fmt: skip
            raise ProtocolError(
                f"the manifests disagree about {clip.video_id}: {other.path} is {other.label}, "
                f"{clip.path} is {clip.label}; give different clips different ids"
            )
    return tuple(found.values())


def _of_classes(name: str, clips: Sequence[Clip], classes: Sequence[str]) -> Part:
    chosen = set(classes)
    return Part(name, tuple(clip for clip in clips if clip.label in chosen), tuple(classes))


def _k600(clips: Sequence[Clip], lists: Sequence[Sequence[str]]) -> list[Part]:
    sizes = [len(names) for names in lists]
    if sizes != [K600_CLASSES] * 3:
        raise ProtocolError(
            f"zs-k600-160x3 takes three lists of {K600_CLASSES} class names, one a line, spelled "
            f"as in the manifest; given are {sizes or 'none'}: --class-lists s1.txt s2.txt s3.txt"
        )
    found = []
    for number, names in enumerate(lists, start=1):
        found.append(_with_clips(_of_classes(f"list {number}", clips, names)))
    return found


def _with_clips(part: Part) -> Part:
    """The part. Raises ProtocolError where a class has no clip, as of a name spelled otherwise."""
    without = sorted(set(part.classes) - {str(clip.label) for clip in part.clips})
    if without:
        raise ProtocolError(
            f"{len(without)} of the {len(part.classes)} classes of {part.name} have no clip, such "
            f"as {', '.join(without[:NAMED])}; spell them as the manifest does"
        )
    return part


def _base_and_novel(
    clips: Sequence[Clip],
    test: Sequence[Clip],
    classes: Sequence[str],
    lists: Sequence[Sequence[str]],
) -> list[Part]:
    if lists and (len(lists) != 2 or set(lists[0]) & set(lists[1])):
        raise ProtocolError(
            "base-to-novel takes two lists of classes that share none, base and novel; "
            f"{len(lists)} are given"
        )
    training = [clip for clip in clips if clip.split == "train"]
    if not lists and not training:
        raise ProtocolError(
            "base-to-novel calls the classes base that have the most training clips, but the "
            "manifest has no clips of split 'train'; add them, or give --class-lists base.txt "
            "novel.txt"
        )
    base = tuple(lists[0]) if lists else base_classes(classes, training)
    novel = tuple(lists[1]) if lists else tuple(n for n in classes if n not in set(base))
    found = [_of_classes("base", test, base), _of_classes("novel", test, novel)]
    return [_with_clips(part) for part in found] if lists else found
