"""Clips of a packed store: the frames that a file would give, wherever frames are asked for."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import clips as files
import numpy as np
import pytest
import torch
from PIL import Image

from videoclip.errors import VideoError
from videoclip.frames import packed
from videoclip.frames.decode import open_video
from videoclip.frames.gate import Limits
from videoclip.frames.pack import pack, write_manifests
from videoclip.frames.pack_clip import Packing, kept_size, psnr
from videoclip.frames.store import FrameStore
from videoclip.frames.views import Views, views_named
from videoclip.manifest import Clip, read_manifest, write_manifest


def packed_clips(clips: Sequence[Clip], store: Path, **settings: object) -> list[Clip]:
    """The clips as the manifest of a store has them."""
    rows = pack(clips, Packing(**settings).record, store, Limits(), workers=1)
    write_manifests("clips.jsonl", clips, rows, store)
    return read_manifest(store / "clips.jsonl")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def exact(videos, tmp_path_factory) -> list[Clip]:
    """The clips, every frame of them packed as it is, and a segment of one."""
    part = videos[2]._replace(video_id="part", start=0.4, end=0.8)
    store = tmp_path_factory.mktemp("store")
    return packed_clips([*videos, part], store, all=True, format="raw")


@pytest.fixture(scope="module")
def plain(videos) -> list[Clip]:
    return [*videos, videos[2]._replace(video_id="part", start=0.4, end=0.8)]


@pytest.mark.parametrize("rule", ["segments", "actionclip", "seconds"])
def test_every_rule_shows_the_frames_of_the_file(rule, exact, plain, tmp_path) -> None:
    for number, (size, fit) in enumerate(
        [(32, "crop"), (16, "crop"), (24, "whole"), (16, "squash")]
    ):
        asked = {"size": size, "frames": 8, "fit": fit, "rule": rule}
        store = FrameStore(tmp_path / f"packed-{number}", **asked)
        other = FrameStore(tmp_path / f"files-{number}", **asked)
        assert store.fill(exact, 3, "packed") == exact
        assert other.fill(plain, 3, "files") == plain
        assert not list(store.folder.iterdir()), "nothing is decoded into a folder"
        for one, same in zip(exact, plain, strict=True):
            for take in range(3):
                assert torch.equal(store.read(one, 3, take), other.read(same, 3, take))
            assert torch.equal(store.decoded(one, 3), other.decoded(same, 3))


def test_views_are_read_without_a_folder(exact, plain, tmp_path) -> None:
    for views in (views_named("4x3", size=16), Views(clips=2, size=16, seconds=0.4)):
        store, other = (FrameStore(tmp_path / name, size=16, frames=4) for name in "ab")
        assert store.fill_views(exact, views, "packed") == exact
        assert other.fill_views(plain, views, "files") == plain
        assert not list(store.folder.iterdir())
        for one, same in zip(exact, plain, strict=True):
            assert torch.equal(store.read_views(one, views), other.read_views(same, views))


def test_an_epoch_of_batches_is_the_same(exact, plain, one_epoch, tmp_path) -> None:
    epochs = []
    for name, clips in (("packed", exact), ("files", plain)):
        store = FrameStore(tmp_path / name, size=16, frames=4)
        store.fill(clips, 3, name)
        epochs.append(one_epoch(clips, store, 0, 1, workers=2 if name == "packed" else 0))
    for one, same in zip(*epochs, strict=True):
        assert one.names == same.names
        assert torch.equal(one.frames.pixels, same.frames.pixels)
        assert torch.equal(one.frames.mask, same.frames.mask)


@pytest.mark.parametrize(
    ("form", "least"), [("jpeg", 38.0), ("h264", 30.0), ("raw", np.inf)]
)  # fmt: skip
@pytest.mark.parametrize("shape", [(67, 121), (96, 64)])
def test_any_frame_of_any_format_is_the_scaled_frame(form, least, shape, tmp_path) -> None:
    path = files.write_video(
        tmp_path / "a.mp4", files.pattern(40, *shape), pixel_format="yuv444p"
    )  # fmt: skip
    [clip] = packed_clips([Clip("a", path)], tmp_path / "s", all=True, format=form, short_side=33)
    with open_video(path) as source, open_video(clip.path) as video:
        assert np.array_equal(video.timestamps, source.timestamps)
        assert video.rate == source.rate == 25.0
        height, width = kept_size(*shape, 33)
        assert min(height, width) == 33
        every = [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            for frame in source.read(range(40))
        ]
        for indices in ([0], [39], [13, 25, 12, 11], [7, 7, 30], list(range(40))):
            found = video.read(np.array(indices))
            assert found.shape == (len(indices), height, width, 3)
            for frame, index in zip(found, indices, strict=True):
                near = [psnr(frame, other) for other in every]
                assert near[index] >= least
                assert near[index] == max(near)
        with pytest.raises(IndexError):
            video.read([40])
        assert video.read(np.array([], dtype=int)).shape == (0, height, width, 3)


def test_the_quality_rises_until_the_picture_is_kept(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    path = files.write_video(
        tmp_path / "a.mp4", noise, codec="libx264rgb", pixel_format="rgb24", options={"qp": "0"}
    )
    sizes = []
    for number, wanted in enumerate((0.0, 38.0)):
        settings = {"all": True, "psnr": wanted}
        [clip] = packed_clips([Clip("a", path)], tmp_path / f"s{number}", **settings)
        with open_video(path) as source, open_video(clip.path) as video:
            pairs = zip(video.read(range(4)), source.read(range(4)), strict=True)
            found = [psnr(one, other) for one, other in pairs]
            assert video.head["psnr"] == round(min(found), 2)
            sizes.append(sum(video.head["sizes"]))
        assert (min(found) >= 38) == (wanted == 38)
    assert sizes[1] > sizes[0]


def test_a_rate_keeps_the_frames_that_are_being_shown(tmp_path) -> None:
    even = files.write_video(tmp_path / "even.mp4", files.pattern(60))
    moments = [0, 0.1, 0.15, 0.9, 1.0, 1.05, 2.4]
    uneven = files.write_video(
        tmp_path / "uneven.mp4", files.pattern(7), seconds=moments
    )  # fmt: skip
    clips = [Clip("even", even), Clip("uneven", uneven)]
    for number, (settings, expected) in enumerate(
        [
            ({"rate": 2.0}, [[0, 0.48, 1.0, 1.48, 2.0], [0, 0.15, 1.0, 1.05]]),
            ({"rate": 5.0}, [np.arange(0, 60, 5) / 25, [0, 0.15, 1.0, 1.05, 2.4]]),
            ({"rate": 1.0}, [[0, 1, 2], [0, 1.0, 1.05]]),
            ({"frames": 3}, [[0.4 - 0.04, 1.2 - 0.04, 2.0 - 0.04], [0, 0.9, 1.05]]),
            ({"all": True}, [np.arange(60) / 25, moments]),
            ({"rate": 100.0}, [np.arange(60) / 25, moments]),
        ]
    ):
        found = packed_clips(clips, tmp_path / str(number), format="raw", **settings)
        for clip, times in zip(found, expected, strict=True):
            with open_video(clip.path) as video:
                assert np.allclose(video.timestamps, np.unique(times), atol=1e-6)
    with open_video(found[0].path) as video:
        assert video.rate == 25.0


def test_a_rate_of_one_is_clip4clips_second(tmp_path) -> None:
    path = files.write_video(tmp_path / "a.mp4", files.pattern(130))
    store = {"size": 32, "frames": 4, "rule": "seconds"}
    [clip] = packed_clips([Clip("a", path)], tmp_path / "s", rate=1.0, format="raw")
    one, other = FrameStore(tmp_path / "x", **store), FrameStore(tmp_path / "y", **store)
    other.fill([Clip("a", path)], 1, "file")
    assert torch.equal(one.read(clip, 1), other.read(Clip("a", path), 1))


def test_small_videos_stay_and_are_enlarged_with_a_word(tmp_path, capsys) -> None:
    small = files.write_video(tmp_path / "small.mp4", files.pattern(5, 32, 48))
    large = files.write_video(tmp_path / "large.mp4", files.pattern(5, 96, 128))
    for name, path, said in (("small", small, False), ("large", large, True)):
        [clip] = packed_clips([Clip("a", path)], tmp_path / name, short_side=48, all=True)
        store = FrameStore(tmp_path / f"{name}-frames", size=64, frames=4)
        assert store.fill([clip], 1, name)
        assert store.read(clip, 1).shape == (4, 3, 64, 64)
        assert ("they are enlarged; pack with --short-side 64" in capsys.readouterr().out) == said


def test_what_is_gone_or_damaged_is_said(videos, tmp_path) -> None:
    clips = packed_clips(videos[:2], tmp_path / "s", all=True)
    [shard] = (tmp_path / "s/shards").iterdir()
    store = FrameStore(tmp_path / "f", size=16, frames=4)
    with pytest.raises(VideoError, match="knows no 0000"):
        store.read(clips[0]._replace(path=clips[0].path.with_name("0" * 32)), 1)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 3])
    packed._open.cache_clear()
    with pytest.raises(VideoError, match=r"cannot be read from .*000000.tar .*pack again"):
        store.read(clips[1], 1)
    with_noise = bytearray(content)
    with_noise[512:4000] = os.urandom(3488)
    shard.write_bytes(with_noise)
    packed._open.cache_clear()
    with pytest.raises(VideoError, match="cannot be read from"):
        store.read(clips[0], 1)
    shard.unlink()
    packed._open.cache_clear()
    with pytest.raises(VideoError, match=r"shard .*000000.tar cannot be opened.*pack again"):
        store.read(clips[0], 1)
    (tmp_path / "s/index.parquet").unlink()
    assert store.fill(clips, 1, "gone") == []
    assert "index.parquet is not there" in store.unreadable["v0"]


def test_many_shards_need_few_file_descriptors(tmp_path) -> None:
    """And memory stays where it is, however many clips are read."""
    paths = [tmp_path / f"{number}.tar" for number in range(3 * packed.OPEN)]
    for path in paths:
        path.write_bytes(path.name.encode())
    before = open_files()
    for path in paths:
        assert os.pread(packed._open(path).number, 20, 0) == path.name.encode()
    assert open_files() <= before + packed.OPEN + 1
    packed._open.cache_clear()
    assert open_files() <= before


def test_reading_again_and_again_takes_no_more_memory(exact, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=8)

    def read(times: int) -> int:
        for number in range(times):
            store.read(exact[number % len(exact)], 3, number % 3)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = read(300)
    assert read(1500) <= before + 4_000, "kilobytes"


def test_the_identity_of_a_packed_clip_is_its_content(exact, videos, tmp_path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(exact[0].path.parents[1])
    store = FrameStore(tmp_path / "f", size=16, frames=8)
    elsewhere = exact[0]._replace(path=moved / "index.parquet" / exact[0].path.name)
    assert store.key(elsewhere, 3) == store.key(exact[0], 3) != store.key(exact[1], 3)
    assert store.key(exact[0], 3) != store.key(videos[0], 3)
    write_manifest(tmp_path / "m.jsonl", [elsewhere])
    assert torch.equal(store.read(elsewhere, 1), store.read(exact[0], 1))
