"""A store is a pure function of manifest and settings: killed, divided, full or changed."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import clips as files
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from videoclip.__main__ import main
from videoclip.errors import VideoclipError
from videoclip.frames.decode import open_video
from videoclip.frames.gate import Limits
from videoclip.frames.pack import Share, pack, write_manifests
from videoclip.frames.pack_clip import Packing, psnr
from videoclip.frames.pack_journal import opened
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import resize_and_crop
from videoclip.image_text import shards
from videoclip.manifest import Clip, manifest_hash, read_manifest, with_splits, write_manifest

EVERY = Packing(all=True).record
SMALL = 20_000
"""Bytes of a shard, so that there are some."""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A manifest of 16 good videos, two of them alike, and four bad ones."""
    folder = tmp_path_factory.mktemp("many")
    clips = []
    for number in range(16):
        pixels = files.pattern(4 + number, 32, 48 + 16 * (number % 3))
        clips.append(Clip(f"v{number}", files.write_video(folder / f"{number}.mp4", pixels)))
    shutil.copy(folder / "3.mp4", folder / "11.mp4")
    for name, content in {"text": b"<html>", "empty": b"", "noise": os.urandom(5000)}.items():
        (folder / f"{name}.mp4").write_bytes(content)
        clips.insert(5, Clip(name, folder / f"{name}.mp4"))
    clips.append(Clip("gone", folder / "gone.mp4"))
    write_manifest(folder / "many.jsonl", clips)
    return folder / "many.jsonl"


def packed(
    clips: Sequence[Clip],
    store: Path,
    settings: dict = EVERY,
    name: str = "m.jsonl",
    **options: object,
) -> dict[str, str]:
    """Packs; returns the class of every clip."""
    options = {"workers": 2, "shard_bytes": SMALL} | options
    rows = pack(clips, settings, store, Limits(), **options)
    return {one.clip.video_id: one.status for one in write_manifests(name, clips, rows, store)}


def content(store: Path) -> dict[str, bytes]:
    """All files of a store but its journal, which also knows how often something was tried."""
    paths = [path for path in store.rglob("*") if path.is_file() and "journal" not in path.name]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def attempts(store: Path) -> dict[str, int]:
    """How often each file was looked at, by its name."""
    with opened(store / "journal.sqlite") as journal:
        rows = journal.connection.execute("SELECT path, sum(attempts) FROM files GROUP BY path")
        return {Path(path).name: count for path, count in rows.fetchall()}


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "shards").iterdir()}


def command(manifest: Path, store: Path) -> list[str]:
    options = ["--all", "--shard-bytes", str(SMALL), "--workers", "2", "--output", str(store)]
    return [sys.executable, "-m", "videoclip", "data", "pack", str(manifest), *options]


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory) -> Path:
    """The store that nobody interrupted."""
    store = tmp_path_factory.mktemp("whole") / "store"
    subprocess.run(command(many, store), check=True, capture_output=True)
    return store


def test_everything_is_packed_or_bad(many, whole) -> None:
    clips = read_manifest(whole / "many.jsonl")
    assert [clip.video_id for clip in clips] == [c.video_id for c in read_manifest(many)]
    bad = [json.loads(line) for line in (whole / "many.bad.jsonl").read_text().splitlines()]
    found = {row["video_id"]: row["status"] for row in bad}
    assert found == {"text": "not video", "empty": "empty", "noise": "not video", "gone": "missing"}
    store = FrameStore(whole.parent / "frames", size=16, frames=4)
    good = store.fill(clips, 1, "all")
    assert {clip.video_id for clip in clips} - {clip.video_id for clip in good} == set(found)
    assert "empty.mp4 was not packed: empty: it has 0 bytes" in store.unreadable["empty"]
    with_two = [clip.path for clip in clips if clip.video_id in ("v3", "v11")]
    assert with_two[0] == with_two[1], "the same bytes are packed once"
    table = pq.read_table(whole / "index.parquet").to_pydict()
    assert len(table["key"]) == len(set(table["key"])) == 15
    assert len(set(table["shard"])) > 2
    assert not (whole / "pieces").exists()


