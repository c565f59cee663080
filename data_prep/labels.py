"""Files of class names and lists of labelled clips, as recognition's data sets distribute them."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from data_prep.annotations import (
    AnnotationError,
    JsonFile,
    fault,
    read_lines,
    read_table,
)


class Labelled(NamedTuple):
    """A line of a list."""

    line: int
    name: str
    """The clip, with or without a folder."""
    label: int
    """The number of its class as the list counts."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers.

    Reads a CSV file with the columns id and name, a JSON object from names to numbers, and text
    with a name a line, with or without numbers in front (UCF101's classInd.txt counts from 1).
    Raises AnnotationError that names the line of a number that stands twice or is missing.
    """
    if path.suffix == ".json":
        numbered = _of_json(path)
    elif path.suffix == ".csv":
        rows = read_table(path, ("id", "name"))
        numbered = [(row.number, _number(path, row.number, row.cells[0]), row.cells[1])
                    for row in rows]  # fmt: skip
    else:
        lines = read_lines(path)
        split = [line.cells[0].partition(" ") for line in lines]
        if all(first.isdecimal() and name for first, _, name in split):
            numbered = [
                (line.number, int(first), name.strip())
                for line, (first, _, name) in zip(lines, split, strict=True)
            ]
        else:
            numbered = [(line.number, at, line.cells[0]) for at, line in enumerate(lines)]
    first = min((number for _, number, _ in numbered), default=0)
    names: dict[int, str] = {}
    for line, number, name in numbered:
        if not name:
            raise fault(path, line, "the class has no name")
        if number in names:
            raise fault(path, line, f"the number {number} is {names[number]!r} already")
        if name in names.values():
            raise fault(path, line, f"the class {name!r} stands there already")
        names[number] = name
    absent = sorted(set(range(first, first + len(names))) - set(names))
    if absent or first not in (0, 1):
        raise AnnotationError(
            f"{path} has no class with the number {absent[0] if absent else 0}; get it again"
        )
    return tuple(names[number] for number in sorted(names))


def read_list(path: Path, classes: int | None = None, first: int = 0) -> list[Labelled]:
    """Lines of `NAME LABEL` or `NAME FRAMES LABEL`, whose names may hold spaces.

    Raises AnnotationError that names the line without a label, or with one that is not from
    `first` to `first + classes - 1`.
    """
    found = []
    for line in read_lines(path):
        text = line.cells[0]
        name, _, label = text.rpartition(" ")
        if not name or not label.isdecimal():
            raise fault(path, line.number, f"{text!r}; expected a name and the number of a class")
        front, _, frames = name.rstrip().rpartition(" ")
        if front and frames.isdecimal():
            name = front
        if classes is not None and not first <= int(label) < first + classes:
            raise fault(
                path, line.number,
                f"the class {label}; the file of class names has {first} to {first + classes - 1}",
            )  # fmt: skip
        found.append(Labelled(line.number, name.strip(), int(label)))
    return found


def check_numbers(
    path: Path, lines: Sequence[tuple[int, str, int]], names: Sequence[str] | None
) -> str | None:
    """Compares the folder and the number of every line, `(line, folder, number)`.

    Raises AnnotationError that names the first line whose number is not the one that its folder has
    elsewhere. Returns a sentence where numbers mean other classes than the file of class names
    says: HMDB51's lists count kick before kick_ball, and a label file in use the other way round.
    The folder then counts.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for _, folder, number in lines:
        counts[folder][number] += 1
    usual = {folder: found.most_common(1)[0][0] for folder, found in counts.items()}
    for line, folder, number in lines:
        if number != usual[folder]:
            raise fault(
                path, line, f"the class is {number}, and elsewhere {folder} is {usual[folder]}"
            )
    other = [
        f"{number} is {folder} in the list and {names[number]} there"
        for folder, number in usual.items()
        if names is not None and not same_class(folder, names[number])
    ]
    if not other:
        return None
    return (
        f"the file of class names has another order than {path.name}: {', '.join(other)}; the "
        "folder of a clip says its class"
    )


def same_class(name: str, other: str) -> bool:
    """Whether two spellings mean one class: brush_hair and Brush Hair, HandStand and Handstand."""
    return _letters(name) == _letters(other)


@cache
def _letters(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _number(path: Path, line: int, text: str) -> int:
    if not text.isdecimal():
        raise fault(path, line, f"the id {text!r}; expected a whole number")
    return int(text)


def _of_json(path: Path) -> list[tuple[int, int, str]]:
    file = JsonFile(path)
    found = []
    for item in file.items():
        line = file.text.count("\n", 0, item.offset) + 1
        number = item.value if isinstance(item.value, int) else str(item.value)
        if item.key is None or not str(number).isdecimal():
            raise file.fault(item.offset, f"{json.dumps(item.value)}; expected a class number")
        found.append((line, int(number), item.key.strip().strip('"')))
    return found
