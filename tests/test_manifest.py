"""The manifest: round trips, faults named by row with the fix, and splits that can be repeated."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from videoclip.errors import ManifestError
from videoclip.manifest import (
    Clip,
    manifest_hash,
    read_manifest,
    require_captions,
    sources,
    with_splits,
    write_manifest,
)

ROW = {"video_id": "a", "path": "a.mp4", "captions": ["a cat"]}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def clips_of(folder: Path) -> list[Clip]:
    return [
        Clip("a", folder / "videos/a.mp4", ("a cat", 'été 中 \u2028 \x85 \x0b "x"\n y'), "jump"),
        Clip("b", folder.parent / "b.mp4", (), None, "train", 1.5, None, "fast"),
        Clip("c", folder / "c.mp4", ("one",), None, "test", None, 3.0),
        Clip("d", folder / "c.mp4", ("two",), None, "test", 3.0, 4.25),
    ]


def faults(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value).split("\n")
    assert str(path) in message[0]
    return message[1:] or message


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_manifest(path, clips_of(tmp_path))
    assert read_manifest(path) == clips_of(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    first = next(iter(pd.read_parquet(path)["path"])) if suffix == ".parquet" else None
    assert first in (None, "videos/a.mp4")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    clips = [Clip("a", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")))]
    write_manifest(tmp_path / "m.jsonl", clips)
    assert read_manifest(tmp_path / "m.jsonl") == clips
    with pytest.raises(ManifestError, match=r"is no name in UTF-8, which Parquet needs; write"):
        write_manifest(tmp_path / "m.parquet", clips)


def test_only_the_required_columns(tmp_path: Path) -> None:
    bare = {"video_id": "a", "path": "a.mp4"}
    assert read_manifest(lines(tmp_path / "m.jsonl", bare)) == [Clip("a", tmp_path / "a.mp4")]
    pd.DataFrame([bare]).to_parquet(tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == [Clip("a", tmp_path / "a.mp4")]


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    absolute = ROW | {"video_id": "b", "path": "/videos/b.mp4"}
    lines(tmp_path / "data/m.jsonl", ROW, absolute)
    monkeypatch.chdir(tmp_path)
    places = [clip.path for clip in read_manifest(Path("data/m.jsonl"))]
    assert places == [tmp_path / "data/a.mp4", Path("/videos/b.mp4")]
    # A path that is relative to where the program runs is not relative to the manifest.
    write_manifest(Path("data/n.jsonl"), [Clip("a", Path("videos/a.mp4"))])
    assert read_manifest(Path("data/n.jsonl"))[0].path == tmp_path / "videos/a.mp4"


def test_one_caption_may_stand_without_a_list(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", ROW | {"captions": "a dog"})
    assert read_manifest(path)[0].captions == ("a dog",)
    pd.DataFrame([ROW | {"captions": "a dog"}]).to_parquet(tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet")[0].captions == ("a dog",)


def test_blank_lines_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    text = "\ufeff" + json.dumps(ROW) + "\r\n\r\n  \n" + json.dumps(ROW | {"video_id": "b"})
    path.write_bytes(text.encode())
    assert [clip.video_id for clip in read_manifest(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": None}, "video_id is None; expected text"),
        ({"video_id": 7}, "video_id is 7; expected text"),
        ({"path": ""}, "path is ''; expected text"),
        ({"path": "a\0b.mp4"}, "path is 'a\\x00b.mp4'; no file can be called so"),
        ({"path": "\ud800.mp4"}, "path is '\\ud800.mp4'; no file can be called so"),
        ({"label": 3}, "label is 3; expected text"),
        ({"group": ["x"]}, "group is ['x']; expected text"),
        ({"split": "dev"}, "split is 'dev'; known: train, val, test"),
        ({"split": ["test"]}, "split is ['test']; expected text"),
        ({"start": "0:10"}, "start is '0:10'; expected seconds"),
        ({"start": True}, "start is True; expected seconds"),
        ({"end": [1]}, "end is [1]; expected seconds"),
        ({"end": {}}, "end is {}; expected seconds"),
        ({"end": float("inf")}, "end is inf; expected seconds"),
        ({"start": 5, "end": 5}, "starts at 5.0 s and ends at 5.0 s; it must end later"),
        ({"captions": 5}, "captions are 5; expected"),
        ({"captions": {"a": 1}}, "captions are {'a': 1}; expected"),
        ({"captions": ["a", None]}, "captions are ['a', None]; expected"),
        ({"captions": ["a", "  "]}, "captions are ['a', '  ']; expected"),
        ({"caption": "x"}, "unknown column 'caption'; did you mean 'captions'?"),
        ({"fps": 25}, "unknown column 'fps'; known: video_id, path, captions"),
    ],
)
def test_faults_of_a_row(tmp_path: Path, change: dict[str, object], words: str) -> None:
    good = ROW | {"video_id": "good"}
    found = faults(lines(tmp_path / "m.jsonl", good, ROW | change, ROW | {"video_id": "b"}))
    assert len(found) == 1
    assert found[0].startswith("  row 2: ")
    assert words in found[0]


def test_both_rows_of_a_repeated_id_are_named(tmp_path: Path) -> None:
    other = ROW | {"video_id": "b"}
    found = faults(lines(tmp_path / "m.jsonl", other, ROW, ROW | {"path": "b.mp4"}, other))
    assert found == [
        "  row 3: video_id 'a' stands in row 2 already",
        "  row 4: video_id 'b' stands in row 1 already",
    ]


def test_lines_that_are_not_objects(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(ROW) + '\n{"video_id": \n[1, 2]\n')
    found = faults(path)
    assert len(found) == 2
    assert found[0].startswith("  line 2 is not JSON: ")
    assert found[1] == "  line 3 is list, expected an object"


def test_many_faults_are_counted(tmp_path: Path) -> None:
    rows = [ROW | {"video_id": str(n), "end": "x"} for n in range(25)]
    found = faults(lines(tmp_path / "m.jsonl", *rows))
    assert len(found) == 21
    assert found[-1] == "  and 5 more"
    (tmp_path / "n.jsonl").write_text("{\n" * 33)
    found = faults(tmp_path / "n.jsonl")
    assert len(found) == 21
    assert found[-1] == "  and 13 more"


def test_files_that_are_no_manifests(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "video.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "text.parquet").write_text("text")
    pd.DataFrame({"video_id": [], "path": []}).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "m.csv").touch()
    for name, words in (
        ("nothing.jsonl", "there is no manifest"),
        ("empty.jsonl", "is empty"),
        ("none.parquet", "is empty"),
        ("video.jsonl", "is not text in UTF-8"),
        ("text.parquet", "is not a Parquet file"),
        ("m.csv", "is .jsonl or .parquet, not '.csv'"),
    ):
        assert words in faults(tmp_path / name)[0]
    with pytest.raises(ManifestError, match=r"\.jsonl or \.parquet, not '\.txt'"):
        write_manifest(tmp_path / "m.txt", clips_of(tmp_path))


def test_hash_is_of_the_rows(tmp_path: Path) -> None:
    rows = clips_of(tmp_path)
    write_manifest(tmp_path / "m.jsonl", rows)
    write_manifest(tmp_path / "m.parquet", rows)
    key = manifest_hash(tmp_path / "m.jsonl")
    assert len(key) == 64
    assert manifest_hash(tmp_path / "m.parquet") == key
    (tmp_path / "else").mkdir()
    (tmp_path / "m.jsonl").rename(tmp_path / "else/renamed.jsonl")
    assert manifest_hash(tmp_path / "else/renamed.jsonl") == key
    for other in (
        rows[::-1],
        rows[:-1],
        [rows[0]._replace(captions=("a cat",)), *rows[1:]],
        [*rows[:3], rows[3]._replace(end=4.5)],
    ):
        write_manifest(tmp_path / "n.jsonl", other)
        assert manifest_hash(tmp_path / "n.jsonl") != key


def test_hash_does_not_tell_whole_seconds_apart(tmp_path: Path) -> None:
    lines(tmp_path / "m.jsonl", ROW | {"start": 1, "end": 2})
    pd.DataFrame([ROW | {"start": 1.0, "end": 2.0}]).to_parquet(tmp_path / "m.parquet")
    assert manifest_hash(tmp_path / "m.jsonl") == manifest_hash(tmp_path / "m.parquet")


def test_captions_are_required(tmp_path: Path) -> None:
    rows = clips_of(tmp_path)
    require_captions([rows[0], *rows[2:]], tmp_path)
    with pytest.raises(ManifestError, match="1 of 4 clips have no caption, among them b"):
        require_captions(rows, tmp_path)


def dealt(count: int, **fields: object) -> list[Clip]:
    return [Clip(f"v{n}", Path(f"{n}.mp4"), **fields) for n in range(count)]


def test_splits_are_dealt_by_the_id_alone() -> None:
    rows = dealt(100)
    splits, sentence = with_splits(rows, Path("m"))
    assert {name: len(clips) for name, clips in splits.items()} == {
        "train": 70,
        "val": 15,
        "test": 15,
    }
    assert sentence is not None
    assert "70 train, 15 val, 15 test" in sentence
    ids = {name: [clip.video_id for clip in clips] for name, clips in splits.items()}
    everybody = [name for chosen in ids.values() for name in chosen]
    assert sorted(everybody) == sorted(clip.video_id for clip in rows)
    assert ids["val"][:3] != ["v0", "v1", "v2"]
    for chosen in ids.values():
        assert chosen == sorted(chosen, key=lambda name: int(name[1:]))  # the manifest's order
    again, _ = with_splits(rows[::-1], Path("other"))
    for name, chosen in ids.items():
        assert {clip.video_id for clip in again[name]} == set(chosen)


def test_three_clips_are_enough_and_two_are_not() -> None:
    splits, _ = with_splits(dealt(3), Path("m"))
    assert [len(splits[name]) for name in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(
        ManifestError, match="only 2 sources of clips; train, val, test need at least"
    ):
        with_splits(dealt(2), Path("m"))


def test_given_splits_are_kept() -> None:
    rows = [clip._replace(split=("train", "val", "test")[n % 3]) for n, clip in enumerate(dealt(9))]
    splits, sentence = with_splits(rows, Path("m"))
    assert sentence is None
    assert splits == {"train": rows[::3], "val": rows[1::3], "test": rows[2::3]}


@pytest.mark.parametrize(("train", "val"), [(2, 1), (6, 1), (40, 6)])
def test_val_comes_from_train(train: int, val: int) -> None:
    rows = dealt(train, split="train")
    test = [Clip("t1", Path("t.mp4"), split="test"), Clip("t2", Path("t.mp4"), split="test")]
    splits, sentence = with_splits([*rows, *test], Path("m"))
    assert splits["test"] == test
    assert len(splits["val"]) == val
    assert sorted([*splits["train"], *splits["val"]]) == sorted(rows)
    assert sentence is not None
    assert f"{val} of {train} training clips" in sentence


def test_splits_that_cannot_be_used() -> None:
    train, test = dealt(4, split="train"), [Clip("t", Path("t.mp4"), split="test")]
    with pytest.raises(ManifestError, match=r"has the splits train; val and test are needed"):
        with_splits(train, Path("m"))
    with pytest.raises(ManifestError, match=r"has the splits test; train and val are needed"):
        with_splits(test, Path("m"))
    with pytest.raises(ManifestError, match=r"has the splits test, train; val is needed"):
        with_splits([*train[:1], *test], Path("m"))
    nameless = [Clip("x", Path("x")), Clip("y", Path("y"))]
    with pytest.raises(ManifestError, match=r"2 of 7 clips have no split, among them x, y"):
        with_splits([*train, *test, *nameless], Path("m"))
    splits, sentence = with_splits(test, Path("m"), needed=["test"])
    assert splits["test"] == test
    assert sentence is None


def cut(count: int, of: int, **more) -> list[Clip]:
    """Clips that were cut from `of` films, in turn."""
    return [Clip(f"v{i}", Path(f"/x/film{i % of}.mp4"), ("a",), **more) for i in range(count)]


@pytest.mark.parametrize("named", [False, True])
def test_clips_of_one_source_are_dealt_into_one_split(named: bool) -> None:
    clips = cut(60, of=20)
    if named:  # files of their own, which were cut from one thing
        clips = [c._replace(source=c.path.name, path=Path(f"/x/{c.video_id}.mp4")) for c in clips]
    dealt, note = with_splits(clips, Path("m"))
    assert "sources were dealt out" in note
    assert sorted(c.video_id for rows in dealt.values() for c in rows) == sorted(
        c.video_id for c in clips
    )
    homes = {split: {sources(clips)[clips.index(c)] for c in rows} for split, rows in dealt.items()}
    assert not homes["train"] & homes["val"]
    assert not homes["train"] & homes["test"]
    assert not homes["val"] & homes["test"]
    assert [len(dealt[s]) for s in ("val", "test")] == [9, 9]
    elsewhere = [c._replace(path=Path("/other") / c.path.name) for c in clips]
    again, _ = with_splits(elsewhere, Path("m"))
    assert [c.video_id for c in again["test"]] == [c.video_id for c in dealt["test"]]


def test_sources_become_val_whole_and_leave_something_to_train_on() -> None:
    clips = [*cut(12, of=3, split="train"), Clip("t", Path("/x/t.mp4"), ("a",), split="test")]
    dealt, note = with_splits(clips, Path("m"))
    assert {c.path.name for c in dealt["val"]}.isdisjoint(c.path.name for c in dealt["train"])
    assert (len(dealt["val"]), len(dealt["train"])) == (4, 8)
    assert "4 of 12 training clips became it" in note
    three, _ = with_splits(cut(30, of=3), Path("m"))
    assert [len(three[split]) for split in ("train", "val", "test")] == [10, 10, 10]
    with pytest.raises(ManifestError, match="only 2 sources of clips"):
        with_splits(cut(30, of=2), Path("m"))
