"""Clips become batches: decoded once, and every draw a pure function of (seed, epoch, video)."""

import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips as files
import numpy as np
import pytest
import torch

from videoclip import distributed
from videoclip.errors import VideoclipError
from videoclip.frames import ahead
from videoclip.frames import store as frame_store
from videoclip.frames.loader import collate, number_of_batches
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import random_crop
from videoclip.manifest import Clip
from videoclip.randomness import generator
from videoclip.tasks import Recognition
from videoclip.types import Batch, Keys


def test_every_clip_once_per_epoch_in_nearly_equal_batches(one_epoch, videos, tmp_path) -> None:
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


def test_draws_are_pure_functions_of_seed_epoch_and_video(one_epoch, videos, tmp_path) -> None:
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


def test_equal_captions_are_matches(one_epoch, videos, tmp_path) -> None:
    same = [clip._replace(captions=("the same",)) for clip in videos[:2]] + [videos[2]]
    store = FrameStore(tmp_path, size=16, frames=8)
    store.fill(same, 3, "clips")
    [batch] = one_epoch(same, store, 0, 1)
    for i, one in enumerate(batch.names):
        for j, two in enumerate(batch.names):
            assert batch.matches[i, j] == (one == two or {one, two} == {"v0", "v1"})


def equal(one: list[Batch], two: list[Batch]) -> bool:
    """Whether all parts of all batches are the same, to the last bit."""

    def same(a: Batch, b: Batch) -> bool:
        tensors = zip((*a.frames, a.ids, a.matches, *a.keys[:3]),
                      (*b.frames, b.ids, b.matches, *b.keys[:3]), strict=True)  # fmt: skip
        alike = all(x.dtype == y.dtype and torch.equal(x, y) for x, y in tensors)
        told = [(x.names, x.keys.shared, x.bad) for x in (a, b)]
        return alike and told[0] == told[1]

    return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))


LABELS = ("run", "jump", "run", "sit", "jump", "run", "run")


@pytest.fixture
def actions(videos) -> list[Clip]:
    return [clip._replace(label=name) for clip, name in zip(videos, LABELS, strict=True)]


@pytest.mark.parametrize("mix", ["none", "mixup-cutmix"])
def test_workers_and_interruptions_change_nothing(one_epoch, actions, tmp_path, mix: str) -> None:
    store = FrameStore(tmp_path, size=18, frames=4, fit="whole")
    store.fill(actions, 3, "clips")
    options = {"size": 16, "augment": "actionclip-randaugment", "mix": mix,
               "texts": partial(Recognition().texts, classes=("jump", "run", "sit"))}  # fmt: skip
    alone = one_epoch(actions, store, 0, 1, **options)
    assert len(alone) == number_of_batches(7, 3) == 3
    assert equal(alone, one_epoch(actions, store, 0, 1, **options))
    assert not equal(alone, one_epoch(actions, store, 0, 2, **options))
    for workers in (1, 2):
        assert equal(alone, one_epoch(actions, store, 0, 1, workers=workers, **options))
    for start in (1, 2, 3):
        assert equal(alone[start:], one_epoch(actions, store, 0, 1, start=start, **options))


def test_labels_make_the_matches_and_templates_are_drawn_for_each_clip(
    one_epoch, actions, tmp_path
) -> None:
    store = FrameStore(tmp_path, size=16, frames=4)
    store.fill(actions, 3, "clips")
    classes = ("jump", "run", "sit")
    label = {clip.video_id: clip.label for clip in actions}
    drawn = set()
    for epoch in range(1, 9):
        for batch in one_epoch(
            actions, store, 0, epoch, texts=partial(Recognition().texts, classes=classes)
        ):
            names = [label[name] for name in batch.names]
            assert batch.matches.tolist() == [[a == b for b in names] for a in names]
            assert torch.equal(batch.keys.matches(), batch.matches)
            drawn |= {tuple(row.tolist()) for row in batch.ids}
    assert len(drawn) > 20, "16 templates of 3 classes"
    texts = partial(Recognition(targets="classes").texts, classes=classes)
    for batch in one_epoch(actions, store, 0, 1, texts=texts):
        assert batch.ids.shape == (3, 16)
        assert batch.matches.tolist() == [[label[n] == c for n in batch.names] for c in classes]


