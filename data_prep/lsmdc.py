"""LSMDC (Rohrbach et al. 2017): movie clips with a sentence each, 1,000 of them to test on.

Make it: videoclip data prepare lsmdc --annotations FOLDER --videos FOLDER
"""

import re
from pathlib import Path

from data_prep.annotations import fault, place, read_lines
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part

FILES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
}
COUNTS = {
    "train": Expected((), {101_079}),  # some clips are described twice
    "val": Expected((), {7_408}),
    "test": Expected({1_000}, {1_000}),
}
COLUMNS = 6
"""clip, aligned start and end, extracted start and end, sentence."""
CLIP = re.compile(r"(\d{4}_.+)_\d\d\.\d\d\.\d\d\.\d{3}-\d\d\.\d\d\.\d\d\.\d{3}")
"""The movie and the times of the clip."""


def read(annotations: Annotations) -> list[Part]:
    """Tables without a header, with tabs; a quotation mark in them is a letter like any other."""
    found = annotations.splits(FILES)
    entries = []
    for split, path in found.items():
        for line in read_lines(path):
            entries.append(_entry(path, line.number, line.cells[0], split))
    return [Part("", entries, COUNTS)]


def _entry(path: Path, number: int, line: str, split: str) -> Entry:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != COLUMNS:
        raise fault(path, number, f"{len(cells)} columns with tabs between, expected {COLUMNS}")
    clip, sentence = cells[0], cells[-1]
    match = CLIP.fullmatch(clip)
    if match is None:
        raise fault(path, number, f"{clip!r}; expected MOVIE_00.00.51.926-00.00.54.129")
    if not sentence:
        raise fault(path, number, f"{clip} has no sentence")
    movie = match[1]
    files, where = (f"{movie}/{clip}", clip), place(path, number)
    return Entry(clip, files, split, (sentence,), source=movie, where=where)


DATA_SETS = (
    Dataset(
        name="lsmdc",
        title="LSMDC 2016, 1,000 test clips of movies",
        license="research only, after a signed request to its publisher",
        page="https://sites.google.com/site/describingmovies/",
        files="LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, "
        "LSMDC16_challenge_1000_publictect.csv",
        read=read,
    ),
)