def test_shards_are_plain_tars_of_webdatasets_layout(whole) -> None:
    seen = []
    for path in sorted((whole / "shards").iterdir()):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            assert all((m.mtime, m.uid, m.uname, m.mode) == (0, 0, "", 0o644) for m in members)
            groups = itertools.groupby(members, lambda member: member.name.split(".")[0])
            for key, group in groups:
                *frames, head = group
                about = json.load(tar.extractfile(head))
                assert head.name == f"{key}.json"
                assert about["key"] == key
                assert [m.name for m in frames] == [
                    f"{key}.{n:06d}.jpg" for n in range(len(frames))
                ]
                assert len(frames) == len(about["timestamps"]) == about["source"]["frames"]
                assert [m.size for m in frames] == about["sizes"]
                assert about["settings"] == EVERY
                seen.append(key)
    assert len(seen) == len(set(seen)) == 15
    # Our own reader of foreign shards finds no fault with the archives either.
    paths = shards.find_shards(str(whole / "shards"))
    with pytest.raises(VideoclipError) as error:
        shards.index(paths)
    assert "cut off" not in str(error.value)


def kill_at(seconds: float, manifest: Path, store: Path) -> bool:
    """Packs and is killed after so long; whether it was still running."""
    process = subprocess.Popen(
        command(manifest, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


KILLS = int(os.environ.get("PACK_KILLS", "8"))


def test_killed_at_any_moment_it_becomes_the_same_store(many, whole, tmp_path) -> None:
    started = time.monotonic()
    subprocess.run(command(many, tmp_path / "timed"), check=True, capture_output=True)
    usual = time.monotonic() - started
    numbers, killed, round_ = random.Random(0), 0, 0
    while killed < KILLS:
        store = tmp_path / f"store-{round_}"
        round_ += 1
        for _ in range(1 + round_ % 2):  # some stores are killed twice
            killed += kill_at(numbers.uniform(0.2, 1.0) * usual, many, store)
        subprocess.run(command(many, store), check=True, capture_output=True)
        assert content(store) == content(whole)
        shutil.rmtree(store)


def test_a_rerun_does_only_the_rest(many, whole, tmp_path) -> None:
    """Also what was finished when the run was killed is not done again."""
    store = tmp_path / "store"
    clips = read_manifest(many)
    pack(clips[:7], EVERY, store, Limits(), workers=2, share=Share(1, 2))
    shutil.move(store / "journal-1-of-2.sqlite", store / "journal.sqlite")
    done = {path.name: path.stat().st_mtime_ns for path in (store / "pieces").iterdir()}
    assert len(done) == 3
    pack(clips, EVERY, store, Limits(), workers=2, share=Share(1, 2))
    again = {path.name: path.stat().st_mtime_ns for path in (store / "pieces").iterdir()}
    assert done.items() <= again.items()
    packed(clips, store, name="many.jsonl")
    assert content(store) == content(whole)
    before, tried = times(store), attempts(store)
    packed(clips, store, name="many.jsonl")
    assert times(store) == before
    assert attempts(store) == tried


def test_machines_that_share_the_work_make_the_same_store(many, whole, tmp_path, capsys) -> None:
    store = tmp_path / "store"
    arguments = [*command(many, store)[3:], "--shard"]
    for number in (3, 1, 2):
        assert main([*arguments, f"{number}/3"]) == 0
    assert "run the same command without --shard" in capsys.readouterr().out
    assert not (store / "shards").exists()
    made = {path.name: path.stat().st_mtime_ns for path in (store / "pieces").iterdir()}
    assert len(made) == 15
    assert main(arguments[:-1]) == 0
    assert content(store) == content(whole)
    # In folders of their own, brought together.
    apart = [tmp_path / f"apart-{number}" for number in range(2)]
    for number, folder in enumerate(apart, start=1):
        assert main([*command(many, folder)[3:], "--shard", f"{number}/2"]) == 0
    shutil.copytree(apart[1], apart[0], dirs_exist_ok=True)
    assert main(command(many, apart[0])[3:]) == 0
    assert content(apart[0]) == content(whole)


def test_manifests_of_one_store_share_their_videos(many, tmp_path) -> None:
    clips = [clip for clip in read_manifest(many) if clip.video_id.startswith("v")]
    store = tmp_path / "store"
    packed(clips[:6], store, name="a.jsonl")
    first = times(store)
    moved = tmp_path / "moved.mp4"
    shutil.copy(clips[2].path, moved)
    packed([*clips[3:9], Clip("moved", moved)], store, name="b.jsonl")
    assert first.items() <= times(store).items(), "no shard is written again"
    [third] = [c for c in read_manifest(store / "a.jsonl") if c.video_id == "v2"]
    assert read_manifest(store / "b.jsonl")[-1].path == third.path
    assert len(pq.read_table(store / "index.parquet")) == 9


def test_only_what_changed_is_done_again(many, tmp_path) -> None:
    folder = tmp_path / "files"
    shutil.copytree(many.parent, folder)
    clips = [c for c in read_manifest(folder / "many.jsonl") if c.video_id in ("v1", "v2", "v4")]
    store = tmp_path / "store"
    packed(clips, store)
    hash_before, before = manifest_hash(store / "m.jsonl"), times(store)
    os.utime(clips[0].path, (1, 1))  # the time alone: it is read again, and not decoded
    packed(clips, store)
    assert times(store) == before
    assert attempts(store) == {"1.mp4": 2, "2.mp4": 1, "4.mp4": 1}
    assert manifest_hash(store / "m.jsonl") == hash_before
    files.write_video(clips[1].path, files.pattern(9, 32, 48))
    packed(clips, store)
    assert attempts(store) == {"1.mp4": 2, "2.mp4": 2, "4.mp4": 1}
    assert len(times(store)) == len(before) + 1
    assert manifest_hash(store / "m.jsonl") != hash_before
    changed = FrameStore(tmp_path / "frames", size=16, frames=32)
    assert len(changed.read(read_manifest(store / "m.jsonl")[1], 1)) == 9
    other = Packing(rate=5.0).record
    packed(clips, store, other)
    assert len(changed.read(read_manifest(store / "m.jsonl")[1], 1)) == 2
    now = times(store)
    packed(clips, store)  # and back: everything is there
    assert times(store) == now
    assert len(changed.read(read_manifest(store / "m.jsonl")[1], 1)) == 9


def test_a_bad_file_that_is_mended_is_packed(many, tmp_path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("<html>")
    good = read_manifest(many)[0]
    clips, store = [Clip("a", path), good], tmp_path / "store"
    assert packed(clips, store) == {"a": "not video", "v0": "ok"}
    assert packed(clips, store) == {"a": "not video", "v0": "ok"}
    assert attempts(store)["a.mp4"] == 1
    shutil.copy(good.path, path)
    assert packed(clips, store) == {"a": "ok", "v0": "ok"}
    assert (store / "m.bad.jsonl").read_bytes() == b""
    path.unlink()
    assert packed(clips, store) == {"a": "missing", "v0": "ok"}


def test_segments_share_a_video_and_keep_their_splits(tmp_path) -> None:
    path = files.write_video(tmp_path / "long.mp4", files.pattern(75))
    other = files.write_video(tmp_path / "other.mp4", files.pattern(50))
    bounds = [(0.0, 1.0), (1.0, 2.0), (1.1, 1.2), (2.0, None), (7.0, 8.0)]
    clips = [Clip(f"c{n}", path, start=a, end=b) for n, (a, b) in enumerate(bounds)]
    clips += [Clip(f"d{n}", other, start=float(n)) for n in range(2)]
    clips += [Clip("e", files.write_video(tmp_path / "e.mp4", files.pattern(9)))]
    store = tmp_path / "store"
    found = packed(clips, store, Packing(rate=4.0, format="raw").record)
    kinds = {"c2": "segment between frames", "c4": "segment outside"}
    assert found == {clip.video_id: kinds.get(clip.video_id, "ok") for clip in clips}
    made = read_manifest(store / "m.jsonl")
    assert len({clip.path for clip in made}) == 5, "three videos, two bad clips"
    frames = FrameStore(tmp_path / "frames", size=16, frames=32)
    assert [len(frames.read(clip, 1)) for clip in made if clip.video_id not in kinds] == [
        4, 4, 4, 8, 4, 2,
    ]  # fmt: skip
    splits, _ = with_splits(clips, tmp_path)
    again, _ = with_splits(made, tmp_path)
    for name in splits:
        assert [c.video_id for c in splits[name]] == [c.video_id for c in again[name]]


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(many, whole, tmp_path) -> None:
    """The limit on the size of files, of this process and those it starts, stands for the disk."""
    store = tmp_path / "store"
    arguments = command(many, store)
    for most in (1_000, 6_000, 33_000, SMALL - 4_000):
        done = subprocess.run(
            arguments, capture_output=True, text=True,
            preexec_fn=lambda most=most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )  # fmt: skip
        assert done.returncode == 1, most
        assert "Traceback" not in done.stderr
        assert "free some space" in done.stderr
    subprocess.run(arguments, check=True, capture_output=True)
    assert content(store) == content(whole)


def test_two_at_once_are_refused(many, tmp_path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with opened(store / "journal.sqlite"), pytest.raises(VideoclipError, match="is in use"):
        packed(read_manifest(many)[:1], store)
    packed(read_manifest(many)[:1], store)


def test_a_lost_index_or_shard_is_made_again(many, whole, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    clips = read_manifest(many)
    (store / "index.parquet").unlink()
    packed(clips, store, name="many.jsonl")
    assert content(store) == content(whole)
    lost = store / "shards/000001.tar"
    cut = lost.read_bytes()[:5_000]
    for damage in (lost.unlink, lambda: lost.write_bytes(cut)):
        damage()
        assert packed(clips, store, name="many.jsonl")["v4"] == "ok"
        frames = FrameStore(tmp_path / "frames", size=16, frames=4)
        assert len(frames.fill(read_manifest(store / "many.jsonl"), 1, "all")) == 16


def test_a_worker_that_hangs_or_dies_costs_one_file(many, tmp_path) -> None:
    code = """
    import os, signal, sys, time
    from videoclip.frames import pack_clip
    real = pack_clip.pack_clip
    def broken(path, *rest):
        if path.name == "1.mp4":
            time.sleep(60)
        if path.name == "2.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(path, *rest)
    pack_clip.pack_clip = broken
    pack_clip.main()
    """
    clips = [c for c in read_manifest(many) if c.video_id in ("v0", "v1", "v2", "v4", "v5")]
    program = (sys.executable, "-c", textwrap.dedent(code))
    rows = pack(clips, EVERY, tmp_path, Limits(timeout=1.0), workers=2, program=program)
    found = {path.name: row.status for path, row in rows.items()}
    assert found == {
        "0.mp4": "ok", "1.mp4": "timeout", "2.mp4": "crash", "4.mp4": "ok", "5.mp4": "ok"
    }  # fmt: skip
    # Somebody else may have ended them: the next run tries again.
    assert set(packed(clips, tmp_path).values()) == {"ok"}


def test_folders_of_frames_and_pictures_are_videos_too(tmp_path) -> None:
    frames = files.pattern(6, 32, 48)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"frame-{number:03d}.png")
    (tmp_path / "bad/frame-003.png").write_bytes(b"no picture")
    Image.fromarray(frames[2]).save(tmp_path / "one.png")
    clips = [Clip(name, tmp_path / name) for name in ("good", "bad", "one.png")]
    settings = Packing(all=True, format="raw").record
    store = tmp_path / "store"
    assert packed(clips, store, settings) == {"good": "ok", "bad": "decode error", "one.png": "ok"}
    assert "frame-003.png: " in (store / "m.bad.jsonl").read_text()
    good, _, one = read_manifest(store / "m.jsonl")
    with open_video(good.path) as video:
        assert video.rate == 25.0
        assert np.array_equal(video.read(range(6)), frames)
    with open_video(one.path) as video:
        assert np.array_equal(video.read([0]), frames[2:3])
    Image.fromarray(frames[5]).save(tmp_path / "bad/frame-003.png")
    Image.fromarray(frames[5]).save(tmp_path / "good/frame-000.png")
    assert set(packed(clips, store, settings).values()) == {"ok"}
    with open_video(read_manifest(store / "m.jsonl")[0].path) as video:
        assert np.array_equal(video.read([0]), frames[5:6])


def test_a_parquet_manifest_stays_one(many, tmp_path, capsys) -> None:
    clips = [clip for clip in read_manifest(many) if clip.video_id in ("v0", "gone")]
    write_manifest(tmp_path / "m.parquet", clips)
    assert main([*command(tmp_path / "m.parquet", tmp_path / "s")[3:]]) == 0
    made = read_manifest(tmp_path / "s/m.parquet")
    assert [clip.path.parent.name for clip in made] == ["index.parquet", "m.bad.jsonl"]
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "s/m.parquet"), "--output", str(tmp_path)]) == 1
    assert "is a packed store's manifest" in capsys.readouterr().err


def test_packing_starts_quickly() -> None:
    """Neither the command nor what it starts waits for torch, which takes seconds."""
    code = "import sys, videoclip.commands.data_pack; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_packed_is_refused_in_words(many, whole, tmp_path, capsys) -> None:
    store = ["--output", str(tmp_path / "s")]
    for arguments, said in (
        ([str(whole / "many.jsonl"), *store], "is packed already"),
        ([str(many), "--output", str(many.parent)], "would be overwritten"),
        ([str(many), "--output", str(many)], "is a file"),
        ([str(many), *store, "--shard", "4/3"], "--shard is '4/3'; give i/n"),
        ([str(many), *store, "--rate", "1", "--frames", "3"], "give one of --rate"),
        ([str(many), *store, "--quality", "101"], "--quality is 101; give 1 to 100"),
        ([str(many), *store, "--workers", "0"], "--workers is 0; give more than 0"),
        ([str(many), *store, "--short-side", "0"], "--short-side is 0; give 8 to"),
    ):
        assert main(["data", "pack", *arguments]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_command_prints_counts_that_add_up(many, tmp_path, capsys) -> None:
    assert main([*command(many, tmp_path / "s")[3:], "--rate", "2", "--no-all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "16 packed + 4 bad = 20"
    assert {line.strip() for line in lines[1:4]} == {"2 not video", "1 empty", "1 missing"}
    assert any(line.startswith("  'gone': missing: ") for line in lines)
    assert lines[-1] == str(tmp_path / "s/many.jsonl")


def test_real_clips_keep_38_decibels(shared, tmp_path) -> None:
    paths = sorted((shared / "data/captioned").iterdir())[::3]
    paths += sorted(path for path in (shared / "data/odd").iterdir() if path.is_file())[::4]
    clips = [Clip(path.name, path) for path in paths]
    kinds = packed(clips, tmp_path / "store", Packing(frames=4).record, shard_bytes=10**9)
    assert set(kinds.values()) <= {"ok", "empty", "no video stream", "no frame", "decode error"}
    least = []
    for clip, made in zip(clips, read_manifest(tmp_path / "store/m.jsonl"), strict=True):
        if kinds[clip.video_id] != "ok":
            continue
        with open_video(clip.path) as source, open_video(made.path) as video:
            indices = np.searchsorted(source.timestamps, video.timestamps)
            frames = source.read(indices)
            if min(frames.shape[1:3]) > 224:  # as the tower's frames are scaled
                frames = resize_and_crop(frames, 224, "whole").permute(0, 2, 3, 1).numpy()
            least += map(psnr, video.read(range(len(indices))), frames)
    assert len(least) > 30
    assert min(least) > 37.9, "Pillow and torchvision scale alike but for 1/255 here and there"