def test_mixed_batches_have_shares_of_both_labels(one_epoch, actions, tmp_path) -> None:
    store = FrameStore(tmp_path, size=16, frames=4)
    store.fill(actions, 3, "clips")
    classes = ("jump", "run", "sit")
    label = {clip.video_id: clip.label for clip in actions}
    texts = partial(Recognition(targets="classes").texts, classes=classes)
    options = {"texts": texts, "crop": 1.0}
    plain = one_epoch(actions, store, 0, 1, **options)
    for pure, mixed in zip(plain, one_epoch(actions, store, 0, 1, mix="mixup-cutmix", **options),
                           strict=True):  # fmt: skip
        assert mixed.names == pure.names
        assert torch.equal(mixed.frames.mask, pure.frames.mask)
        assert torch.allclose(mixed.matches.sum(0), torch.ones(len(pure.names)))
        names = [label[name] for name in pure.names]
        for number, name in enumerate(names):
            other = names[(number + 1) % len(names)]
            shares = dict(zip(classes, mixed.matches[:, number].tolist(), strict=True))
            assert {c for c, share in shares.items() if share > 0} <= {name, other}


def test_nothing_is_mirrored_where_a_label_says_left(one_epoch, videos, tmp_path) -> None:
    ramp = np.tile(np.linspace(20, 230, 64).astype(np.uint8)[None, None, :, None], (4, 64, 1, 3))
    path = files.write_video(tmp_path / "ramp.mp4", ramp)

    def mirrored(label: str) -> int:
        clips = [Clip(f"v{n}", path, ("a ramp",), label=label) for n in range(30)]
        store = FrameStore(tmp_path / "frames", size=36, frames=2, fit="whole")
        store.fill(clips[:1], 1, "clips")
        found = one_epoch(clips, store, 0, 1, takes=1, size=32, augment="actionclip")
        pixels = torch.cat([batch.frames.pixels for batch in found]).float()
        slopes = pixels[..., -1].mean((1, 2, 3)) - pixels[..., 0].mean((1, 2, 3))
        return int((slopes < 0).sum())

    assert mirrored("pushing something from left to right") == 0
    assert 6 <= mirrored("pushing something") <= 24


