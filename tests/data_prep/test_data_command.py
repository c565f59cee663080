"""`videoclip data` as a user runs it: manifests that the program reads, reports, clear errors."""

import functools
import hashlib
import json
import os
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from clips import pattern, write_video

from data_prep.entries import Download
from data_prep.prepare import DATA_SETS
from videoclip.__main__ import main
from videoclip.manifest import read_manifest
from videoclip.tasks.protocols import PROTOCOLS


def own_videos(folder: Path) -> Path:
    for number, name in enumerate(("train/run/a", "train/jump/b", "test/run/c")):
        path = folder / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, pattern(3 + number, height=32, width=48))
    shutil.copyfile(folder / "train/run/a.mp4", folder / "test/run/again.mp4")
    return folder


def test_class_folders_become_a_manifest(tmp_path: Path, capsys) -> None:
    folder = own_videos(tmp_path / "mine")
    output = tmp_path / "out"
    assert (
        main(["data", "prepare", "folders", "--videos", str(folder), "--output", str(output)]) == 0
    )
    clips = read_manifest(output / "folders.jsonl")
    assert {(c.video_id, c.label, c.split, c.path.is_file()) for c in clips} == {
        ("train/run/a", "run", "train", True), ("train/jump/b", "jump", "train", True),
        ("test/run/c", "run", "test", True), ("test/run/again", "run", "test", True),
    }  # fmt: skip
    report = json.loads((output / "folders.report.json").read_text())
    assert report["leaks"]["bytes"] == [
        [
            {"video_id": "test/run/again", "split": "test"},
            {"video_id": "train/run/a", "split": "train"},
        ]
    ]
    assert "groups of files with the same bytes: " in capsys.readouterr().out


def test_names_that_no_manifest_can_hold_are_left_out_and_said(tmp_path: Path, capsys) -> None:
    folder = own_videos(tmp_path / "mine")
    shutil.copyfile(folder / "train/run/a.mp4", os.fsencode(folder) + b"/train/run/\xff.mp4")
    shutil.copyfile(folder / "train/run/a.mp4", folder / "train/run/\x1b[31m.mp4")
    output = str(tmp_path / "out")
    assert main(["data", "prepare", "folders", "--videos", str(folder), "--output", output]) == 0
    assert len(read_manifest(tmp_path / "out" / "folders.jsonl")) == 5
    shown = capsys.readouterr().out
    assert r"train/run/\udcff.mp4' is left out: its name is not UTF-8" in shown
    assert "\x1b" not in shown
    json.loads((tmp_path / "out" / "folders.report.json").read_text())


def test_a_table_with_missing_and_extra_files(tmp_path: Path, capsys) -> None:
    folder = own_videos(tmp_path / "mine")
    table = tmp_path / "mine.csv"
    table.write_text(
        "path,caption,split\ntrain/run/a.mp4,a run,train\nnone.mp4,missing,train\n"
        f"{folder / 'test/run/c.mp4'},a test,test\n"
    )
    arguments = ["data", "prepare", "table", "--annotations", str(table), "--videos", str(folder)]
    assert main([*arguments, "--output", str(tmp_path), "--format", "parquet"]) == 0
    clips = read_manifest(tmp_path / "table.parquet")
    assert [clip.path.is_file() for clip in clips] == [True, False, True]
    report = json.loads((tmp_path / "table.report.json").read_text())
    assert report["missing"] == ["none.mp4"]
    assert sorted(Path(path).name for path in report["extra"]) == ["again.mp4", "b.mp4"]
    assert "1 clips without a file: none.mp4" in capsys.readouterr().out
    assert main([*arguments, "--output", str(tmp_path), "--exclude-missing"]) == 0
    assert [c.captions for c in read_manifest(tmp_path / "table.jsonl")] == [
        ("a run",),
        ("a test",),
    ]


