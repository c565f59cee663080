"""The real annotation files become manifests with the published counts; damaged ones are refused.

Counts of the real files were taken with other programs (wc, json, csv) when they came.
"""

import random
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data_prep.annotations import AnnotationError
from data_prep.entries import Annotations
from data_prep.prepare import DATA_SETS, Prepared, prepare
from videoclip.tasks.protocols import PROTOCOLS

LABELS = {
    "kinetics400": "kinetics_400_labels.csv",
    "ucf101": "ucf_101_labels.csv",
    "hmdb51": "hmdb_51_labels.csv",
    "ssv2": "sthv2_label_map.txt",
}
FOLDERS = {
    "msrvtt-9k": "msrvtt",
    "msrvtt-7k": "msrvtt",
    "msrvtt-full": "msrvtt",
    "kinetics400": "k400",
}
COUNTS = {
    "msrvtt-9k": {"": {"train": (9_000, 0), "test": (1_000, 1_000)}},
    "msrvtt-7k": {"": {"train": (7_010, 0), "test": (1_000, 1_000)}},
    "msrvtt-full": {"": {"train": (6_513, 0), "val": (497, 0), "test": (2_990, 0)}},
    "msvd": {"": {"train": (1_200, 48_774), "val": (100, 4_290), "test": (670, 27_763)}},
    "activitynet": {"": {"test": (4_917, 4_917)}},
    "didemo": {"": {"val": (1_065, 1_065), "test": (1_004, 1_004)}},
    "kinetics400": {"": {"test": (19_796, 0)}},
    "ssv2": {"": {"test": (24_777, 0)}},
    "ucf101": {
        "-split1": {"train": (9_537, 0), "test": (3_783, 0)},
        "-split2": {"test": (3_734, 0)},
        "-split3": {"test": (3_696, 0)},
        "-all": {None: (13_320, 0)},
    },
    "hmdb51": {"-split1": {"train": (3_570, 0), "test": (1_530, 0)}},
}
"""Clips and captions by data set, manifest and split; the training captions are not there."""


@cache
def official(name: str, shared: Path) -> list[Prepared]:
    return prepared(name, shared)


def prepared(name: str, shared: Path, folder: Path | None = None, **options) -> list[Prepared]:
    annotations = shared / "data" / "annotations"
    labels = annotations / "labels" / LABELS[name] if name in LABELS else None
    folder = folder or annotations / FOLDERS.get(name, name)
    return prepare(DATA_SETS[name], Annotations(folder, labels), None, Path("videos"), **options)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str, shared: Path) -> None:
    found = {}
    for part in official(name, shared):
        clips = Counter(entry.split for entry in part.entries)
        captions: Counter = Counter()
        for entry in part.entries:
            captions[entry.split] += len(entry.captions)
        found[part.suffix] = {split: (clips[split], captions[split]) for split in clips}
        ids = [entry.video_id for entry in part.entries]
        assert len(set(ids)) == len(ids)
        assert not part.report["duplicated"] + part.report["conflicting"]
        assert not part.report["in_two_splits"] + part.report["differences"]
    assert found == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("msrvtt-9k", "msrvtt-1k-a"), ("msvd", "msvd"), ("activitynet", "activitynet"),
     ("didemo", "didemo")],
)  # fmt: skip
def test_test_splits_are_what_the_protocols_check(name: str, protocol: str, shared: Path) -> None:
    [part] = official(name, shared)
    PROTOCOLS[protocol].check([entry for entry in part.entries if entry.split == "test"])


@pytest.mark.parametrize(
    ("name", "classes", "spelled"),
    [("kinetics400", 400, "air drumming"), ("ucf101", 101, "ApplyEyeMakeup"),
     ("hmdb51", 51, "brush hair"), ("ssv2", 174, "Bending something until it breaks")],
)  # fmt: skip
def test_classes_are_spelled_as_in_the_label_file(
    name: str, classes: int, spelled: str, shared: Path
) -> None:
    labels = {entry.label for entry in official(name, shared)[0].entries}
    assert len(labels) == classes
    assert spelled in labels
    listed = (shared / "data" / "annotations" / "labels" / LABELS[name]).read_text()
    lines = listed.splitlines()
    assert labels <= {line.split(",", 1)[-1] if name != "ssv2" else line for line in lines}


def test_hmdbs_numbers_are_another_order_than_its_label_file(shared: Path) -> None:
    """20 is kick in the lists and kick ball in the label file: the folder decides."""
    [part] = official("hmdb51", shared)
    for entry in part.entries:
        assert entry.video_id.split("/")[0].replace("_", " ") == entry.label
    assert any("20 is kick in the list and kick ball there" in n for n in part.report["notes"])


