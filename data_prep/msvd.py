"""MSVD (Chen and Dolan 2011): 1,970 videos with about 40 captions each.

Make it: videoclip data prepare msvd --annotations FOLDER --videos FOLDER
"""

import pickle
import re
from pathlib import Path
from typing import Any

from data_prep.annotations import AnnotationError, JsonFile, fault, place, read_lines
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part

COUNTS = {
    "train": Expected({1_200}, {48_774}),
    "val": Expected({100}, {4_290}),
    "test": Expected({670}, {27_763}),
}
CLIP = re.compile(r"(.+)_\d+_\d+")
"""The video at YouTube and the seconds of the clip."""


def read(annotations: Annotations) -> list[Part]:
    """The three lists with the captions of JSON or of CLIP4Clip's raw-captions.pkl."""
    path = annotations.require("captions_msvd.json", "raw-captions.pkl")
    captions = _pickled(path) if path.suffix == ".pkl" else _json(path)
    lists = annotations.splits({split: (f"{split}_list.txt",) for split in COUNTS})
    entries = []
    for split, listed in lists.items():
        for line in read_lines(listed):
            video = line.cells[0]
            match = CLIP.fullmatch(video)
            if match is None:
                raise fault(listed, line.number, f"{video!r}; expected ID_START_END")
            if video not in captions:
                raise fault(listed, line.number, f"{video} has no captions in {path.name}")
            where = place(listed, line.number)
            entries.append(
                Entry(video, (video,), split, captions[video], source=match[1], where=where)
            )
    return [Part("", entries, COUNTS)]


def _json(path: Path) -> dict[str, tuple[str, ...]]:
    file = JsonFile(path)
    found: dict[str, tuple[str, ...]] = {}
    for item in file.items():
        if item.key is None:
            raise file.fault(item.offset, "a list; expected captions by video")
        if item.key in found:
            raise file.fault(item.offset, f"{item.key} stands there already")
        found[item.key] = file.texts_of(item)
    return found


class _Plain(pickle._Unpickler):
    """Reads lists, dictionaries and strings; whatever asks for a function is refused.

    It is the one written in Python: that in C makes room for as many objects as a file claims.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise AnnotationError(f"it asks for {module}.{name}, and captions need nothing of the kind")

    def persistent_load(self, pid: Any) -> Any:
        raise AnnotationError("it refers to objects outside of it")


def _pickled(path: Path) -> dict[str, tuple[str, ...]]:
    """{id: [[word, ...], ...]}; the words are joined by spaces, as CLIP4Clip does."""
    try:
        with path.open("rb") as file:
            raw = _Plain(file, encoding="utf-8").load()
        return {
            str(video): tuple(" ".join(map(str, words)) for words in captions)
            for video, captions in raw.items()
        }
    except AnnotationError as error:
        raise AnnotationError(f"{path} is refused: {error}; nothing was executed") from error
    except Exception as error:  # a damaged pickle raises anything
        reason = f"{type(error).__name__}: {error}"
        raise AnnotationError(f"{path} is damaged ({reason}); get it again") from error


DATA_SETS = (
    Dataset(
        name="msvd",
        title="MSVD (YouTube2Text), 670 test videos with 27,763 captions",
        license="Microsoft Research's terms for the corpus; the videos belong to who uploaded them",
        page="https://www.cs.utexas.edu/users/ml/clamp/videoDescription/",
        files="train_list.txt, val_list.txt, test_list.txt, captions_msvd.json or raw-captions.pkl",
        read=read,
    ),
)
