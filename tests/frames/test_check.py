"""Every file gets a class, whatever it is and whatever it does to the decoder; none is lost."""

import csv
import json
import os
import random
import shutil
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
from clips import cut, pattern, spoil, turn, write_sound, write_video
from PIL import Image

from videoclip.__main__ import main
from videoclip.errors import VideoclipError
from videoclip.frames import gate
from videoclip.frames.check import check, remarks, summary
from videoclip.frames.gate import Limits, probe
from videoclip.manifest import Clip, manifest_hash, read_manifest, write_manifest

LIMITS = Limits(timeout=20)
FAST_START = {"movflags": "+faststart"}


def clips_of(paths: list[Path]) -> list[Clip]:
    return [Clip(str(number), path) for number, path in enumerate(paths)]


def kind_of(path: Path, **limits) -> str:
    found = probe(path, LIMITS._replace(**limits))
    json.dumps(found)  # as it is sent
    return found["kind"]


def noisy(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Pictures that do not shrink to nothing, so that a cut or a spot hits one."""
    numbers = np.random.default_rng(0)
    low = numbers.integers(0, 255, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(low, np.ones((1, 8, 8, 1), dtype=np.uint8))


GOOD = {
    "h264.mp4": {},
    "fast.mp4": {"container_options": FAST_START},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "ts.ts": {},
    "flash.flv": {},
    "mjpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("full", [False, True])
def test_good_files_are_ok_also_when_all_is_decoded(name: str, full: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, noisy(60), **GOOD[name])
    found = probe(path, LIMITS._replace(full=full))
    assert (found["kind"], found["detail"]) == ("ok", "")
    assert (found["width"], found["height"], found["rotation"]) == (128, 96, 0)
    assert (found["variable_rate"], found["non_square"]) == (False, False)
    assert found["frames"] == 60
    assert not full or found["decoded"] == 60
    assert found["seconds"] is None or abs(found["seconds"] - 60 / 25) < 0.1


def test_turned_uneven_and_single_frames_are_ok_with_a_remark(tmp_path: Path) -> None:
    times = [number / 25 + (0.4 if number > 5 else 0) for number in range(20)]
    paths = [
        turn(write_video(tmp_path / "turned.mp4", pattern(12)), 90),
        write_video(tmp_path / "uneven.mp4", pattern(20), seconds=times),
        write_video(tmp_path / "single.mp4", pattern(1)),
        write_video(tmp_path / "deep.mp4", pattern(12), pixel_format="yuv420p10le"),
    ]
    rows = check(clips_of(paths), LIMITS, workers=1)
    assert [remarks(row) for row in rows] == [
        ["rotated"], ["variable rate"], ["one frame"], ["10 bit or more"],
    ]  # fmt: skip
    assert rows[0].found["rotation"] == 90
    assert summary(rows)["ok"] == 4


def magic_yuv(path: Path) -> Path:
    return write_video(path, pattern(5), codec="magicyuv", pixel_format="gbrp")


def test_what_is_no_usable_video_has_a_class(tmp_path: Path) -> None:
    video = write_video(tmp_path / "good.mp4", noisy(50))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><title>404</title>")
    (tmp_path / "random.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "zeros.mp4").write_bytes(bytes(5000))
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    (tmp_path / "hls.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video.name}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
    write_sound(tmp_path / "sound.mp4")
    write_sound(tmp_path / "cover.mp4", cover=pattern(1)[0])
    magic_yuv(tmp_path / "magic.avi")
    shutil.copyfile(tmp_path / "magic.avi", tmp_path / "renamed.mp4")
    expected = {
        "good.mp4": "ok", "empty.mp4": "empty", "page.mp4": "not video", "random.mp4": "not video",
        "zeros.mp4": "not video", "concat.mp4": "refused format", "hls.mp4": "not video",
        "folder.mp4": "not video", "pipe.mp4": "not video", "nowhere.mp4": "missing",
        "round.mp4": "missing", "none.mp4": "missing", "sound.mp4": "no video stream",
        "cover.mp4": "no video stream", "magic.avi": "refused codec",
        "renamed.mp4": "refused codec",
    }  # fmt: skip
    rows = check(clips_of([tmp_path / name for name in expected]), LIMITS, workers=2)
    found = {row.clip.path.name: row.found["status"] for row in rows}
    assert found == expected
    assert all(row.ok or row.found["detail"] for row in rows)


def test_what_lies_in_a_file_without_a_moving_picture_is_named(tmp_path: Path) -> None:
    write_sound(tmp_path / "cover.mp4", cover=pattern(1)[0])
    found = probe(tmp_path / "cover.mp4", LIMITS)
    assert found["detail"] == "it holds a cover picture and audio"


def test_a_frame_of_exactly_the_allowed_size_is_decoded(tmp_path: Path) -> None:
    """Decoders round sides up: VP9 makes 64 of 36."""
    path = write_video(tmp_path / "v.webm", pattern(3, 36, 36), codec="libvpx-vp9")
    assert kind_of(path, pixels=36 * 36) == "ok"
    assert kind_of(path, pixels=36 * 36 - 1) == "too large"


def test_a_page_in_place_of_a_download_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><title>404</title>")
    assert "it begins with '<!DOCTYPE html>" in probe(tmp_path / "page.mp4", LIMITS)["detail"]


@pytest.mark.parametrize(
    ("name", "share", "kinds"),
    [
        ("h264.mp4", 0.5, {"truncated"}),  # its index is lost
        ("fast.mp4", 0.5, {"truncated"}),
        ("fast.mp4", 0.97, {"truncated"}),
        ("mpeg4.avi", 0.5, {"truncated"}),
        ("mpeg4.avi", 0.995, {"truncated"}),  # the index, which is not needed
        ("hevc.mkv", 0.5, {"truncated"}),
        ("vp9.webm", 0.5, {"truncated"}),
        ("fast.mp4", 0.001, {"truncated", "not video", "decode error"}),
        ("fast.mp4", 0.006, {"truncated"}),  # in the middle of its index
    ],
)
def test_the_beginning_of_a_file_is_truncated(
    name: str, share: float, kinds: set[str], tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, noisy(200), **GOOD[name])
    assert kind_of(path) == "ok"
    cut(path, share)
    assert kind_of(path) in kinds
    assert kind_of(path, full=True) in kinds


def test_without_a_duration_everything_is_decoded(tmp_path: Path) -> None:
    live = {"live": "1"}
    path = write_video(tmp_path / "a.mkv", noisy(100), container_options=live)
    found = probe(path, LIMITS)
    assert (found["kind"], found["seconds"], found["decoded"]) == ("ok", None, 100)
    spoil(path, 0.6, 2000)  # behind the head
    assert kind_of(path) == "decode error"


def test_damage_in_the_middle_is_found_in_full(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy(200), container_options=FAST_START)
    spoil(path, 0.3)
    assert kind_of(path, full=True) == "decode error"


def test_what_is_too_large_or_too_long_is_not_decoded(tmp_path: Path) -> None:
    wide = write_video(
        tmp_path / "wide.mov", np.zeros((2, 32, 8224, 3), np.uint8), **GOOD["mjpeg.mov"]
    )
    many = write_video(tmp_path / "many.mp4", pattern(30))
    picture = tmp_path / "large.png"
    Image.new("L", (7000, 7000)).save(picture)
    assert picture.stat().st_size * 700 < 7000 * 7000 * 3
    for path, limits, kind in (
        (wide, {}, "too large"),
        (many, {"side": 100}, "too large"),
        (many, {"pixels": 5000}, "too large"),
        (many, {"seconds": 1.0}, "too long"),
        (many, {"frames": 20}, "too long"),
        (picture, {}, "too large"),
        (many, {}, "ok"),
    ):
        found = probe(path, LIMITS._replace(**limits))
        assert found["kind"] == kind, (path, limits)
        assert kind == "ok" or not found.get("decoded")


def test_the_decoder_itself_is_told_what_it_may_do(tmp_path: Path, monkeypatch) -> None:
    """Where the first look is passed by, FFmpeg refuses."""
    monkeypatch.setattr(gate, "_check_size", lambda *_: None)
    path = write_video(tmp_path / "a.mp4", pattern(30))
    assert kind_of(path, pixels=5000, side=1) == "decode error"
    monkeypatch.setattr(gate, "CODECS", {*gate.CODECS, "magicyuv"})
    with av.open(str(magic_yuv(tmp_path / "b.avi"))) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"codec_whitelist": "h264"}
        with pytest.raises(av.FFmpegError):
            next(container.decode(stream))


def test_pictures_are_videos_of_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    assert probe(tmp_path / "a.png", LIMITS)["frames"] == 1
    assert kind_of(tmp_path / "b.jpg") == "decode error"


def test_folders_of_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    assert kind_of(folder) == "not video"
    for number in range(3):
        Image.new("RGB", (20, 10)).save(folder / f"{number:03}.png")
    found = probe(folder, LIMITS)
    assert (found["kind"], found["frames"], found["container"]) == ("ok", 3, "folder")
    assert kind_of(folder, pixels=100) == "too large"
    assert kind_of(folder, frames=2) == "too long"
    Image.new("RGB", (20, 12)).save(folder / "003.png")
    assert "2 sizes" in probe(folder, LIMITS)["detail"]
    (folder / "003.png").write_bytes(b"")
    assert probe(folder, LIMITS)["detail"] == "003.png: it has 0 bytes"
    (folder / "001.png").unlink()
    assert "lacks the frames 1 of 0 to 3" in probe(folder, LIMITS)["detail"]


def test_the_real_odd_files(shared: Path) -> None:
    with (shared / "data" / "MANIFEST.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("odd/")]
    paths = [shared / "data" / row["path"] for row in rows]
    found = {r.clip.path.name: r for r in check(clips_of(paths), LIMITS, workers=2)}
    bad = {name: row.found["status"] for name, row in found.items() if not row.ok}
    assert bad == {
        "corrupted.mp4": "decode error", "result.webm": "empty", "gif.gif": "no frame",
        "Mpeg4.mp4": "no video stream", "mp4-with-audio.mp4": "no video stream",
        "sine_mono_s16.wav": "no video stream",
    }  # fmt: skip
    assert len(found) == 28
    assert remarks(found["fire2.mp4"]) == ["variable rate", "rotated"]
    assert found["fire2.mp4"].found["rotation"] == 180
    assert found["video_90.mov"].found["rotation"] == 90
    for row in rows:
        if row["decoded_frames"] and Path(row["path"]).name not in bad:
            declared = found[Path(row["path"]).name].found["frames"]
            # Of this file FFmpeg hides the first frames, which an edit list cuts off.
            assert row["path"] == "odd/nasa_13013.mp4" or declared == int(row["decoded_frames"])


WORKER = """
    import mmap, os, signal, time
    from videoclip.frames import gate

    video = gate._video

    def hostile(path, limits, found):
        name = path.name
        if name.startswith("hang"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(1000)
        if name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name.startswith("abort"):
            os.abort()
        marker = path.with_suffix(".seen")
        if name.startswith(("killed", "stopped")) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL if name[0] == "k" else signal.SIGSTOP)
        if name.startswith("memory"):
            try:
                mmap.mmap(-1, 2 * limits.memory)
            except OSError as error:
                raise MemoryError from error
        if name.startswith("print"):
            os.write(1, b"the decoder says hello\\n")
        return video(path, limits, found)

    gate._video = hostile
    gate.main()
"""


def test_hanging_and_crashing_decoders_cost_one_file_each(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(textwrap.dedent(WORKER))
    video = write_video(tmp_path / "good.mp4", pattern(5))
    kinds = ["hang", "crash", "abort", "memory", "print", "killed", "stopped", *["good"] * 13]
    names = [f"{kinds[number % 20]}{number}.mp4" for number in range(40)]
    for name in names:
        shutil.copyfile(video, tmp_path / name)
    rows = check(
        clips_of([tmp_path / name for name in names]),
        LIMITS._replace(timeout=1.0),
        workers=3,
        program=(sys.executable, "-P", str(program)),
    )
    found: dict[str, set[str]] = {}
    for name, row in zip(names, rows, strict=True):
        kind = name.removesuffix(".mp4").rstrip("0123456789")
        found.setdefault(kind, set()).add(row.found["status"])
    assert found == {
        "hang": {"timeout"}, "crash": {"crash"}, "abort": {"crash"}, "memory": {"too large"},
        "print": {"ok"}, "killed": {"ok"}, "stopped": {"ok"}, "good": {"ok"},
    }  # fmt: skip
    counts = summary(rows)
    assert (counts["ok"], counts["bad"], counts["files"]) == (32, 8, 40)
    assert "SIGSEGV" in rows[1].found["detail"]


def test_of_many_damaged_files_each_is_classified_and_no_good_one_is_lost(tmp_path: Path) -> None:
    """Twelve kinds of damage, each in three files, among forty good ones."""
    video = write_video(tmp_path / "v.mp4", noisy(40), container_options=FAST_START)
    data = video.read_bytes()
    numbers = random.Random(0)
    damages = [
        lambda: b"",
        lambda: b"<html>not found</html>" * numbers.randint(1, 9),
        lambda: numbers.randbytes(numbers.randint(1000, 9000)),
        lambda: bytes(numbers.randint(1000, 9000)),
        lambda: data[: numbers.randint(20, len(data) // 2)],
        lambda: data[: -numbers.randint(1, len(data) // 3)],
        lambda: data[numbers.randint(1, 100) :],
        lambda: b"ffconcat version 1.0\nfile v.mp4\n",
        lambda: b"#EXTM3U\n#EXTINF:1,\nv.mp4\n",
        lambda: data.replace(b"avc1", numbers.randbytes(4)),
        lambda: data.replace(b"moov", b"xxxx"),
        lambda: data[:2000] + bytes(len(data) - 2000),
    ]
    paths = []
    for number in range(40):
        shutil.copyfile(video, tmp_path / f"good{number}.mp4")
        paths.append(tmp_path / f"good{number}.mp4")
    for number in range(36):
        path = tmp_path / f"bad{number}.mp4"
        path.write_bytes(damages[number % 12]())
        paths.append(path)
    numbers.shuffle(paths)
    rows = check(clips_of(paths), LIMITS, workers=2)
    wrong = [row for row in rows if row.ok != row.clip.path.name.startswith("good")]
    assert wrong == []
    assert summary(rows)["bad"] == 36


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "vp9.webm", "ts.ts"])
def test_noise_anywhere_never_escapes(name: str, tmp_path: Path) -> None:
    data = write_video(tmp_path / name, noisy(12), **GOOD[name]).read_bytes()
    numbers = random.Random(1)
    paths = []
    for number in range(15):
        spoiled = bytearray(data)
        for _ in range(numbers.randint(1, 30)):
            spoiled[numbers.randrange(len(spoiled))] = numbers.randrange(256)
        paths.append(tmp_path / f"{number}-{name}")
        paths[-1].write_bytes(spoiled)
    rows = check(clips_of(paths), LIMITS, workers=2)
    assert len(rows) == 15
    assert not {row.found["status"] for row in rows} & {"crash", "timeout"}


def test_a_stopped_run_goes_on_and_a_changed_file_is_done_again(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", pattern(3)) for n in range(4)]
    journal = tmp_path / "journal.jsonl"
    check(clips_of(paths[:2]), LIMITS, workers=1, journal=journal)
    with journal.open("a") as file:
        file.write('["cut off in the mid')
    (tmp_path / "0.mp4").write_bytes(b"")
    nothing = (sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(VideoclipError, match="does not start"):
        check(clips_of(paths[:2]), LIMITS, workers=1, journal=journal, program=nothing)
    journal.write_text(journal.read_text() + "\n")
    rows = check(clips_of(paths), LIMITS, workers=1, journal=journal)
    assert [row.found["status"] for row in rows] == ["empty", "ok", "ok", "ok"]
    again = check(clips_of(paths), LIMITS, workers=1, journal=journal, program=nothing)
    assert [row.found for row in again] == [row.found for row in rows]
    with pytest.raises(VideoclipError, match="does not start"):
        check(clips_of(paths), LIMITS._replace(full=True), workers=1, journal=journal,
              program=nothing)  # fmt: skip


def test_what_crashed_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(textwrap.dedent(WORKER))
    clips = clips_of([write_video(tmp_path / "crash.mp4", pattern(3))])
    journal = tmp_path / "journal.jsonl"
    hostile = (sys.executable, "-P", str(program))
    [row] = check(clips, LIMITS, workers=1, journal=journal, program=hostile)
    assert row.found["status"] == "crash"
    [row] = check(clips, LIMITS, workers=1, journal=journal)
    assert row.ok


def test_the_command_on_a_manifest(tmp_path: Path, capsys) -> None:
    write_video(tmp_path / "a.mp4", pattern(10))
    (tmp_path / "b.mp4").write_text("<script>alert(1)</script>")
    rows = [
        {"video_id": "one", "path": "a.mp4", "captions": ["a cat"], "split": "train"},
        {"video_id": "late", "path": "a.mp4", "start": 5.0, "end": 6.0},
        {"video_id": "<b>two</b>", "path": "b.mp4", "label": "x"},
        {"video_id": "gone", "path": "c.mp4"},
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    assert main(["data", "check", str(manifest), "--output", str(output), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 ok + 3 bad = 4" in shown
    assert [c.video_id for c in read_manifest(output / "clips.good.jsonl")] == ["one"]
    checked = output / "clips.checked.jsonl"
    assert [c._replace(path=c.path.resolve()) for c in read_manifest(checked)] == [
        c._replace(path=c.path.resolve()) for c in read_manifest(manifest)
    ]
    assert manifest_hash(checked) != ""
    column = [json.loads(line)["status"] for line in checked.read_text().splitlines()]
    assert column == ["ok", "segment outside", "not video", "missing"]
    report = json.loads((output / "report.json").read_text())
    assert (report["ok"], report["bad"], report["files"]) == (1, 3, 4)
    assert [clip["status"] for clip in report["clips"]] == column
    page = (output / "report.html").read_text()
    assert "&lt;b&gt;two&lt;/b&gt;" in page
    assert "<script>" not in page


def test_a_folder_with_names_that_terminals_and_shells_take_for_commands(
    tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    names = [
        "-i.mp4", "a;touch x.mp4", "$(id).mp4", "new\nline.mp4", "\x1b[31mred.mp4", "12:30.mp4",
        "concat:a|b.mp4", "caf\u00e9.mp4",
    ]  # fmt: skip
    video = write_video(tmp_path / "v.mp4", pattern(3))
    for name in names:
        shutil.copyfile(video, folder / name)
    shutil.copyfile(video, os.fsencode(folder) + b"/\xff.mp4")
    rows = [Clip("not UTF-8", Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")))]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert main(["data", "check", str(tmp_path / "m.jsonl"), "--output", str(tmp_path / "m")]) == 0
    assert read_manifest(tmp_path / "m" / "m.good.jsonl") == rows
    (folder / "\x1b[2J.avi").touch()
    (folder / "notes.txt").touch()
    arguments = ["data", "check", str(folder), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "9 ok + 1 bad = 10" in shown
    assert "1 files are not called like videos" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to check is given"),
        (["a.jsonl", "b.mp4"], "one manifest, or folders"),
        (["none.jsonl"], "there is no manifest"),
        ([".", "--workers", "0"], "--workers is 0"),
        (["."], "there is no video in"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 1
    assert message in capsys.readouterr().err