def test_what_is_not_there_is_said(shared: Path) -> None:
    [part] = official("msrvtt-9k", shared)
    assert "there is no MSRVTT_data.json" in part.report["notes"][0]
    [part] = official("activitynet", shared)
    assert part.report["notes"] == ["train is left out: there is no train.json"]


def test_the_five_queries_of_1k_a_that_cannot_be_told_apart(shared: Path) -> None:
    captions = official("msrvtt-9k", shared)[0].report["captions"]
    assert (captions["tested"], captions["distinct"]) == (1_000, 995)
    assert len(captions["same"]) == 6  # the five, and one that differs by an article
    assert ["video9346", "video9812", "a woman giving a photoshop tutorial"] in captions["same"]


def test_parts_of_one_video_in_two_splits_are_found(shared: Path) -> None:
    [source] = official("msvd", shared)[0].report["leaks"]["sources"]
    assert source.startswith("bQJQGoJF7_k: train bQJQGoJF7_k_109_115")
    assert source.endswith("val bQJQGoJF7_k_162_169")


def copied(name: str, shared: Path, target: Path) -> Path:
    source = shared / "data" / "annotations" / FOLDERS.get(name, name)
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    return target


@pytest.mark.parametrize(
    ("name", "file", "line", "becomes", "message"),
    [
        ("msrvtt-9k", "MSRVTT_train.9k.csv", 17, "vide", "line 17: 'vide'; expected an id"),
        ("msrvtt-9k", "MSRVTT_train.9k.csv", 17, "video10000", "line 17: 'video10000'; expected"),
        ("msrvtt-9k", "MSRVTT_JSFUSION_test.csv", 30, "ret28,msr1", "line 30: 2 columns, expect"),
        ("msvd", "test_list.txt", 5, "abc_1_2", "line 5: abc_1_2 has no captions in captions_msv"),
        ("kinetics400", "kinetics_video_val_se320.txt", 9, "0wR5jVB-WPk.mp4 400", "line 9: the cl"),
        ("kinetics400", "kinetics_video_val_se320.txt", 9, "0wR5jVB-W.mp4 4", "line 9: '0wR5jVB-W"),
        ("ucf101", "train_rgb_split_1.txt", 40, "ApplyEyeMakeup/v_Apply", "line 40: 'ApplyEyeMake"),
        ("ucf101", "train_rgb_split_1.txt", 9, '"Archery/v_Archery_g01_c01 9 2', "line 9: '\"Arch"),
        ("hmdb51", "val_rgb_split_1.txt", 3, "brush_hair/a_brush_hair_x 7 5", "line 3: the class"),
        ("hmdb51", "val_rgb_split_1.txt", 3, '"brush_hair/a_brush_hair_x 7 5', "line 3: '\"brus"),
        ("ssv2", "validation.txt", 100, "74225.webm", "line 100: '74225.webm'; expected a name"),
    ],
)
def test_a_damaged_line_is_named(
    name: str, file: str, line: int, becomes: str, message: str, shared: Path, tmp_path: Path
) -> None:
    folder = copied(name, shared, tmp_path / "a")
    lines = (folder / file).read_text().split("\n")
    lines[line - 1] = becomes
    (folder / file).write_text("\n".join(lines))
    with pytest.raises(AnnotationError, match=re.escape(f"{folder / file}, {message}")):
        prepared(name, shared, folder)


@pytest.mark.parametrize("name", ["activitynet", "didemo", "hmdb51", "ssv2"])
def test_a_truncated_file_is_refused(name: str, shared: Path, tmp_path: Path) -> None:
    numbers = random.Random(0)
    for attempt in range(3):
        folder = copied(name, shared, tmp_path / str(attempt))
        path = numbers.choice(sorted(folder.iterdir()))
        data = path.read_bytes()
        path.write_bytes(data[: numbers.randrange(1, len(data) - 10)])
        with pytest.raises(AnnotationError, match=r"line \d+|published are"):
            prepared(name, shared, folder)


def test_a_lost_line_is_refused_and_can_be_allowed(shared: Path, tmp_path: Path) -> None:
    folder = copied("ssv2", shared, tmp_path / "a")
    path = folder / "validation.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(
        AnnotationError, match=r"24,776 clips in test \(validation\.txt\), published are"
    ):
        prepared("ssv2", shared, folder)
    [part] = prepared("ssv2", shared, folder, any_counts=True)
    assert part.report["differences"] == [
        "24,776 clips in test (validation.txt), published are 24,777"
    ]
