"""Frames that are kept: decoded once, exactly those sampled; what cannot be read is listed."""

import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import clips as files
import numpy as np
import pytest
import torch
from PIL import Image

from videoclip.errors import VideoclipError
from videoclip.frames import store as frame_store
from videoclip.frames.decode import open_video
from videoclip.frames.loader import collate
from videoclip.frames.sampling import second_indices, uniform_indices
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import resize_and_crop
from videoclip.frames.views import Views, crops_of, view_indices, views_named
from videoclip.manifest import Clip


def test_clips_are_decoded_once_and_again_when_the_file_changes(tmp_path) -> None:
    path = tmp_path / "clip.mp4"
    files.write_video(path, files.pattern(6, width=48, height=32))
    clip, store = Clip("a", path, ("x",)), FrameStore(tmp_path / "frames", size=16, frames=4)
    store.fill([clip], 1, "first")
    [kept] = store.folder.iterdir()
    written = kept.stat().st_mtime_ns
    store.fill([clip], 1, "again")
    assert [p.stat().st_mtime_ns for p in store.folder.iterdir()] == [written]
    files.write_video(path, files.pattern(9, width=48, height=32))
    store.fill([clip], 1, "changed")
    assert len(list(store.folder.iterdir())) == 2


def test_the_uniform_take_holds_exactly_the_sampled_frames(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=32, frames=8)
    store.fill(videos, 3, "clips")
    with open_video(videos[2].path) as video:
        expected = resize_and_crop(video.read(uniform_indices(30, 8)), 32)
    assert torch.equal(store.read(videos[2], 3), expected)
    takes = [store.read(videos[2], 3, take) for take in range(3)]
    assert not torch.equal(takes[1], takes[2])
    assert torch.equal(store.decoded(videos[2], 3), torch.stack(takes))


def test_frames_that_are_squashed_are_other_files(videos, tmp_path) -> None:
    read = {}
    for fit in ("crop", "squash"):
        store = FrameStore(tmp_path, size=32, frames=8, fit=fit)
        store.fill(videos[2:3], 1, "clips")
        read[fit] = store.read(videos[2], 1)
    with open_video(videos[2].path) as video:
        frames = video.read(uniform_indices(30, 8))
    assert frames.shape[1] != frames.shape[2]
    assert torch.equal(read["squash"], resize_and_crop(frames, 32, "squash"))
    assert torch.equal(read["crop"], resize_and_crop(frames, 32))


def test_one_frame_a_second_and_no_draws(tmp_path) -> None:
    path = files.write_video(tmp_path / "long.mp4", files.pattern(130, width=96, height=96))
    short = files.write_video(tmp_path / "short.mp4", files.pattern(60, width=96, height=96))
    clips = [Clip("long", path, ("x",)), Clip("short", short, ("y",)),
             Clip("part", path, ("z",), start=2.0, end=4.0)]  # fmt: skip
    store = FrameStore(tmp_path / "frames", size=32, frames=4, rule="seconds")
    assert store.fill(clips, 3, "clips") == clips
    for clip, expected in zip(clips, ([0, 25, 75, 125], [0, 25, 50], [50, 75, 100]), strict=True):
        with open_video(clip.path) as video:
            assert video.rate == 25.0
            frames = resize_and_crop(video.read(expected), 32)
        assert torch.equal(store.read(clip, 3), frames)
        assert torch.equal(store.read(clip, 3, 2), frames), "all takes are the same"
    assert second_indices(130, 25.0, 4).tolist() == [0, 25, 75, 125]
    late = clips[0]._replace(video_id="late", start=50.0)
    assert store.fill([late], 1, "late") == []
    assert "holds no second" in store.unreadable["late"]
    mask = collate([store.read(clip, 3) for clip in clips]).mask
    assert mask.sum(1).tolist() == [4, 3, 3]


def test_a_second_is_what_the_container_says(tmp_path) -> None:
    """Whichever reader opens it: the rate is not guessed from times rounded to milliseconds."""
    for name, width in (("decord.mp4", 96), ("narrow.mp4", 48), ("rounded.mkv", 96), ("p.gif", 96)):
        codec, form = ("gif", "rgb8") if name.endswith("gif") else ("libx264", "yuv420p")
        pixels = files.pattern(7, width=width, height=96)
        path = files.write_video(tmp_path / name, pixels, codec=codec, pixel_format=form)
        with open_video(path) as video:
            assert video.rate == 25.0
    Image.fromarray(files.pattern(1)[0]).save(tmp_path / "one.png")
    with open_video(tmp_path / "one.png") as video:
        assert video.rate == 1.0


def test_actionclips_rule_repeats_frames_of_short_clips(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=8, rule="actionclip")
    store.fill(videos, 3, "clips")
    with open_video(videos[3].path) as video:
        every = resize_and_crop(video.read([0, 1, 2]), 16)
    assert torch.equal(store.read(videos[3], 3), every[[0, 0, 0, 1, 1, 1, 2, 2]])
    takes = [store.read(videos[3], 3, take) for take in (1, 2)]
    for take in takes:
        assert len(take) == 8
    assert all(len(store.read(clip, 3, 1)) == 8 for clip in videos)