def parts_of(
    one_epoch: Callable[..., list[Batch]],
    clips: list[Clip],
    folder: Path,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> list[list[Batch]]:
    """What each of several processes gets, played one after the other."""
    found = []
    for rank in range(count):
        for module in (frame_store, distributed):
            monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(module, "world_size", lambda: count)
        store = FrameStore(folder, size=16, frames=4)
        assert store.fill(clips, 3, "clips") == clips
        found.append(one_epoch(clips, store, 0, 1, **options))
    return found


@pytest.mark.parametrize("mix", ["none", "mixup-cutmix"])
def test_processes_get_parts_of_the_same_batches(
    one_epoch, actions, tmp_path, monkeypatch, mix: str
) -> None:
    options = {"mix": mix, "texts": partial(Recognition().texts, classes=("jump", "run", "sit"))}
    [whole] = parts_of(one_epoch, actions, tmp_path / "alone", 1, monkeypatch, **options)
    for count in (2, 3):
        parts = parts_of(one_epoch, actions, tmp_path / "together", count, monkeypatch, **options)
        for number, batch in enumerate(whole):
            own = [part[number] for part in parts]
            assert tuple(chain(*(part.names for part in own))) == batch.names
            assert max(len(part.names) for part in own) - min(len(p.names) for p in own) <= 1
            shown = [clip[m] for part in own for clip, m in zip(*part.frames, strict=True)]
            for clip, expected, mask in zip(shown, *batch.frames, strict=True):
                assert torch.equal(clip, expected[mask])
            assert torch.equal(torch.cat([part.ids for part in own]), batch.ids)
            text, clip, weight = (torch.cat([part.keys[n] for part in own]) for n in range(3))
            assert torch.equal(Keys(text, clip, weight).matches(), batch.matches)
            for part in own:
                assert torch.equal(part.keys.matches(), part.matches)
    assert len(list((tmp_path / "together").iterdir())) == len(actions)


def test_more_processes_than_samples(one_epoch, videos, tmp_path, monkeypatch) -> None:
    clips = [clip._replace(label="run") for clip in videos[:2]]
    options = {"mix": "mixup-cutmix", "texts": partial(Recognition().texts, classes=("run",))}
    parts = parts_of(one_epoch, clips, tmp_path / "frames", 3, monkeypatch, **options)
    assert [len(batch.names) for [batch] in parts] == [1, 1, 0]
    nothing = parts[2][0]
    assert nothing.frames.pixels.shape == (0, 1, 3, 16, 16)
    assert nothing.frames.mask.dtype == torch.bool
    assert nothing.keys.clip.shape == (0, 2)


def spoiled(clips: list[Clip], folder: Path) -> tuple[list[Clip], FrameStore, dict[str, str]]:
    """Clips of which four can no longer be read, and what is wrong with them."""
    own = []
    for clip in clips:
        path = folder / clip.path.name
        shutil.copy2(clip.path, path)
        own.append(clip._replace(path=path))
    store = FrameStore(folder / "frames", size=16, frames=4)
    assert store.fill(own, 3, "clips") == own
    own[0].path.unlink()
    with store._path(own[1], 3).open("r+b") as file:
        file.truncate(200)
    store._path(own[2], 3).write_bytes(b"")
    np.save(store._path(own[3], 3), np.zeros((3, 0, 3, 16, 16), dtype=np.uint8))
    reasons = {"v0": "no longer there", "v1": "is damaged", "v2": "is damaged", "v3": "no frame"}
    return own, store, reasons


RUN = {"texts": partial(Recognition().texts, classes=("jump", "run", "sit"))}


@pytest.mark.parametrize("mix", ["none", "mixup-cutmix"])
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_samples_that_cannot_be_read_are_counted_and_the_rest_is_trained(
    one_epoch, actions, tmp_path, policy: str, mix: str
) -> None:
    clips, store, reasons = spoiled(actions, tmp_path)
    options = {"bad_samples": policy, "mix": mix} | RUN
    replaced = set()
    for epoch in (1, 2):
        found = one_epoch(clips, store, 0, epoch, **options)
        bad = [one for batch in found for one in batch.bad]
        assert {one.name for one in bad} == set(reasons)
        assert all(reasons[one.name] in one.reason for one in bad)
        names = [name for batch in found for name in batch.names]
        replaced.add(tuple(one.instead for one in sorted(bad)))
        if policy == "skip":
            assert [len(batch.names) for batch in found] == [3, 2, 2]
            assert Counter(names) == Counter(["v4", "v5", "v6", *(one.instead for one in bad)])
        else:
            assert sorted(names) == ["v4", "v5", "v6"]
            assert all(one.instead is None for one in bad)
        for batch in found:
            assert batch.frames.mask.any(1).all(), "no clip is empty"
            assert len(batch.frames.mask) == len(batch.names) == batch.matches.shape[1]
        for workers in (1, 2):
            assert equal(found, one_epoch(clips, store, 0, epoch, workers=workers, **options))
        assert equal(found[1:], one_epoch(clips, store, 0, epoch, start=1, **options))
    assert len(replaced) == (2 if policy == "skip" else 1)


@pytest.mark.parametrize("mix", ["none", "mixup-cutmix"])
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_processes_replace_the_same_samples(
    one_epoch, actions, tmp_path, monkeypatch, policy: str, mix: str
) -> None:
    clips, store, _ = spoiled(actions, tmp_path)
    options = {"bad_samples": policy, "mix": mix} | RUN
    whole = one_epoch(clips, store, 0, 1, **options)
    for count in (2, 3):
        parts = []
        for rank in range(count):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "world_size", lambda count=count: count)
            parts.append(one_epoch(clips, store, 0, 1, **options))
        for number, batch in enumerate(whole):
            own = [part[number] for part in parts]
            assert tuple(chain(*(part.names for part in own))) == batch.names
            assert tuple(chain(*(part.bad for part in own))) == batch.bad
            shown = [clip[m] for part in own for clip, m in zip(*part.frames, strict=True)]
            for clip, expected, mask in zip(shown, *batch.frames, strict=True):
                assert torch.equal(clip, expected[mask])


