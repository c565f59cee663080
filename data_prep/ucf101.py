"""UCF101 (Soomro et al. 2012): 13,320 clips of 101 actions, three official splits.

Make it: videoclip data prepare ucf101 --annotations ucfTrainTestlist --videos UCF-101
"""

import re
from pathlib import Path

from data_prep.annotations import AnnotationError, fault, place, read_lines
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part
from data_prep.labels import check_numbers, read_labels, read_list, same_class

CLASSES, VIDEOS = 101, 13_320
COUNTS = {
    1: {"train": Expected({9_537}), "test": Expected({3_783})},
    2: {"train": Expected({9_586}), "test": Expected({3_734})},
    3: {"train": Expected({9_624}), "test": Expected({3_696})},
}
NAME = re.compile(
    r"(?:(?P<folder>\w+)/)?(?P<clip>v_(?P<action>\w+)_(?P<group>g\d\d)_c\d\d)(?:\.avi)?"
)
"""The clips of a group were cut from one video."""


def read(annotations: Annotations) -> list[Part]:
    """trainlist01.txt and testlist01.txt to 03, or the lists with frames and numbers of others."""
    labels = annotations.label_file("classInd.txt", "ucf_101_labels.csv", "ucf_labels.csv")
    names = read_labels(labels) if labels else None
    if names is not None and len(names) != CLASSES:
        raise AnnotationError(f"{labels} has {len(names)} classes, expected {CLASSES}")
    parts = []
    for number, counts in COUNTS.items():
        files = {
            "train": (f"trainlist{number:02d}.txt", f"train_rgb_split_{number}.txt"),
            "test": (f"testlist{number:02d}.txt", f"val_rgb_split_{number}.txt"),
        }
        if not any((annotations.folder / name).is_file() for two in files.values() for name in two):
            annotations.note(f"split {number} is left out: its lists are not there")
            continue
        entries = []
        for split, path in annotations.splits(files, what=f"split {number}, ").items():
            entries += _entries(path, split, names, annotations)
        parts.append(Part(f"-split{number}", entries, counts, CLASSES))
    if not parts:
        raise AnnotationError(f"{annotations.folder} has no trainlist01.txt and no testlist01.txt")
    return [*parts, *together(annotations, parts, VIDEOS, CLASSES)]


def together(annotations: Annotations, parts: list[Part], videos: int, classes: int) -> list[Part]:
    """All videos in one manifest without splits (half of the classes, all videos), if complete."""
    every = {e.video_id: e._replace(split=None) for part in parts for e in part.entries}
    if len(every) != videos:
        annotations.note(
            f"no manifest of all {videos:,} videos: the lists that are here name {len(every):,}"
        )
        return []
    return [Part("-all", list(every.values()), {}, classes)]


def _entries(
    path: Path, split: str, names: tuple[str, ...] | None, annotations: Annotations
) -> list[Entry]:
    if path.name.startswith("testlist"):
        lines = [(line.number, line.cells[0], None) for line in read_lines(path)]
    else:
        first = 1 if path.name.startswith("trainlist") else 0
        found = read_list(path, CLASSES, first)
        lines = [(line.line, line.name, line.label - first) for line in found]
    entries, numbers = [], []
    for number, name, label in lines:
        match = NAME.fullmatch(name)
        if match is None:
            raise fault(path, number, f"{name!r}; expected CLASS/v_CLASS_g01_c01.avi")
        said = match["folder"] or match["action"]
        if not same_class(said, match["action"]):
            raise fault(path, number, f"{name!r} is in the folder of another class")
        action = _named(said, names)
        if action is None:
            raise fault(path, number, f"the class {said!r} is not in the file of class names")
        if label is not None:
            numbers.append((number, said, label))
        files = (f"{said}/{match['clip']}", match["clip"])
        source, where = f"{said}_{match['group']}", place(path, number)
        entries.append(Entry(match["clip"], files, split, label=action, source=source, where=where))
    if note := check_numbers(path, numbers, names):
        annotations.note(note)
    return entries


def _named(said: str, names: tuple[str, ...] | None) -> str | None:
    """The class as the file of class names spells it."""
    if names is None:
        return said
    return next((name for name in names if same_class(name, said)), None)


DATA_SETS = (
    Dataset(
        name="ucf101",
        title="UCF101, 101 actions, three splits",
        license="none is stated; the videos belong to who uploaded them",
        page="https://www.crcv.ucf.edu/data/UCF101.php",
        files="classInd.txt, trainlist01.txt, testlist01.txt to 03; or train_rgb_split_1.txt, "
        "val_rgb_split_1.txt to 3 with --labels ucf_101_labels.csv",
        read=read,
    ),
)
