"""Moving shapes: real files, exact twins, and a codec that does not leak the order of frames."""

import json
from collections import Counter
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from data_prep.moving_shapes import (
    FRAMES,
    MOTIONS,
    generate,
    order_blind_ceiling,
    scenes,
)

WORLD = {"shapes": ["circle", "triangle"], "colors": ["red", "blue"]}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    return generate(folder, clips_per_caption=2, images=100, **WORLD)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_decord(path: Path) -> np.ndarray:
    reader = decord.VideoReader(str(path))
    return reader.get_batch(range(len(reader))).asnumpy()


def by_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def twins(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Rows of order captions that follow each other: the one is the other played backward."""
    ordered = [row for row in rows if row["group"] == "order"]
    return list(zip(ordered[::2], ordered[1::2], strict=True))


def test_the_world_has_180_captions_of_which_150_need_order() -> None:
    counted = Counter(len(scene.labels) for scene in scenes())
    assert counted == {2: 75, 1: 30}
    captions = {scene.caption(label) for scene in scenes() for label in scene.labels}
    assert len(captions) == 180


@pytest.mark.parametrize("decode", [by_decord, by_pyav])
def test_twins_decode_to_each_others_reversal_bit_by_bit(small: Path, decode) -> None:
    seen = set()
    for split in ("train", "val", "test"):
        for one, two in twins([row for row in rows_of(small) if row["split"] == split]):
            first, second = decode(small.parent / one["path"]), decode(small.parent / two["path"])
            assert first.shape == (FRAMES, 64, 64, 3)
            assert np.array_equal(first[::-1], second)
            assert not np.array_equal(first, second)
            seen.add(one["label"])
    assert {first for first, _ in MOTIONS} <= seen
    assert any(label.startswith("turns from") for label in seen)


@pytest.mark.parametrize("count", [4, 20])
def test_uniform_samples_of_twins_hold_the_same_frames(count: int) -> None:
    from videoclip.frames.sampling import uniform_indices

    indices = uniform_indices(FRAMES, count)
    assert sorted(FRAMES - 1 - indices) == sorted(indices)


def test_content_clips_are_not_told_apart_by_order(small: Path) -> None:
    """A blinking shape is seen in a pattern that is its own reversal."""
    for row in rows_of(small):
        if row["label"] == "blinks":
            frames = by_pyav(small.parent / row["path"]).astype(int)
            seen = np.ptp(frames, axis=(1, 2)).max(axis=1) > 60
            assert seen.any()
            assert not seen.all()
            assert np.array_equal(seen, seen[::-1])


def test_every_caption_once_in_val_and_test_and_splits_share_no_video(small: Path) -> None:
    rows = rows_of(small)
    for split, clips in (("train", 2), ("val", 1), ("test", 1)):
        counted = Counter(row["captions"][0] for row in rows if row["split"] == split)
        assert set(counted.values()) == {clips}
        assert len(counted) == 4 * 8 + 2 * 2
    contents = Counter((small.parent / row["path"]).read_bytes() for row in rows)
    shared = [data for data, times in contents.items() if times > 1]
    assert not shared


def test_images_teach_color_shape_place_and_size(small: Path) -> None:
    rows = rows_of(small.with_name("images.jsonl"))
    assert len(rows) == 100
    words = {word for row in rows for word in row["captions"][0].split()}
    assert {"red", "blue", "circle", "triangle", "left", "right", "small", "large"} <= words
    held_out = [row["captions"][0] for row in rows if row["split"] == "val"]
    assert len(held_out) == len(set(held_out)) == 2 * 2 * 2 * 5


def test_a_seed_gives_the_same_bytes_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", clips_per_caption=2, images=100, **WORLD)
    assert again.read_bytes() == small.read_bytes()
    for row in rows_of(small)[::7]:
        assert (again.parent / row["path"]).read_bytes() == (
            small.parent / row["path"]
        ).read_bytes()
    other = generate(tmp_path / "other", seed=1, clips_per_caption=1, images=100, **WORLD)
    row = rows_of(other)[0]
    assert (other.parent / row["path"]).read_bytes() != (small.parent / row["path"]).read_bytes()


def test_a_finished_folder_is_kept_and_a_half_written_one_redone(tmp_path: Path) -> None:
    world = {"shapes": ["square"], "colors": ["red"], "images": 20, "clips_per_caption": 1}
    manifest = generate(tmp_path, **world)
    video = manifest.parent / rows_of(manifest)[0]["path"]
    before = video.stat().st_mtime_ns
    generate(tmp_path, **world)
    assert video.stat().st_mtime_ns == before
    video.unlink()
    generate(tmp_path, **world)
    assert video.exists()
    (tmp_path / "moving_shapes.json").unlink()
    (tmp_path / "images.jsonl").unlink()
    generate(tmp_path, **world)
    assert (tmp_path / "images.jsonl").exists()


def test_the_ceiling_is_half_for_twins_and_one_for_the_rest() -> None:
    def row(caption: str, label: str) -> dict:
        return {"captions": [caption], "label": label}

    pair = [row("a red circle grows", "grows"), row("a red circle shrinks", "shrinks")]
    assert order_blind_ceiling(pair) == 0.5
    assert order_blind_ceiling([*pair, row("a red circle blinks", "blinks")]) == pytest.approx(
        2 / 3
    )
    assert order_blind_ceiling(pair[:1]) == 1, "without its twin a caption needs no order"
    with pytest.raises(ValueError, match="one clip per caption"):
        order_blind_ceiling([*pair, pair[0]])


def test_the_ceiling_of_the_whole_benchmark() -> None:
    rows = [
        {"captions": [scene.caption(label)], "label": label}
        for scene in scenes()
        for label in scene.labels
    ]
    assert order_blind_ceiling(rows) == pytest.approx(1 - 150 / 360)


@pytest.mark.parametrize(
    "wrong", [{"shapes": ["cube"]}, {"images": 3}, {"clips_per_caption": 0}, {"colors": []}]
)
def test_settings_without_a_world_are_refused(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(tmp_path, **wrong)