def test_whole_frames_keep_their_shape(one_epoch, tmp_path) -> None:
    clips = []
    for name, (height, width) in {"wide": (50, 97), "tall": (97, 50), "even": (64, 64)}.items():
        path = tmp_path / f"{name}.mp4"
        made = files.pattern(6, width=width // 2 * 2, height=height // 2 * 2)
        clips.append(Clip(name, files.write_video(path, made), (name,)))
    store = FrameStore(tmp_path / "frames", size=36, frames=4, fit="whole")
    assert store.fill(clips, 2, "clips") == clips
    shapes = [tuple(store.read(clip, 2, 1).shape) for clip in clips]
    assert shapes == [(4, 3, 36, 69), (4, 3, 69, 36), (4, 3, 36, 36)]
    for recipe in ("crop", "actionclip", "actionclip-randaugment", "none"):
        [batch] = one_epoch(clips, store, 0, 1, takes=2, size=32, augment=recipe)
        assert batch.frames.pixels.shape == (3, 4, 3, 32, 32)
        assert batch.frames.pixels.dtype == torch.uint8


def test_views_are_cut_out_of_the_frames_that_they_name(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=4)
    for views in (views_named("4x3", size=16), views_named("3x1", size=16), Views(size=16),
                  Views(clips=2, crops=3, size=16, seconds=0.4)):  # fmt: skip
        assert store.fill_views(videos, views, "views") == videos
        for clip in videos:
            found = store.read_views(clip, views)
            with open_video(clip.path) as video:
                indices = view_indices(video.timestamps, 4, views)
                whole = resize_and_crop(video.read(indices.flatten()), views.short_side, "whole")
            assert found.shape == (views.clips * views.crops, indices.shape[1], 3, 16, 16)
            assert found.dtype == torch.uint8
            for number, row in enumerate(whole.unflatten(0, indices.shape)):
                expected = crops_of(row, views)
                start = number * views.crops
                assert torch.equal(found[start : start + views.crops], expected)
    same = Views(size=16, resize=16)
    store.fill_views(videos, same, "views")
    store.fill(videos, 1, "clips")
    for clip in videos:
        [shown] = store.read_views(clip, same)
        assert torch.equal(shown, store.read(clip, 1)), "one clip is what the store shows"


def test_views_of_a_segment_stay_inside_it(videos, tmp_path) -> None:
    part = videos[2]._replace(video_id="part", start=0.4, end=0.8)
    empty = videos[2]._replace(video_id="late", start=40.0, end=50.0)
    store, views = FrameStore(tmp_path, size=16, frames=4), Views(clips=3, size=16, resize=16)
    assert store.fill_views([part, empty], views, "views") == [part]
    assert "holds no frame" in store.unreadable["late"]
    with open_video(part.path) as video:
        inside = resize_and_crop(video.read(range(10, 20)), 16)
    for frame in store.read_views(part, views).flatten(0, 1):
        assert any(torch.equal(frame, one) for one in inside)


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "spoiled", "text", "one frame", "odd", "tiny"]
)
def test_odd_clips_are_read_or_listed(damage: str, tmp_path) -> None:
    path = tmp_path / "clip.mp4"
    shape = {"odd": (97, 131), "tiny": (2, 2)}.get(damage, (96, 128))
    pixels = files.pattern(1 if damage == "one frame" else 20, *shape)
    if damage == "odd":  # yuv420p has even sides only
        files.write_video(path, pixels, pixel_format="yuv444p")
    else:
        files.write_video(path, pixels)
    readable = damage in ("one frame", "odd", "tiny")
    if damage == "missing":
        path.unlink()
    if damage in ("empty", "text"):
        path.write_text("<html>not found</html>" if damage == "text" else "")
    if damage == "cut":
        files.cut(path, 0.3)
    if damage == "spoiled":
        files.spoil(path, 0.02, 4000)
    clip = Clip("c", path, ("x",), label="l")
    for number, (rule, fit) in enumerate(
        [("segments", "crop"), ("actionclip", "whole"), ("seconds", "squash")]
    ):
        store = FrameStore(tmp_path / str(number), size=16, frames=4, rule=rule, fit=fit)
        views = Views(clips=2, crops=3, size=16)
        assert store.fill([clip], 3, "a clip") == ([clip] if readable else [])
        assert store.fill_views([clip], views, "a clip") == ([clip] if readable else [])
        assert (not readable) == ("c" in store.unreadable)
        if readable:
            assert store.read(clip, 3, 2).dtype == torch.uint8
            assert store.read_views(clip, views).shape[0] == 6
        else:
            assert str(path) in store.unreadable["c"]


