"""VATEX (Wang et al. 2019): clips of ten seconds with ten English captions each.

Retrieval tests on half of the validation clips: the lists of HGR (Chen et al. 2020), as TS2-Net
has them. Without lists the official split comes out, which no retrieval figure is measured on.

Make it: videoclip data prepare vatex --annotations FOLDER --videos FOLDER
"""

import re
from pathlib import Path

from data_prep.annotations import JsonFile, fault, place, read_lines
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part

LISTS = {split: (f"{split}_list.txt",) for split in ("train", "val", "test")}
OFFICIAL = {
    "train": ("vatex_training_v1.0.json",),
    "val": ("vatex_validation_v1.0.json",),
    "test": ("vatex_public_test_english_v1.1.json", "vatex_public_test_english_v1.0.json"),
}
SIZES = {"train": 25_991, "val": 3_000, "test": 6_000}
RETRIEVAL = {"train": 25_991, "val": 1_500, "test": 1_500}
EACH = 10
CLIP = re.compile(r"(.+)_\d{6}_\d{6}")
"""The video at YouTube and the seconds of the clip."""


def read(annotations: Annotations) -> list[Part]:
    """The lists with captions from ref_captions.json or the official files, or these alone."""
    if annotations.find(*LISTS["test"]) is None:
        annotations.note(
            "there is no test_list.txt (hgr_v2t, ts2_net): this is the official split, not the "
            "1,500 test clips that retrieval is measured on"
        )
        entries = []
        for split, path in annotations.splits(OFFICIAL).items():
            entries += [_entry(clip, split, texts) for clip, texts in _official(path).items()]
        return [Part("", entries, _expected(SIZES))]
    captions = _all_captions(annotations)
    entries = []
    for split, listed in annotations.splits(LISTS).items():
        for line in read_lines(listed):
            clip = line.cells[0]
            if clip not in captions:
                raise fault(listed, line.number, f"{clip} has no captions in the JSON files")
            where = place(listed, line.number)
            entries.append(_entry(clip, split, captions[clip])._replace(where=where))
    return [Part("", entries, {split: Expected({size}) for split, size in RETRIEVAL.items()})]


def _entry(clip: str, split: str, captions: tuple[str, ...]) -> Entry:
    match = CLIP.fullmatch(clip)
    return Entry(clip, (clip,), split, captions, source=match[1] if match else None)


def _expected(sizes: dict[str, int]) -> dict[str, Expected]:
    return {split: Expected({size}, {EACH * size}) for split, size in sizes.items()}


def _all_captions(annotations: Annotations) -> dict[str, tuple[str, ...]]:
    path = annotations.find("ref_captions.json")
    if path is None:
        found: dict[str, tuple[str, ...]] = {}
        for official in annotations.splits(OFFICIAL, what="captions of ").values():
            found |= _official(official)
        return found
    file = JsonFile(path)
    return {str(item.key): file.texts_of(item) for item in file.items()}


def _official(path: Path) -> dict[str, tuple[str, ...]]:
    file = JsonFile(path)
    found: dict[str, tuple[str, ...]] = {}
    for item in file.items():
        clip = file.text_of(item, "videoID")
        if clip in found:
            raise file.fault(item.offset, f"{clip} stands there already")
        found[clip] = file.texts_of(item, "enCap")
    return found


DATA_SETS = (
    Dataset(
        name="vatex",
        title="VATEX, English, 1,500 test clips of hgr_v2t's split",
        license="CC BY 4.0 for the captions; the videos belong to who uploaded them",
        page="https://eric-xw.github.io/vatex-website/",
        files="train_list.txt, val_list.txt, test_list.txt with ref_captions.json; or "
        "vatex_training_v1.0.json, vatex_validation_v1.0.json, vatex_public_test_english_v1.1.json",
        read=read,
    ),
)
