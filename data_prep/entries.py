"""What a data set's script says of each clip, and how clips that are named twice are settled."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.annotations import AnnotationError

SPLITS = ("train", "val", "test")


class Entry(NamedTuple):
    """A clip as the annotations have it."""

    video_id: str
    files: tuple[str, ...]
    """Names that its video may have in the folder, the best first; the ending may differ."""
    split: str | None
    captions: tuple[str, ...] = ()
    label: str | None = None
    start: float | None = None
    """Seconds."""
    end: float | None = None
    source: str | None = None
    """The longer video that it was cut from, where its name tells."""
    group: str | None = None
    where: str = ""
    """File and line, for messages; it makes no difference between two entries."""


class Expected(NamedTuple):
    """The published size of a split; a copy may have one of several. Empty: none is known."""

    clips: Collection[int] = ()
    captions: Collection[int] = ()


class Part(NamedTuple):
    """One manifest: a data set has several where it has several official splits."""

    suffix: str
    """What its file name gets, "-split1" for example."""
    entries: list[Entry]
    expected: Mapping[str, Expected]
    """By split; only the splits that are there are compared."""
    classes: int | None = None
    """The published number of classes; None where there are none, or any number will do."""


class Download(NamedTuple):
    """A file that its publisher lets anybody have."""

    address: str
    file: str
    """What it is called here."""
    size: int
    """Bytes."""
    checksum: str
    """SHA-256."""


class Annotations:
    """A folder of annotation files; remembers which were read and what was left out."""

    def __init__(self, folder: Path, labels: Path | None = None) -> None:
        self.folder, self.labels = Path(folder), labels
        self.used: list[Path] = []
        self.notes: list[str] = []

    def find(self, *names: str) -> Path | None:
        """The first of these files that is there."""
        for name in names:
            path = self.folder / name
            if path.is_file():
                self.used.append(path)
                return path
        return None

    def require(self, *names: str) -> Path:
        """The same, or AnnotationError."""
        found = self.find(*names)
        if found is None:
            raise AnnotationError(f"{self.folder} has no {' and no '.join(names)}")
        return found

    def splits(self, names: Mapping[str, tuple[str, ...]], *, what: str = "") -> dict[str, Path]:
        """The file of each split; a split whose file is not there is left out and noted.

        Raises AnnotationError where there is none at all.
        """
        found = {split: path for split, files in names.items() if (path := self.find(*files))}
        if not found:
            every = ", ".join(" or ".join(files) for files in names.values())
            raise AnnotationError(f"{self.folder} has none of {every}")
        for split, files in names.items():
            if split not in found:
                self.note(f"{what}{split} is left out: there is no {' and no '.join(files)}")
        return found

    def label_file(self, *names: str) -> Path | None:
        """The file of class names: the one that the user gave, or one of these in the folder."""
        if self.labels is None:
            return self.find(*names)
        if not self.labels.is_file():
            raise AnnotationError(f"there is no file of class names {self.labels}")
        self.used.append(self.labels)
        return self.labels

    def note(self, sentence: str) -> None:
        """Remembers a sentence for the report."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by name."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in dict.fromkeys(self.used)
        }


class Dataset(NamedTuple):
    """A data set that can be prepared."""

    name: str
    """As users give it."""
    title: str
    license: str
    page: str
    """Where its publisher tells how to get it."""
    files: str
    """Which annotation files are read, in words."""
    read: Callable[[Annotations], list[Part]]
    downloads: tuple[Download, ...] = ()
    """What may be fetched without asking anybody."""


class Settled(NamedTuple):
    """Entries with unique ids, and what had to be decided for that."""

    entries: list[Entry]
    duplicated: list[str]
    """Ids named again with nothing new, and where."""
    conflicting: list[str]
    """Ids whose entries contradict each other, with what was kept."""
    in_two_splits: list[str]
    """Ids in more than one split; kept in the last of train, val, test."""


def settle(entries: Iterable[Entry]) -> Settled:
    """Makes ids unique, in the order of their first entry.

    An exact repetition is dropped, captions of the same clip are joined, of two labels or segments
    the first is kept. A clip in two splits stays in the later of train, val, test, so that nothing
    that is tested was trained on. All of it is listed.
    """
    kept: dict[str, Entry] = {}
    found = Settled([], [], [], [])
    for entry in entries:
        if entry.video_id not in kept:
            kept[entry.video_id] = entry
            continue
        old = kept[entry.video_id]
        places = f" ({old.where}; {entry.where})" if entry.where else ""
        if entry._replace(where="") == old._replace(where=""):
            found.duplicated.append(f"{entry.video_id}{places}")
            continue
        if entry.split != old.split:
            first, last = sorted([old, entry], key=lambda one: _rank(one.split))
            found.in_two_splits.append(
                f"{entry.video_id}: {first.split} and {last.split}{places}; kept in {last.split}"
            )
            kept[entry.video_id] = last
            continue
        for name in ("label", "start", "end"):
            if getattr(entry, name) != getattr(old, name):
                found.conflicting.append(
                    f"{entry.video_id}: {name} {getattr(old, name)!r} and {getattr(entry, name)!r}"
                    f"{places}; the first is kept"
                )
        known = set(old.captions)
        new = tuple(caption for caption in entry.captions if caption not in known)
        if new:
            found.conflicting.append(f"{entry.video_id}: described twice{places}; joined")
        kept[entry.video_id] = old._replace(captions=old.captions + new)
    return found._replace(entries=list(kept.values()))


def _rank(split: str | None) -> int:
    return SPLITS.index(split) if split else -1
