"""ActivityNet Captions (Krishna et al. 2017): a video and the paragraph of all its sentences.

Tested on the first set of validation sentences, as CLIP4Clip does; a second set is about nearly the
same videos, and there is no public test set.

Make it: videoclip data prepare activitynet --annotations FOLDER --videos FOLDER
"""

from pathlib import Path

from data_prep.annotations import JsonFile
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part

FILES = {"train": ("train.json",), "test": ("val_1.json", "val1.json", "val.json")}
IDS = {"train": "train_ids.json", "test": "val_ids.json"}
COUNTS = {"train": Expected({10_009}, {10_009}), "test": Expected({4_917}, {4_917})}


def read(annotations: Annotations) -> list[Part]:
    """{id: {duration, sentences, timestamps}} and, where they are there, lists of ids."""
    entries = []
    for split, path in annotations.splits(FILES).items():
        listed = annotations.find(IDS[split])
        entries += _videos(path, split, _ids(listed) if listed else None)
    return [Part("", entries, COUNTS)]


def _videos(path: Path, split: str, listed: set[str] | None) -> list[Entry]:
    file = JsonFile(path)
    entries = []
    for item in file.items():
        if item.key is None:
            raise file.fault(item.offset, "a list; expected videos by their id")
        if listed is not None and item.key not in listed:
            continue
        sentences = file.texts_of(item, "sentences")
        times = item.value.get("timestamps", list(sentences))
        if not isinstance(times, list) or len(times) != len(sentences):
            raise file.fault(
                item.offset, f"{item.key} has not as many timestamps as sentences; get it again"
            )
        name = item.key.removeprefix("v_")
        entries.append(Entry(item.key, (f"v_{name}", name), split, (" ".join(sentences),)))
    return entries


def _ids(path: Path) -> set[str]:
    file = JsonFile(path)
    return {file.text_of(item) for item in file.items()}


DATA_SETS = (
    Dataset(
        name="activitynet",
        title="ActivityNet Captions, 4,917 test videos with a paragraph each",
        license="none is stated for the captions; the videos belong to who uploaded them",
        page="https://cs.stanford.edu/people/ranjaykrishna/densevid/",
        files="train.json, val_1.json (or val.json); train_ids.json and val_ids.json if there",
        read=read,
    ),
)
