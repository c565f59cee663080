"""Comparisons on real clips with real captions: ragged, of many codecs, some of them broken."""

import csv
import json
from pathlib import Path

import pytest

from videoclip.__main__ import main
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip

SMALL = [
    "--pretrain.epochs", "1", "--finetune.epochs", "1", "--model.visual.layers", "1",
    "--model.text.layers", "1", "--seeds", "0",
]  # fmt: skip


def real(shared: Path, folder: str) -> list[dict]:
    with (shared / "data/MANIFEST.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["path"].startswith(f"{folder}/")]


def test_captioned_clips_of_ragged_length(shared: Path, tmp_path: Path) -> None:
    rows = [
        {
            "video_id": Path(row["path"]).stem,
            "path": str(shared / "data" / row["path"]),
            "captions": json.loads(row["captions"]),
        }
        for row in real(shared, "captioned")
    ]
    assert len(rows) == 13
    assert sum(len(row["captions"]) for row in rows) == 178
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "run"
    arguments = ["--data", str(manifest), "--frames", "48", "--output", str(output)]
    modules = ["--modules", "mean,transformer,shift"]
    assert main(["compare", "moving_shapes", *arguments, *modules, *SMALL]) == 0
    results = json.loads((output / "results.json").read_text())
    assert "9 train, 2 val, 2 test" in results["protocol"]["notes"][0]
    assert results["protocol"]["counts"] == "expected 2 = evaluated 2 = unique 2"
    assert "Only 2 test videos" in results["protocol"]["notes"][1]
    assert "**+" not in (output / "results.md").read_text()
    assert not results["unfinished"]
    [cell] = output.glob("cells/mean-*")
    status = main(
        ["evaluate", str(cell), "--data", str(manifest), "--split", "all", "--frames", "48",
         "--frame-order", "shuffled"]
    )  # fmt: skip
    assert status == 0
    record = json.loads((cell / "evaluation-shuffled" / "evaluation.json").read_text())
    assert record["counts"] == "expected 13 = evaluated 13 = unique 13"
    lengths = {len(store_read) for store_read in frames_of(rows, cell / "evaluation-shuffled")}
    assert len(lengths) > 1, "some of the clips are shorter than 48 frames"


def frames_of(rows: list[dict], output: Path) -> list:
    store = FrameStore(output / "frames", size=32, frames=48)
    clips = [Clip(row["video_id"], Path(row["path"]), tuple(row["captions"])) for row in rows]
    return [store.read(clip, 1) for clip in store.fill(clips, 1, "again")]


def test_odd_files_are_read_or_listed(shared: Path, tmp_path: Path) -> None:
    clips = [
        Clip(row["path"], shared / "data" / row["path"], ("something",))
        for row in real(shared, "odd")
    ]
    store = FrameStore(tmp_path, size=32, frames=8)
    readable = store.fill(clips, 1, "odd files")
    assert len(readable) + len(store.unreadable) == len(clips) == 28
    for name in ("result.webm", "sine_mono_s16.wav", "Mpeg4.mp4", "gif.gif", "corrupted.mp4"):
        assert f"odd/{name}" in store.unreadable
    for name in ("av1_video.mkv", "h264_10bits.mp4", "video_90.mov", "testsrc2_mpeg4.mp4"):
        assert f"odd/{name}" not in store.unreadable
    for clip in readable:
        frames = store.read(clip, 1)
        assert frames.shape[1:] == (3, 32, 32)
        assert 1 <= len(frames) <= 8


@pytest.mark.parametrize("name", ["video_90.mov", "fire2.mp4"])
def test_turned_videos_stand_upright(shared: Path, tmp_path: Path, name: str) -> None:
    from videoclip.frames.decode import open_video

    with open_video(shared / "data/odd" / name) as video:
        height, width = video.read([0]).shape[1:3]
    assert (height > width) == (name == "video_90.mov")
