"""Which file of a folder belongs to which entry, whatever it is called."""

from pathlib import Path

import pytest

from data_prep.entries import Entry, settle
from data_prep.videos import find_videos, stem_of


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "on_disk"),
    [
        (("video1",), "video1.mp4"),
        (("video1",), "deep/er/video1.webm"),
        (("video1",), "video1.MP4"),
        (("run/a",), "run/a.avi"),
        (("run/a", "a"), "elsewhere/a.avi"),
        (("a.mov",), "a.mp4"),
        (("a.mov",), "a.mov.mp4"),
        (("M_00.00.51.926-00.00.54.129",), "M_00.00.51.926-00.00.54.129.avi"),
        (("run/abcdefghijk_000010_000020", "abcdefghijk"), "abcdefghijk.mp4"),
        (("abcdefghijk.mp4",), "run/abcdefghijk_000010_000020.mp4"),
        (("name.",), "name.mov"),
        (("no ending",), "no ending"),
    ],
)
def test_names_are_found(files: tuple[str, ...], on_disk: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, on_disk, "other.mp4")
    found = find_videos(folder, [Entry("x", files, None)])
    assert found.paths == [folder / on_disk]
    assert (found.missing, found.ambiguous) == ([], [])
    assert found.extra == [folder / "other.mp4"]


def test_the_folder_that_the_annotations_name_comes_first(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "run/a.avi", "jump/a.avi")
    found = find_videos(folder, [Entry("x", ("jump/a",), None), Entry("y", ("run/a",), None)])
    assert found.paths == [folder / "jump/a.avi", folder / "run/a.avi"]
    assert (found.extra, found.ambiguous) == ([], [])


def test_of_several_files_one_is_taken_and_all_are_listed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.webm", "a.mp4", "a.txt", ".a.mkv")
    found = find_videos(folder, [Entry("x", ("a",), None)])
    assert found.paths == [folder / "a.mp4"]
    assert found.ambiguous == ["x: a.mp4, a.webm; a.mp4 is taken"]
    assert found.extra == []


def test_a_missing_file_is_expected_inside_the_folder(tmp_path: Path) -> None:
    entries = [Entry("x", (name,), None) for name in ("a", "b.avi", "../../etc/c", "/etc/d")]
    found = find_videos(tmp_path, entries)
    names = ("a.mp4", "b.avi", "etc/c.mp4", "etc/d.mp4")
    assert found.paths == [tmp_path / name for name in names]
    assert found.missing == [0, 1, 2, 3]


def test_a_link_that_leads_back_up_ends(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "run/a.mp4")
    (folder / "run" / "up").symlink_to(folder)
    assert find_videos(folder, [Entry("x", ("a",), None)]).paths == [folder / "run/a.mp4"]


def test_the_ending_is_that_of_a_video() -> None:
    assert [stem_of(n) for n in ("a.mp4", "a.b.MOV", "00.00.54.129", "a.", "a")] == [
        "a", "a.b", "00.00.54.129", "a", "a",
    ]  # fmt: skip


def test_clips_that_are_named_twice() -> None:
    first = Entry("x", ("x",), "train", ("a",), label="run")
    settled = settle(
        [
            first,
            first,
            first._replace(label="jump"),
            first._replace(captions=("a", "b")),
            Entry("y", ("y",), "test"),
            Entry("y", ("y",), "train"),
        ]
    )
    assert settled.entries == [first._replace(captions=("a", "b")), Entry("y", ("y",), "test")]
    assert settled.duplicated == ["x"]
    assert settled.conflicting == [
        "x: label 'run' and 'jump'; the first is kept", "x: described twice; joined",
    ]  # fmt: skip
    assert settled.in_two_splits == ["y: train and test; kept in test"]
