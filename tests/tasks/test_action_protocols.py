"""Recognition's protocols, on the official lists and against the published draws."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from videoclip.manifest import Clip
from videoclip.tasks.action_protocols import (
    PROTOCOLS,
    action_protocol,
    base_classes,
    check_published,
    class_words,
    few_shot,
    half_of,
    harmonic_mean,
    parts,
    spelled,
)
from videoclip.tasks.protocols import ProtocolError


def made(counts: dict[str, int], split: str | None = "test") -> list[Clip]:
    return [
        Clip(f"{split} {label} {number}", Path(f"{label}{number}.mp4"), label=label, split=split)
        for label, count in counts.items()
        for number in range(count)
    ]


def labels_of(shared: Path, name: str) -> list[str]:
    return list(pd.read_csv(shared / f"data/annotations/labels/{name}_labels.csv")["name"])


def listed(shared: Path, data: str, classes: list[str], number: int = 1) -> list[Clip]:
    """The manifest of an official split; only the first comes with its training list here."""
    clips = []
    for split, part in (("train", "train"), ("test", "val")):
        path = shared / f"data/annotations/{data}/{part}_rgb_split_{number}.txt"
        for line in path.read_text().splitlines() if path.is_file() else ():
            name, _, label = line.split()
            clips.append(Clip(name, Path(name), label=classes[int(label)], split=split))
    return clips


def test_a_protocol_has_a_name() -> None:
    names = [protocol.name for protocol in PROTOCOLS]
    assert {"1x1", "3x1", "4x3", "10x3"} < set(names)
    assert [action_protocol(name).views for name in ("1x1", "4x3", "zs-full")] == [
        "1x1", "4x3", "1x1",
    ]  # fmt: skip
    assert [action_protocol(f"fewshot-{k}").shots for k in (2, 4, 8, 16)] == [2, 4, 8, 16]
    with pytest.raises(ProtocolError, match="did you mean 'zs-splits3'"):
        action_protocol("zs_splits")


def test_the_test_split_or_everything_where_there_is_none() -> None:
    clips = [*made({"a": 2, "b": 1}), *made({"a": 4, "b": 4}, "train")]
    [part] = parts(action_protocol("1x1"), [clips], ["a", "b"])
    assert part.clips == tuple(clips[:3])
    assert part.classes == ("a", "b")
    [part] = parts(action_protocol("1x1"), [clips], ["a", "b"], split="train")
    assert len(part.clips) == 8
    [part] = parts(action_protocol("1x1"), [made({"a": 2}, None)], ["a"])
    assert len(part.clips) == 2
    with pytest.raises(ProtocolError, match=r"no clip is of split 'val', there are test, train"):
        parts(action_protocol("1x1"), [clips], ["a", "b"], split="val")
    with pytest.raises(ProtocolError, match=r"1x1 takes 1 manifest, .* and got 2"):
        parts(action_protocol("1x1"), [clips, clips], ["a", "b"])
    with pytest.raises(ProtocolError, match="1x1 reads no lists of classes"):
        parts(action_protocol("1x1"), [clips], ["a", "b"], lists=[["a"]])


def test_the_three_official_splits_of_ucf101(shared: Path) -> None:
    classes = labels_of(shared, "ucf_101")
    manifests = [listed(shared, "ucf101", classes, number) for number in (1, 2, 3)]
    protocol = action_protocol("zs-splits3")
    found = parts(protocol, manifests, classes)
    assert [len(part.clips) for part in found] == [3783, 3734, 3696]
    line = check_published("ucf101", protocol, manifests, classes, found)
    assert "101 classes" in line
    assert "3,696 test clips of split 3" in line
    with pytest.raises(ProtocolError, match=r"two of the manifests have the same test clips"):
        parts(protocol, manifests[:1] * 3, classes)
    short = [manifests[0], manifests[1][:-2], manifests[2]]
    fewer = parts(protocol, short, classes)
    with pytest.raises(ProtocolError, match=r"3732 test clips of split 2, published are 3734"):
        check_published("ucf101", protocol, short, classes, fewer)
    with pytest.raises(ProtocolError, match=r"nothing is known .*'ucf'; did you mean 'ucf101'"):
        check_published("ucf", protocol, manifests, classes, found)


def test_half_the_classes_are_drawn_as_published(shared: Path) -> None:
    classes = labels_of(shared, "hmdb_51")
    for seed in range(10):
        np.random.seed(seed)
        drawn = np.random.permutation(51)[:25]
        assert half_of(classes, seed) == tuple(classes[place] for place in np.unique(drawn))
    clips = listed(shared, "hmdb51", classes)
    found = parts(action_protocol("zs-half10"), [clips], classes)
    assert len(found) == 10
    assert len({part.classes for part in found}) == 10
    for part in found:
        assert {clip.label for clip in part.clips} == set(part.classes)
        assert len(part.clips) == sum(clip.label in part.classes for clip in clips)
    [whole] = parts(action_protocol("zs-full"), [clips, clips], classes)
    assert len(whole.clips) == len(clips) == 3570 + 1530
    with pytest.raises(ProtocolError, match=r"5100 videos, published are 6766"):
        check_published("hmdb51", action_protocol("zs-full"), [clips], classes, [whole])


def test_manifests_that_disagree_about_a_clip_are_refused() -> None:
    one = made({"a": 1})
    other = [one[0]._replace(label="b")]
    with pytest.raises(ProtocolError, match=r"disagree about test a 0: a0.mp4 is a, a0.mp4 is b"):
        parts(action_protocol("zs-full"), [one, other], ["a", "b"])


def test_base_and_novel_classes_are_the_published_ones(shared: Path) -> None:
    # The novel_val.txt of ViFi-CLIP: of HMDB51 classes 0 to 24; of UCF101 they end as below.
    hmdb = labels_of(shared, "hmdb_51")
    clips = listed(shared, "hmdb51", hmdb)
    assert base_classes(hmdb, [clip for clip in clips if clip.split == "train"]) == tuple(hmdb[25:])
    base, novel = parts(action_protocol("base-to-novel"), [clips], hmdb)
    assert (base.name, novel.name) == ("base", "novel")
    assert novel.classes == tuple(hmdb[:25])
    assert len(base.clips) == 26 * 30
    ucf = labels_of(shared, "ucf_101")
    clips = [clip for clip in listed(shared, "ucf101", ucf) if clip.split == "train"]
    found = base_classes(ucf, clips)
    times = Counter(clip.label for clip in clips)
    assert len(found) == 51
    novel = [name for name in ucf if name not in found]
    assert min(times[name] for name in found) >= max(times[name] for name in novel)
    assert novel[-6:] == [
        "ThrowDiscus", "TrampolineJumping", "UnevenBars", "VolleyballSpiking", "WalkingWithDog",
        "YoYo",
    ]  # fmt: skip


def test_base_to_novel_says_what_is_missing() -> None:
    protocol, test = action_protocol("base-to-novel"), made({"a": 2, "b": 2, "c": 2})
    base, novel = parts(protocol, [test], "abc", lists=[["c"], ["a", "b"]])
    assert (base.classes, novel.classes) == (("c",), ("a", "b"))
    assert len(novel.clips) == 4
    with pytest.raises(ProtocolError, match="has no clips of split 'train'"):
        parts(protocol, [test], "abc")
    with pytest.raises(ProtocolError, match="share none, base and novel; 2 are given"):
        parts(protocol, [test], "abc", lists=[["c"], ["c", "b"]])
    with pytest.raises(ProtocolError, match=r"1 of the 2 classes of novel have no clip, such as B"):
        parts(protocol, [test], "abc", lists=[["c"], ["a", "B"]])


def test_three_lists_of_kinetics_600(shared: Path) -> None:
    classes = labels_of(shared, "kinetics_600")
    new = [name for name in classes if name not in set(labels_of(shared, "kinetics_400"))]
    lists = [new[start : start + 160] for start in (0, 20, 40)]
    clips = made(dict.fromkeys(classes, 2))
    protocol = action_protocol("zs-k600-160x3")
    found = parts(protocol, [clips], classes, lists=lists)
    assert [len(part.clips) for part in found] == [320, 320, 320]
    assert [part.classes for part in found] == [tuple(names) for names in lists]
    with pytest.raises(ProtocolError, match=r"given are \[160, 159\]"):
        parts(protocol, [clips], classes, lists=[lists[0], lists[1][1:]])
    wrong = [["Zumba", *lists[0][1:]], *lists[1:]]
    with pytest.raises(ProtocolError, match=r"1 of the 160 classes of list 1 have no clip.*Zumba"):
        parts(protocol, [clips], classes, lists=wrong)


def test_a_few_shots_are_exactly_so_many_of_every_class() -> None:
    clips = made({"a": 20, "b": 17, "c": 16}, "train")
    drawn = {k: few_shot(clips, k, 0) for k in (2, 4, 8, 16)}
    for k, found in drawn.items():
        assert Counter(clip.label for clip in found) == {"a": k, "b": k, "c": k}
        assert found == [clip for clip in clips if clip in found]  # in the order of the manifest
    assert set(drawn[2]) < set(drawn[4]) < set(drawn[8]) < set(drawn[16])
    assert set(few_shot(clips[::-1], 4, 0)) == set(drawn[4])
    assert set(few_shot(clips, 4, 1)) != set(drawn[4])
    with pytest.raises(ProtocolError, match=r"2 of 3 classes have fewer than 18 .*b 17, c 16"):
        few_shot(clips, 18, 0)
    with pytest.raises(ProtocolError, match="0 shots"):
        few_shot(clips, 0, 0)


def test_the_harmonic_mean() -> None:
    assert harmonic_mean(60, 40) == pytest.approx(48)
    assert harmonic_mean(0, 0) == 0


def test_names_in_words(shared: Path) -> None:
    for name, words in {
        "ApplyEyeMakeup": "apply eye makeup", "brush_hair": "brush hair", "YoYo": "yo yo",
        "TaiChi": "tai chi", "HandstandPushups": "handstand pushups", "abseiling": "abseiling",
        "playing XBox": "playing xbox", "DVDPlayer": "dvd player",
        "Putting [something] into [something]": "putting something into something",
    }.items():  # fmt: skip
        assert class_words(name) == words
    for name in ("ucf_101", "hmdb_51", "kinetics_400", "kinetics_600"):
        classes = labels_of(shared, name)
        words = spelled(classes, "words")
        assert spelled(classes, "reference") == tuple(classes)
        assert len(set(words)) == len(classes)
        assert all(word == word.lower().strip() and "_" not in word for word in words)


def test_names_from_a_file(tmp_path: Path) -> None:
    table, lines = tmp_path / "names.json", tmp_path / "names.txt"
    table.write_text(json.dumps({"a": "the first", "b": "the second", "z": "another"}))
    lines.write_text("the first\n\nthe second\n")
    for path in (table, lines):
        assert spelled(["a", "b"], str(path)) == ("the first", "the second")
    assert spelled(["b", "a"], str(table)) == ("the second", "the first")
    with pytest.raises(ProtocolError, match=r"names.json has no name for 1 of 2 classes: c"):
        spelled(["a", "c"], str(table))
    with pytest.raises(ProtocolError, match=r"names.txt has 2 names for 3 classes"):
        spelled(["a", "b", "c"], str(lines))
    with pytest.raises(ProtocolError, match=r"1 of the names by words .*such as 'jump rope': no"):
        spelled(["JumpRope", "jump_rope", "YoYo"], "words")
    with pytest.raises(ProtocolError, match="'wrods' are neither reference nor words nor a file"):
        spelled(["a"], "wrods")
