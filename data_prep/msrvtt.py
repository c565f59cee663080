"""MSR-VTT (Xu et al. 2016): 10,000 videos with 20 captions each; splits 9k, 7k and full.

The 9k and 7k splits are tested on 1k-A: 1,000 videos with one caption each (Yu et al. 2018).

Make it: videoclip data prepare msrvtt-9k --annotations FOLDER --videos FOLDER
"""

import re
from functools import partial
from pathlib import Path

from data_prep.annotations import AnnotationError, JsonFile, fault, place, read_table
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part

SIZES = {"9k": 9_000, "7k": 7_010}
FULL = {"train": 6_513, "val": 497, "test": 2_990}
EACH = 20
"""Captions of a video."""
NAMES = re.compile(r"video(0|[1-9]\d{0,3})")
"""video0 to video9999."""
CAPTIONS = (
    ("MSRVTT_data.json",),
    ("train_val_videodatainfo.json",),
    ("test_videodatainfo.json",),
)
SPLITS = {"train": "train", "validate": "val", "test": "test"}
"""The official names and ours."""


def read_1k(annotations: Annotations, size: str) -> list[Part]:
    """The training list of this size, and 1k-A."""
    found = annotations.splits(
        {"train": (f"MSRVTT_train.{size}.csv",), "test": ("MSRVTT_JSFUSION_test.csv",)}
    )
    captions = _captions(annotations)
    entries = []
    if "train" in found:
        entries += _listed(found["train"], "train", captions)
    if "test" in found:
        for row in read_table(found["test"], ("video_id", "sentence")):
            video, sentence = row.cells
            _check_id(found["test"], row.number, video)
            if not sentence:
                raise fault(found["test"], row.number, f"{video} has no sentence")
            where = place(found["test"], row.number)
            entries.append(Entry(video, (video,), "test", (sentence,), where=where))
    counts = {"train": _expected(SIZES[size], captions), "test": Expected({1_000}, {1_000})}
    return [Part("", entries, counts)]


def read_full(annotations: Annotations) -> list[Part]:
    """The official split, from lists or from what the JSON files say."""
    captions = _captions(annotations)
    files = {split: (f"MSRVTT_{split}.full.csv",) for split in FULL}
    if any((annotations.folder / name).is_file() for names in files.values() for name in names):
        entries = []
        for split, path in annotations.splits(files).items():
            entries += _listed(path, split, captions)
    else:
        entries = _official(annotations, captions)
    return [Part("", entries, {split: _expected(FULL[split], captions) for split in FULL})]


def _expected(videos: int, captions: dict[str, list[str]]) -> Expected:
    return Expected({videos}, {EACH * videos} if captions else {0})


def _captions(annotations: Annotations) -> dict[str, list[str]]:
    """The captions of every video that the JSON files describe; {} where there are no files."""
    found: dict[str, list[str]] = {}
    for names in CAPTIONS:
        path = annotations.find(*names)
        if path is None:
            continue
        file = JsonFile(path)
        for item in file.items("sentences"):
            found.setdefault(file.text_of(item, "video_id"), []).append(
                file.text_of(item, "caption")
            )
        if names == CAPTIONS[0]:
            break
    if not found:
        annotations.note(
            f"there is no {CAPTIONS[0][0]} and no {CAPTIONS[1][0]}: the listed videos are in the "
            "manifest without captions, so nothing can be trained on them"
        )
    return found


def _listed(path: Path, split: str, captions: dict[str, list[str]]) -> list[Entry]:
    entries = []
    for row in read_table(path, ("video_id",)):
        video = row.cells[0]
        _check_id(path, row.number, video)
        if captions and video not in captions:
            raise fault(path, row.number, f"{video} has no caption in the JSON files")
        described, where = tuple(captions.get(video, ())), place(path, row.number)
        entries.append(Entry(video, (video,), split, described, where=where))
    return entries


def _official(annotations: Annotations, captions: dict[str, list[str]]) -> list[Entry]:
    entries = []
    for names in CAPTIONS:
        path = annotations.find(*names)
        if path is None:
            continue
        file = JsonFile(path)
        for item in file.items("videos"):
            video = file.text_of(item, "video_id")
            official = file.text_of(item, "split")
            if official not in SPLITS:
                raise file.fault(item.offset, f"the split {official!r} of {video}")
            split = SPLITS[official]
            entries.append(Entry(video, (video,), split, tuple(captions.get(video, ()))))
    if not entries:
        raise AnnotationError(
            f"{annotations.folder} has neither MSRVTT_train.full.csv nor {CAPTIONS[0][0]} nor "
            f"{CAPTIONS[1][0]}"
        )
    return entries


def _check_id(path: Path, line: int, video: str) -> None:
    if not NAMES.fullmatch(video):
        raise fault(path, line, f"{video!r}; expected an id such as video123")


def _data_set(name: str, title: str, files: str, read) -> Dataset:
    return Dataset(
        name=name,
        title=title,
        license="research only, by Microsoft's terms; the videos belong to who uploaded them",
        page="https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-"
        "description-dataset-for-bridging-video-and-language/",
        files=files,
        read=read,
    )


DATA_SETS = (
    *(
        _data_set(
            f"msrvtt-{size}",
            f"MSR-VTT, {videos:,} videos to train on, tested on 1k-A",
            f"MSRVTT_train.{size}.csv, MSRVTT_JSFUSION_test.csv, MSRVTT_data.json",
            partial(read_1k, size=size),
        )
        for size, videos in SIZES.items()
    ),
    _data_set(
        "msrvtt-full",
        "MSR-VTT, the official split, 2,990 test videos with 20 captions",
        "MSRVTT_{train,val,test}.full.csv and MSRVTT_data.json, or train_val_videodatainfo.json "
        "and test_videodatainfo.json",
        read_full,
    ),
)
