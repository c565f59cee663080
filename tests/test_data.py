"""Clips become batches: decoded once, and every draw a pure function of (seed, epoch, video)."""

import clips as files
import numpy as np
import pytest
import torch

from videoclip.data import FrameStore, batches, collate
from videoclip.decode import open_video
from videoclip.errors import VideoclipError
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.sampling import uniform_indices
from videoclip.tokenizer import Tokenizer
from videoclip.transforms import random_crop, resize_and_crop


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number, frames in enumerate([12, 5, 30, 3, 12, 12, 12]):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(frames, width=48, height=32))
        made.append(Clip(f"v{number}", path, (f"caption {number}", f"another {number}")))
    return made


def one_epoch(videos: list[Clip], store: FrameStore, seed: int, epoch: int, crop: float = 0.5):
    return list(
        batches(
            videos, store, Tokenizer(16),
            batch_size=3, takes=3, crop=crop, seed=seed, epoch=epoch,
        )
    )  # fmt: skip


def test_every_clip_once_per_epoch_in_nearly_equal_batches(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=8)
    assert store.fill(videos, 3, "clips") == videos
    found = one_epoch(videos, store, 0, 1)
    assert [len(batch.names) for batch in found] == [3, 2, 2]
    assert sorted(name for batch in found for name in batch.names) == [c.video_id for c in videos]
    for batch in found:
        assert batch.frames.pixels.dtype == torch.uint8
        for name, mask in zip(batch.names, batch.frames.mask, strict=True):
            assert mask.sum() == {"v1": 5, "v3": 3}.get(name, 8)
            assert (~mask).sum() == len(mask) - mask.sum()


def test_draws_are_pure_functions_of_seed_epoch_and_video(videos, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=8)
    store.fill(videos, 3, "clips")
    first, again = one_epoch(videos, store, 0, 1), one_epoch(videos, store, 0, 1)
    for one, two in zip(first, again, strict=True):
        assert one.names == two.names
        assert torch.equal(one.frames.pixels, two.frames.pixels)
        assert torch.equal(one.ids, two.ids)
    other = one_epoch(videos, store, 0, 2)
    assert [b.names for b in other] != [b.names for b in first]
    # The same clip in another company: what it shows does not depend on the others.
    fewer = one_epoch(videos[:3], store, 0, 1)
    rows = {
        name: (batch.frames.pixels[i][batch.frames.mask[i]], batch.ids[i])
        for batch in first
        for i, name in enumerate(batch.names)
    }
    for batch in fewer:
        for i, name in enumerate(batch.names):
            assert torch.equal(batch.frames.pixels[i][batch.frames.mask[i]], rows[name][0])
            assert torch.equal(batch.ids[i], rows[name][1])


def test_equal_captions_are_matches(videos, tmp_path) -> None:
    same = [clip._replace(captions=("the same",)) for clip in videos[:2]] + [videos[2]]
    store = FrameStore(tmp_path, size=16, frames=8)
    store.fill(same, 3, "clips")
    [batch] = one_epoch(same, store, 0, 1)
    for i, one in enumerate(batch.names):
        for j, two in enumerate(batch.names):
            assert batch.matches[i, j] == (one == two or {one, two} == {"v0", "v1"})


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
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    found = resize_and_crop(picture[None], 32)[0].permute(1, 2, 0).numpy()
    small = Image.fromarray(picture).resize((int(160 * 32 / 90), 32), Image.Resampling.BICUBIC)
    left = round((small.width - 32) / 2)
    expected = np.asarray(small.crop((left, 0, left + 32, 32)))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_crop_is_the_same_for_all_frames_of_a_clip() -> None:
    frame = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    cropped = random_crop(frame.expand(5, -1, -1, -1), 0.3, seed=0, epoch=1, sample="a")
    assert (cropped == cropped[0]).all()
    other = random_crop(frame, 0.3, seed=0, epoch=2, sample="a")
    assert not torch.equal(cropped[:1], other)
    state = torch.random.get_rng_state()
    assert torch.equal(random_crop(frame, 0.3, seed=0, epoch=2, sample="a"), other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_numbers_depend_on_the_whole_key() -> None:
    keys = [(0, 1, "a"), (0, 1, "b"), (1, 0, "a"), (0, "1", "a"), (0, 1, "a", "")]
    draws = [generator(*key).integers(2**60) for key in keys]
    assert len(set(draws)) == len(keys)
    assert generator(0, 1, "a").integers(2**60) == draws[0]
    assert draws[0] == 396831452215372686, "results of earlier runs must stay the same"


def test_collate_pads_at_the_end() -> None:
    frames = collate([torch.ones(2, 3, 4, 4), torch.ones(1, 3, 4, 4)])
    assert frames.pixels.shape == (2, 2, 3, 4, 4)
    assert frames.mask.tolist() == [[True, True], [True, False]]
    assert frames.pixels[1, 1].sum() == 0
