"""HMDB51 (Kuehne et al. 2011): 6,766 clips of 51 actions, three official splits.

A split has 70 clips of a class to train on and 30 to test; the other clips are in neither.

Make it: videoclip data prepare hmdb51 --annotations testTrainMulti_7030_splits --videos hmdb51_org
"""

import re
from pathlib import Path

from data_prep.annotations import AnnotationError, fault, place, read_lines
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part
from data_prep.labels import check_numbers, read_labels, read_list, same_class
from data_prep.ucf101 import together

CLASSES, VIDEOS = 51, 6_766
COUNTS = {"train": Expected({3_570}), "test": Expected({1_530})}
OFFICIAL = re.compile(r"(.+)_test_split([123])\.txt")
FOLDER = re.compile(r"\w+")
USE = {"0": None, "1": "train", "2": "test"}
"""What the number behind a clip means."""


def read(annotations: Annotations) -> list[Part]:
    """A file for each class and split, or the lists with frames and numbers of others."""
    labels = annotations.label_file("hmdb_51_labels.csv", "hmdb51_labels.csv")
    names = read_labels(labels) if labels else None
    if names is not None and len(names) != CLASSES:
        raise AnnotationError(f"{labels} has {len(names)} classes, expected {CLASSES}")
    official = sorted(
        (int(match[2]), match[1], path)
        for path in annotations.folder.iterdir()
        if (match := OFFICIAL.fullmatch(path.name))
    )
    parts = []
    spare: dict[str, Entry] = {}
    for number in (1, 2, 3):
        entries = []
        for _, action, path in (row for row in official if row[0] == number):
            annotations.used.append(path)
            entries += _of_class(path, _spelled(action, names, path))
        if not official:
            entries = _lists(annotations, number, names)
        for entry in entries:
            if entry.split is None:
                spare.setdefault(entry.video_id, entry)
        entries = [entry for entry in entries if entry.split]
        if entries:
            parts.append(Part(f"-split{number}", entries, COUNTS, CLASSES))
        else:
            annotations.note(f"split {number} is left out: its lists are not there")
    if not parts:
        raise AnnotationError(
            f"{annotations.folder} has no brush_hair_test_split1.txt and no val_rgb_split_1.txt"
        )
    whole = [*parts, Part("", list(spare.values()), {})]
    return [*parts, *together(annotations, whole, VIDEOS, CLASSES)]


def _of_class(path: Path, action: str) -> list[Entry]:
    """Lines of `NAME.avi USE`."""
    entries = []
    folder = OFFICIAL.fullmatch(path.name)[1]
    for line in read_lines(path):
        name, _, use = line.cells[0].rpartition(" ")
        if not name.strip() or use not in USE:
            raise fault(path, line.number, f"{line.cells[0]!r}; expected NAME.avi and 0, 1 or 2")
        entry = _entry(folder, name.strip().removesuffix(".avi"), USE[use], action)
        entries.append(entry._replace(where=place(path, line.number)))
    return entries


def _lists(annotations: Annotations, number: int, names: tuple[str, ...] | None) -> list[Entry]:
    """Lines of `CLASS/NAME FRAMES NUMBER`."""
    files = {"train": f"train_rgb_split_{number}.txt", "test": f"val_rgb_split_{number}.txt"}
    if not any((annotations.folder / name).is_file() for name in files.values()):
        return []
    entries = []
    wanted = {split: (name,) for split, name in files.items()}
    for split, path in annotations.splits(wanted, what=f"split {number}, ").items():
        numbers = []
        for line in read_list(path, CLASSES):
            *_, folder, name = ["", *line.name.split("/")]
            if not FOLDER.fullmatch(folder):
                raise fault(path, line.line, f"{line.name!r}; expected CLASS/NAME")
            action = _spelled(folder, names, path, line.line)
            numbers.append((line.line, folder, line.label))
            entry = _entry(folder, name.removesuffix(".avi"), split, action)
            entries.append(entry._replace(where=place(path, line.line)))
        if note := check_numbers(path, numbers, names):
            annotations.note(note)
    return entries


def _entry(folder: str, name: str, split: str | None, action: str) -> Entry:
    # The name tells the film, the action and what the picture is like, in this order.
    before, _, behind = name.rpartition(f"_{folder}_")
    source = before if before and behind else None
    files = (f"{folder}/{name}", name)
    return Entry(f"{folder}/{name}", files, split, label=action, source=source)


def _spelled(said: str, names: tuple[str, ...] | None, path: Path, line: int = 1) -> str:
    """The class as the file of class names spells it; without one, with spaces."""
    if names is None:
        return said.replace("_", " ")
    found = next((name for name in names if same_class(name, said)), None)
    if found is None:
        raise fault(path, line, f"the class {said!r} is not in the file of class names")
    return found


DATA_SETS = (
    Dataset(
        name="hmdb51",
        title="HMDB51, 51 actions, three splits",
        license="CC BY 4.0 for the annotations; the clips are from films and the web",
        page="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
        files="CLASS_test_split1.txt to 3 (testTrainMulti_7030_splits); or train_rgb_split_1.txt, "
        "val_rgb_split_1.txt to 3; --labels hmdb_51_labels.csv if there",
        read=read,
    ),
)