def test_what_is_read_in_place_of_another_is_what_it_is_in_its_own_turn(
    one_epoch, videos, tmp_path
) -> None:
    clips, store, _ = spoiled(videos, tmp_path)
    rows: dict[str, list[tuple]] = {}
    for batch in one_epoch(clips, store, 0, 1):
        for number, name in enumerate(batch.names):
            pixels = batch.frames.pixels[number][batch.frames.mask[number]]
            rows.setdefault(name, []).append((batch.ids[number], pixels))
    assert sum(map(len, rows.values())) == 7
    for first, *others in rows.values():
        assert all(torch.equal(a, b) for one in others for a, b in zip(first, one, strict=True))


def test_a_batch_without_a_readable_sample_is_empty(one_epoch, actions, tmp_path) -> None:
    clips, store, _ = spoiled(actions, tmp_path)
    for mix in ("none", "mixup-cutmix"):
        [batch] = one_epoch(clips[:3], store, 0, 1, bad_samples="zero", mix=mix, **RUN)
        assert batch.frames.pixels.shape == (0, 1, 3, 16, 16)
        assert (batch.names, batch.ids.shape, batch.matches.shape) == ((), (0, 16), (0, 0))
        assert len(batch.bad) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_training_can_fail_at_the_first_bad_sample(
    one_epoch, videos, tmp_path, workers: int
) -> None:
    clips, store, _ = spoiled(videos, tmp_path)
    with pytest.raises(VideoclipError, match=r"0\.mp4 is no longer there: No such file") as error:
        one_epoch(clips[:1], store, 0, 1, workers=workers, bad_samples="fail")
    assert "\n" not in str(error.value)
    with pytest.raises(VideoclipError, match="none of 20 others that were drawn in its place"):
        one_epoch(clips[:3], store, 0, 1, workers=workers)


@pytest.mark.parametrize("policy", ["skip", "zero", "fail"])
def test_a_sample_that_ends_who_reads_it_is_a_bad_one(
    one_epoch, videos, tmp_path, monkeypatch, policy: str
) -> None:
    store = FrameStore(tmp_path, size=16, frames=4)
    store.fill(videos, 3, "clips")
    read = FrameStore.read

    def deadly(self: FrameStore, clip: Clip, *more: int) -> torch.Tensor:
        return os._exit(3) if clip.video_id == "v2" else read(self, clip, *more)

    monkeypatch.setattr(FrameStore, "read", deadly)
    if policy == "fail":
        with pytest.raises(VideoclipError, match="has ended with status 3 while it read v2"):
            one_epoch(videos, store, 0, 1, workers=1, bad_samples=policy)
        return
    found = one_epoch(videos, store, 0, 1, workers=2, bad_samples=policy)
    [bad] = [one for batch in found for one in batch.bad]
    assert bad.name == "v2"
    assert "3 processes were lost that read it, at last: reader" in bad.reason
    assert sum(len(batch.names) for batch in found) == (7 if policy == "skip" else 6)


def test_spawned_processes_read_the_same(one_epoch, actions, tmp_path, monkeypatch) -> None:
    clips, store, _ = spoiled(actions, tmp_path)
    options = {"augment": "actionclip", "mix": "mixup-cutmix"} | RUN
    alone = one_epoch(clips, store, 0, 1, **options)
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(ahead, "multiprocessing", SimpleNamespace(get_context=lambda: spawn))
    assert equal(alone, one_epoch(clips, store, 0, 1, workers=1, **options))


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
