"""Features that are kept: what the tower makes of each frame, made once, whoever makes them."""

import os
import signal
from pathlib import Path

import clips as files
import pytest
import torch
from models import SIZE, build

from videoclip.errors import VideoclipError
from videoclip.features import store as feature_store
from videoclip.features.fingerprint import text_fingerprint, visual_fingerprint
from videoclip.features.store import FeatureStore, Look
from videoclip.frames.augment import augment
from videoclip.frames.store import FrameStore
from videoclip.frames.views import views_named
from videoclip.manifest import Clip

TAKES = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    lengths = enumerate([12, 3, 20, 9])
    return [
        Clip(f"v{n}", files.write_video(folder / f"{n}.mp4", files.pattern(f, 32, 48)))
        for n, f in lengths
    ]


def store_of(folder: Path, look: Look | None = None, model=None, **options) -> FeatureStore:
    frames = FrameStore(folder / "frames", **({"size": SIZE, "frames": 5} | options))
    return FeatureStore(folder / "features", model or build(), frames, look)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def expected(store: FeatureStore, clip: Clip, take: int) -> torch.Tensor:
    with torch.no_grad():
        return build().encode_frames(store.frames.read(clip, TAKES, take)[None])[0]


def test_features_are_what_the_tower_makes_of_the_kept_frames(videos, tmp_path) -> None:
    store = store_of(tmp_path)
    store.frames.fill(videos, TAKES, "frames")
    assert store.fill(build(), videos, TAKES, "clips") == videos
    for clip in videos:
        for take in range(TAKES):
            close(store.read(clip, TAKES, take), expected(store, clip, take))
    assert len(store.read(videos[1], TAKES)) == 3
    assert not torch.equal(store.read(videos[2], TAKES, 1), store.read(videos[2], TAKES, 2))


def test_frames_that_are_not_kept_are_decoded_and_give_the_same(videos, tmp_path) -> None:
    kept, decoded = store_of(tmp_path / "kept"), store_of(tmp_path / "decoded")
    kept.frames.fill(videos, TAKES, "frames")
    for store, workers in ((kept, 0), (decoded, 2)):
        store.fill(build(), videos, TAKES, "clips", workers=workers)
    assert not list(decoded.frames.folder.iterdir())
    for clip in videos:
        assert torch.equal(kept.read(clip, TAKES, 2), decoded.read(clip, TAKES, 2))


def test_the_rule_seconds_draws_nothing_but_the_crop(tmp_path) -> None:
    path = files.write_video(tmp_path / "long.mp4", files.pattern(60, 32, 48))
    clip, store = Clip("long", path), store_of(tmp_path, Look("crop", 0.5), rule="seconds")
    store.fill(build(), [clip], TAKES, "clips")
    takes = [store.read(clip, TAKES, take) for take in range(TAKES)]
    assert {len(take) for take in takes} == {3}
    assert not torch.equal(takes[0], takes[1])


@pytest.mark.parametrize("recipe", ["crop", "actionclip"])
def test_what_training_changes_is_drawn_once_per_take(recipe: str, videos, tmp_path) -> None:
    fit = "crop" if recipe == "crop" else "whole"
    store = store_of(tmp_path, Look(recipe, 0.5, mirror=False), fit=fit)
    clip = videos[2]
    store.frames.fill([clip], TAKES, "frames")
    store.fill(build(), [clip], TAKES, "clips")
    for take in range(TAKES):
        pixels = augment(
            store.frames.read(clip, TAKES, take), SIZE, recipe, smallest=0.5, mirror=False,
            seed=0, epoch=take, sample=f"{clip.path.name} None None",
        )  # fmt: skip
        with torch.no_grad():
            close(store.read(clip, TAKES, take), build().encode_frames(pixels[None])[0])
    # A sample of another name, as of one caption, and another run read the same.
    again = store_of(tmp_path, Look(recipe, 0.5, mirror=False), fit=fit)
    sample = clip._replace(video_id="v2#1")
    assert torch.equal(again.read(sample, TAKES, 1), store.read(clip, TAKES, 1))


def test_views_have_features_too(videos, tmp_path) -> None:
    views = views_named("2x3", size=SIZE)
    store = store_of(tmp_path)
    store.frames.fill_views(videos, views, "frames")
    store.fill(build(), videos, views, "clips")
    with torch.no_grad():
        shown = build().encode_frames(store.frames.read_views(videos[2], views))
    close(store.read_views(videos[2], views), shown)