def test_a_process_that_comes_first_decodes_everything(videos, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(frame_store, "rank", lambda: 1)
    monkeypatch.setattr(frame_store, "world_size", lambda: 3)
    gone = Clip("gone", tmp_path / "gone.mp4", ("x",))
    store = FrameStore(tmp_path / "frames", size=16, frames=4)
    assert store.fill([gone, *videos], 1, "clips") == videos
    assert list(store.unreadable) == ["gone"]
    assert len(list(store.folder.iterdir())) == len(videos)


def test_what_is_sampled_in_another_way_is_another_file(videos, tmp_path) -> None:
    """One folder may hold the frames of many experiments."""
    clip, made = videos[2], 0
    for rule in ("segments", "actionclip", "seconds"):
        for size, fit, frames in ((16, "crop", 4), (20, "crop", 4), (16, "whole", 4),
                                  (16, "squash", 4), (16, "crop", 5)):  # fmt: skip
            store = FrameStore(tmp_path, size=size, frames=frames, fit=fit, rule=rule)
            store.fill([clip], 1, "a clip")
            made += 1
            assert len(list(tmp_path.iterdir())) == made
        views = Views(clips=2, size=16, resize=16)
        for other in (views, replace(views, clips=3), replace(views, resize=18),
                      replace(views, seconds=0.5), replace(views, seconds=0.7)):  # fmt: skip
            store.fill_views([clip], other, "a clip")
            made += 1
            assert len(list(tmp_path.iterdir())) == made
        store.fill_views([clip], replace(views, crops=3), "a clip")
        assert len(list(tmp_path.iterdir())) == made, "crops are cut when they are read"


def test_processes_that_fill_one_store_at_once(videos, tmp_path, monkeypatch) -> None:
    stores = [FrameStore(tmp_path, size=16, frames=4) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        filled = list(pool.map(lambda store: store.fill(videos, 3, "clips"), stores))
    assert filled == [videos] * 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}
    alone = FrameStore(tmp_path / "alone", size=16, frames=4)
    alone.fill(videos, 3, "clips")
    for clip in videos:
        assert torch.equal(stores[0].read(clip, 3, 2), alone.read(clip, 3, 2))


def test_a_segment_without_frames_is_listed(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=4)
    empty = videos[0]._replace(video_id="late", start=100.0, end=101.0)
    part = videos[2]._replace(video_id="part", start=0.0, end=0.1)
    assert store.fill([empty, part], 1, "segments") == [part]
    assert "holds no frame" in store.unreadable["late"]
    assert len(store.read(part, 1)) < 4


def test_a_full_disk_is_one_clear_error(videos, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = FrameStore(tmp_path, size=16, frames=4)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(VideoclipError, match=r"No space left.*free some space"):
        store.fill(videos[:1], 1, "clips")
    assert not list(tmp_path.iterdir())


def test_frames_are_resized_with_antialiasing_and_cropped_in_the_middle() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    found = resize_and_crop(picture[None], 32)[0].permute(1, 2, 0).numpy()
    small = Image.fromarray(picture).resize((int(160 * 32 / 90), 32), Image.Resampling.BICUBIC)
    left = round((small.width - 32) / 2)
    expected = np.asarray(small.crop((left, 0, left + 32, 32)))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_real_clips_of_all_kinds_under_every_rule(one_epoch, shared: Path, tmp_path) -> None:
    """Files that break readers, and real actions: each is read under all rules, or under none."""
    paths = sorted(path for path in (shared / "data/odd").iterdir() if path.is_file())
    paths += sorted((shared / "data/action_fight").rglob("*.*"))[::12]
    clips = [Clip(path.name, path, ("x",), label=path.parent.name) for path in paths]
    views, readable = views_named("4x3", size=32), []
    for rule in ("segments", "actionclip", "seconds"):
        store = FrameStore(tmp_path / rule, size=36, frames=8, fit="whole", rule=rule)
        readable.append(store.fill(clips, 2, rule))
        assert len(readable[-1]) + len(store.unreadable) == len(clips)
        for clip in readable[-1]:
            frames = store.read(clip, 2, 1)
            assert min(frames.shape[-2:]) == 36
            assert len(frames) == 8 if rule == "actionclip" else 1 <= len(frames) <= 8
    assert readable[0] == readable[1] == readable[2] == store.fill_views(clips, views, "views")
    for clip in readable[0]:
        shown = store.read_views(clip, views)
        assert shown.shape == (12, shown.shape[1], 3, 32, 32)
    assert len(readable[0]) > 25
    found = one_epoch(readable[0], store, 0, 1, takes=2, size=32, augment="actionclip", workers=2)
    assert sum(len(batch.names) for batch in found) == len(readable[0])


def test_a_store_of_many_clips_needs_few_file_descriptors(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.npy" for number in range(2 * frame_store.OPEN)]
    for number, path in enumerate(paths):
        np.save(path, np.full(3, number))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (frame_store.OPEN + 150, before[1]))
    try:
        found = [int(frame_store._array(path)[0]) for path in paths]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        frame_store._array.cache_clear()
    assert found == list(range(len(paths)))
