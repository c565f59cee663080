"""Kinetics-400, -600 and -700: clips of ten seconds with one of so many actions.

The validation clips become the split `test`: what is published is measured on them. Videos
disappear from YouTube, so that no two copies have the same number of clips.

Make it: videoclip data prepare kinetics400 --annotations FOLDER --videos FOLDER
"""

import re
from functools import partial
from pathlib import Path

from data_prep.annotations import AnnotationError, fault, place, read_table
from data_prep.entries import Annotations, Dataset, Entry, Part
from data_prep.labels import read_labels, read_list

TRAIN = ("train.csv", "train.txt", "kinetics_video_train_se320.txt")
TEST = ("val.csv", "validate.csv", "val.txt", "kinetics_video_val_se320.txt")
COLUMNS = ("label", "youtube_id", "time_start", "time_end")
ID = 11
"""Characters of a video's id at YouTube."""
NAME = re.compile(r"(([\w-]{11})(?:_\d{6}_\d{6})?)(?:\.(?:mp4|mkv|webm|avi))?", re.ASCII)
"""A file: the id and, where it was not cut off, the seconds."""


def read(annotations: Annotations, classes: int) -> list[Part]:
    """The official tables, or lists of `NAME.mp4 NUMBER` with a file of class names."""
    files = {
        "train": (*TRAIN, f"kinetics{classes}_train_list_videos.txt"),
        "test": (*TEST, f"kinetics{classes}_val_list_videos.txt"),
    }
    found = annotations.splits(files)
    if (annotations.folder / "test.csv").is_file():
        annotations.note("test.csv is not read: what is published is measured on validation clips")
    labels = annotations.label_file(
        f"kinetics_{classes}_labels.csv", f"label_map_k{classes}.txt", "labels.csv"
    )
    names = read_labels(labels) if labels else None
    if names is not None and len(names) != classes:
        raise AnnotationError(f"{labels} has {len(names)} classes, expected {classes}")
    entries = []
    for split, path in found.items():
        if path.suffix == ".csv":
            entries += _table(path, split, names)
        elif names is None:
            raise AnnotationError(
                f"{path} has numbers instead of classes; give their names: "
                f"--labels kinetics_{classes}_labels.csv"
            )
        else:
            entries += _list(path, split, names)
    return [Part("", entries, {}, classes)]


def _table(path: Path, split: str, names: tuple[str, ...] | None) -> list[Entry]:
    entries, known = [], set(names or ())
    for row in read_table(path, COLUMNS):
        label, video, *times = row.cells
        if not label:
            raise fault(path, row.number, f"{video} has no label")
        if known and label not in known:
            raise fault(path, row.number, f"the label {label!r} is not in the file of class names")
        if len(video) != ID:
            raise fault(path, row.number, f"{video!r}; an id at YouTube has {ID} characters")
        try:
            start, end = (round(float(time)) for time in times)
        except ValueError as error:
            raise fault(path, row.number, f"{times}; expected seconds") from error
        name = f"{video}_{start:06d}_{end:06d}"
        files = (f"{label}/{name}", name, video)
        where = place(path, row.number)
        entries.append(Entry(name, files, split, label=label, source=video, where=where))
    return entries


def _list(path: Path, split: str, names: tuple[str, ...]) -> list[Entry]:
    entries = []
    for line in read_list(path, len(names)):
        match = NAME.fullmatch(line.name.rsplit("/", 1)[-1])
        if match is None:
            raise fault(path, line.line, f"{line.name!r}; expected an id of {ID} characters")
        entries.append(
            Entry(
                match[1],
                (line.name, match[1]),
                split,
                label=names[line.label],
                source=match[2],
                where=place(path, line.line),
            )
        )
    return entries


DATA_SETS = tuple(
    Dataset(
        name=f"kinetics{classes}",
        title=f"Kinetics-{classes}, {classes} actions",
        license="CC BY 4.0 for the annotations; the videos belong to who uploaded them",
        page="https://github.com/cvdfoundation/kinetics-dataset",
        files="train.csv and val.csv (or validate.csv); or lists of NAME.mp4 NUMBER such as "
        f"kinetics_video_val_se320.txt with --labels kinetics_{classes}_labels.csv",
        read=partial(read, classes=classes),
    )
    for classes in (400, 600, 700)
)