def test_half_precision_is_half_the_size(videos, tmp_path) -> None:
    single, half = store_of(tmp_path), store_of(tmp_path, Look(kind="float16"))
    for store in (single, half):
        store.fill(build(), videos, 1, "clips")
    found = half.read(videos[2], 1)
    assert found.dtype == torch.float32
    assert torch.equal(found, single.read(videos[2], 1).half().float())


def test_other_towers_looks_files_and_frames_are_other_features(videos, tmp_path) -> None:
    store = store_of(tmp_path)
    store.fill(build(), videos[:1], 1, "clips")
    other = build()
    other.clip.visual.proj.data += 1e-6
    for another in (
        store_of(tmp_path, model=other),
        store_of(tmp_path, Look("crop", 0.5)),
        store_of(tmp_path, Look(kind="float16")),
        store_of(tmp_path, frames=4),
    ):
        with pytest.raises(VideoclipError, match="the features of v0 are not in"):
            another.read(videos[0], 1)
    changed = build(head="lstm", scorer="tight")
    changed.clip.load_state_dict(build().clip.state_dict())
    changed.clip.text_projection.data += 1
    changed.clip.logit_scale.data += 1
    assert visual_fingerprint(changed) == visual_fingerprint(build())
    assert text_fingerprint(changed) != text_fingerprint(build())
    again = store_of(tmp_path, model=changed).read(videos[0], 1)
    assert torch.equal(again, store.read(videos[0], 1))


def test_bad_clips_are_listed_and_the_others_go_on(videos, tmp_path) -> None:
    broken = files.cut(files.write_video(tmp_path / "b.mp4", files.pattern(9)), 0.2)
    bad = [Clip("broken", broken), Clip("gone", tmp_path / "gone.mp4")]
    for workers in (0, 2):
        store = store_of(tmp_path / str(workers))
        twin = Clip("twin", broken)
        good = store.fill(build(), [bad[0], *videos, bad[1], twin], 1, "clips", workers=workers)
        assert good == videos
        assert set(store.unreadable) == {"broken", "gone", "twin"}
        assert "gone.mp4" in store.unreadable["gone"]


def test_what_is_there_is_not_made_again(videos, tmp_path, monkeypatch) -> None:
    made = []
    embed = feature_store.embed
    monkeypatch.setattr(feature_store, "embed", lambda m, p: made.append(len(p)) or embed(m, p))
    store_of(tmp_path).fill(build(), videos[:2], 1, "clips")
    store_of(tmp_path).fill(build(), videos, 1, "clips")
    again = store_of(tmp_path)
    again.fill(build(), videos, 1, "clips")
    assert len(made) == len(videos)


def test_a_kill_costs_no_more_than_one_shard(videos, tmp_path, monkeypatch) -> None:
    """The process dies by SIGKILL while it embeds the third clip, with a shard for each."""
    monkeypatch.setattr(feature_store, "CLIPS", 1)
    embed, done = feature_store.embed, []

    def mortal(model, pixels):
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(model, pixels)

    child = os.fork()
    if child == 0:
        feature_store.embed = mortal
        store_of(tmp_path / "killed").fill(build(), videos, 1, "clips")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed, straight = store_of(tmp_path / "killed"), store_of(tmp_path / "straight")
    assert len(resumed.shards) == 2
    monkeypatch.setattr(feature_store, "embed", lambda m, p: done.append(1) or embed(m, p))
    resumed.fill(build(), videos, 1, "clips")
    assert len(done) == len(videos) - 2
    straight.fill(build(), videos, 1, "clips")
    keys = [straight.frames.key(clip, 1) for clip in videos]
    assert sorted(resumed.shards) == sorted(straight.shards) == sorted(keys)
    for clip in videos:
        assert torch.equal(resumed.read(clip, 1), straight.read(clip, 1))


def test_a_damaged_shard_is_told_and_made_again(videos, tmp_path, capsys) -> None:
    store = store_of(tmp_path)
    store.fill(build(), videos, 1, "clips")
    before = store.read(videos[0], 1).clone()
    [shard] = store.folder.glob("*.safetensors")
    shard.with_name("copy.safetensors").write_bytes(shard.read_bytes())
    files.cut(shard.with_name("copy.safetensors"), 0.7)
    shard.unlink()
    again = store_of(tmp_path)
    assert not again.shards
    assert "copy.safetensors is damaged" in capsys.readouterr().out
    again.fill(build(), videos, 1, "clips")
    assert torch.equal(again.read(videos[0], 1), before)


def test_a_full_disk_is_one_clear_error(videos, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("videoclip.features.shards.save_file", full)
    with pytest.raises(VideoclipError, match=r"No space left.*--run.features"):
        store_of(tmp_path).fill(build(), videos, 1, "clips")
