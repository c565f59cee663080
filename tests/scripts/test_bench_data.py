"""The benchmark of the data path, made small: what it writes, compares, refuses, times, prints."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import av
import clips as files
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("bench_data", ROOT / "scripts/bench_data.py")
bench = importlib.util.module_from_spec(SPEC)
sys.modules["bench_data"] = bench  # where its dataclass looks for its own names
SPEC.loader.exec_module(bench)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, *words: str) -> dict:
    bench.main(["--rounds", "2", "--json", str(folder / "bench.json"), *words])
    return json.loads((folder / "bench.json").read_text())


def test_the_command_prints_a_table_of_what_it_writes(tmp_path: Path, capsys) -> None:
    small = ["--sizes", "128", "96", "--gops", "5", "20", "--seconds", "1", "--frames", "2", "4"]
    found = run(tmp_path, *small, "--folder", str(tmp_path / "kept"))
    printed = capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert written == ["128x96, key frame every 20.mp4", "128x96, key frame every 5.mp4"]
    with av.open(str(tmp_path / "kept" / written[1])) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert len(keys) == 25
    assert sum(keys) >= 5
    assert printed.splitlines()[0] == found["conditions"]
    lines = [line for line in printed.splitlines() if line.startswith("| 128x96")]
    assert len(lines) == len(found["rows"]) == 4
    for line, row in zip(lines, found["rows"], strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[:2] == [row["file"], str(row["frames"])]
        assert {"exact", "scaled", "store", "packed", "full decode"} <= row["seconds"].keys()
        assert all(len(seconds) == 2 for seconds in row["seconds"].values())
        middle = np.median(row["seconds"]["exact"]) * 1000
        assert float(cells[2]) == pytest.approx(middle, rel=0.01)
        assert "our frames are those of a full decode" in row["note"]
    assert printed.splitlines()[-1].startswith("Times as much of the processor's time: ")


def test_files_of_ones_own_and_what_others_read_wrongly(tmp_path: Path, capsys) -> None:
    path = files.write_video(tmp_path / "a.avi", files.pattern(60), options={"g": "25", "bf": "3"})
    found = run(tmp_path, "--files", str(path), "--frames", "7", "0")
    row, same = found["rows"]
    assert (row["frames"], same["frames"]) == (7, 0)
    assert bench.first_of_seconds(path, 60).tolist() == [0, 25, 50]
    assert row["file"] == "a.avi"
    assert "decord gives other frames and is left out" in row["note"]
    assert "decord" not in row["seconds"]
    capsys.readouterr()


def test_nothing_is_timed_where_our_frames_differ(tmp_path: Path, monkeypatch) -> None:
    path = files.write_video(tmp_path / "a.mp4", files.pattern(20))
    right = bench.exact
    monkeypatch.setattr(bench, "exact", lambda *given: right(*given) // 2)
    with pytest.raises(SystemExit, match=r"a\.mp4: frames differ from those of a full decode"):
        run(tmp_path, "--files", str(path), "--frames", "3")
    assert not (tmp_path / "bench.json").exists()


def test_without_opencv_its_row_is_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    path = files.write_video(tmp_path / "a.mp4", files.pattern(20))
    found = run(tmp_path, "--files", str(path), "--frames", "3")
    assert "no OpenCV" in found["rows"][0]["note"]
    assert "CLIP4Clip's way" not in found["rows"][0]["seconds"]
    capsys.readouterr()


def test_clip4clips_way_has_a_normalized_picture_a_second(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = files.write_video(tmp_path / "a.mp4", files.pattern(60), options={"crf": "1"})
    video = bench.clip4clip(path, 1)
    assert (video.shape, video.dtype) == ((3, 3, 224, 224), np.float64)
    middle = files.decode(path)[[0, 25, 50], 48, 64] / 255
    wanted = (middle - np.array(bench.Pixels().mean)) / np.array(bench.Pixels().std)
    np.testing.assert_allclose(video[:, :, 112, 112], wanted, atol=0.05)


def test_the_scene_moves_and_is_noisy() -> None:
    frames = np.stack(list(bench.scene(96, 64, 3))).astype(float)
    assert frames.shape == (3, 64, 96, 3)
    assert frames.std(axis=(1, 2)).min() > 20
    assert np.abs(frames[0] - frames[1]).mean() > 2


def test_ways_take_turns_and_other_peoples_time_does_not_count() -> None:
    calls: list[str] = []
    ways = {(0, name): lambda name=name: calls.append(name) for name in "abc"}
    seconds = bench.interleaved(ways, 2, "")
    assert "".join(calls) == "abcbcacab"
    assert all(len(taken) == 2 for taken in seconds.values())
    asleep = bench.interleaved({(0, "sleeps"): lambda: time.sleep(0.2)}, 1, "")
    assert asleep[0, "sleeps"][0] < 0.1
    row = bench.Row("", 1, {"a": [9, 1, 2], "b": [6, 6, 6]}, "")
    assert row.ratio("a", "b") == 3
    assert row.ratio("a", "c") is None