def test_real_msvd_clips_are_found(shared: Path, tmp_path: Path) -> None:
    annotations = shared / "data" / "annotations" / "msvd"
    videos = shared / "data" / "captioned"
    arguments = ["data", "prepare", "msvd", "--annotations", str(annotations)]
    assert main([*arguments, "--videos", str(videos), "--output", str(tmp_path)]) == 0
    clips = read_manifest(tmp_path / "msvd.jsonl")
    there = {clip.path.name for clip in clips if clip.path.is_file()}
    assert there == {p.name for p in videos.iterdir() if p.stem in {c.video_id for c in clips}}
    assert len(there) == 4
    assert {clip.video_id.rsplit("_", 2)[0] == clip.source for clip in clips} == {True}
    test = [clip for clip in clips if clip.split == "test"]
    assert PROTOCOLS["msvd"].check(test).startswith("msvd: 670 videos, 27,763 captions")
    report = json.loads((tmp_path / "msvd.report.json").read_text())
    assert len(report["missing"]) + len(there) == len(clips) == 1970
    listed = annotations / "test_list.txt"
    assert report["annotations"][str(listed)] == hashlib.sha256(listed.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "msrvtt"], "no data set is named 'msrvtt'; did you mean 'msrvtt-"),
        (
            ["prepare", "msvd"],
            "msvd needs its annotation files: --annotations PATH with train_list",
        ),
        (["prepare", "msvd", "--annotations", "none"], "there is no folder of annotations none"),
        (["prepare", "folders"], "folders needs --videos FOLDER"),
        (
            ["prepare", "msvd", "--annotations", "."],
            "has no captions_msvd.json and no raw-captions",
        ),
        (["prepar"], "no task is named 'prepar'; did you mean 'prepare'?"),
        (["unpack", "none.zip", "x"], "there is no archive none.zip"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [] or not list(tmp_path.glob("*.json*"))


def test_a_kept_manifest_survives_annotations_that_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("path,caption\na.mp4,a\n")
    arguments = ["data", "prepare", "table", "--annotations", str(table), "--output", str(tmp_path)]
    assert main(arguments) == 0
    before = (tmp_path / "table.jsonl").read_bytes()
    table.write_text("path,caption\na.mp4\n")
    assert main(arguments) == 1
    assert (tmp_path / "table.jsonl").read_bytes() == before


def test_every_set_is_listed_with_license_and_page(capsys) -> None:
    assert main(["data", "sets"]) == 0
    shown = capsys.readouterr().out
    for data_set in DATA_SETS.values():
        assert f"{data_set.name}: {data_set.title}" in shown
        assert data_set.license in shown
        assert data_set.page in shown
    assert len(DATA_SETS) == 16


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_fetching_verifies_and_refuses_what_is_not_published(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.json").write_text("[]")
    handler = functools.partial(Quiet, directory=str(tmp_path / "there"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/a.json"
        checksum = hashlib.sha256(b"[]").hexdigest()
        fetchable = DATA_SETS["didemo"]._replace(
            downloads=(Download(address, "a.json", 2, checksum),)
        )
        monkeypatch.setitem(DATA_SETS, "didemo", fetchable)
        output = tmp_path / "here"
        assert main(["data", "fetch", "didemo", "--output", str(output)]) == 0
        assert (output / "a.json").read_text() == "[]"
        (output / "a.json").write_text("other")
        assert main(["data", "fetch", "didemo", "--output", str(output)]) == 1
        assert "a.json is not what was published" in capsys.readouterr().err
        (output / "a.json").unlink()
        (tmp_path / "there" / "a.json").write_text("{}")
        assert main(["data", "fetch", "didemo", "--output", str(output)]) == 1
        assert not (output / "a.json").exists()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert main(["data", "fetch", "lsmdc", "--output", str(output)]) == 0
    assert "nothing of it may be fetched without asking" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out"
    assert main(["data", "check", str(tmp_path), "--every", "--output", str(output)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"videoclip data: {str(output)!r}: Not a directory"


def test_unpacking(tmp_path: Path, capsys) -> None:
    (tmp_path / "a").write_bytes(b"123")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a", "in/a")
    assert main(["data", "unpack", str(tmp_path / "x.tar"), str(tmp_path / "out")]) == 0
    assert "1 files, 3 bytes" in capsys.readouterr().out
    assert (tmp_path / "out/in/a").read_bytes() == b"123"
