"""The same video in train and test: by bytes, and re-encoded, by what it shows."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import pattern, write_video

from data_prep.captions import alike, telling_words
from data_prep.entries import Entry
from data_prep.leaks import Video, same_bytes, same_pictures, signature_of


def scene(seed: int, frames: int = 40) -> np.ndarray:
    """Smooth pictures that change with time, different for every seed: uint8 (F, 96, 128, 3)."""
    numbers = np.random.default_rng(seed)
    first, last = numbers.uniform(0, 255, (2, 6, 8, 3))
    part = np.linspace(0, 1, frames)[:, None, None, None]
    mixed = first * (1 - part) + last * part
    return np.kron(mixed, np.ones((1, 16, 16, 1))).astype(np.uint8)


def recoded(pixels: np.ndarray, path: Path, kind: str) -> Path:
    if kind == "small":
        return write_video(path, pixels[:, ::2, ::2], codec="mpeg4")
    if kind == "fewer frames":
        shown = [number * 2 / 25 for number in range(len(pixels) // 2)]
        return write_video(path, pixels[::2], seconds=shown, options={"crf": "32"})
    if kind == "black bars":
        wide = np.zeros((len(pixels), 128, 160, 3), dtype=np.uint8)
        wide[:, 16:112, 16:144] = pixels
        return write_video(path, wide)
    return write_video(path, (pixels * 0.8 + 20).astype(np.uint8), options={"crf": "30"})


@pytest.mark.parametrize("kind", ["small", "fewer frames", "black bars", "paler"])
def test_re_encoded_copies_are_found_and_others_are_not(kind: str, tmp_path: Path) -> None:
    videos = []
    for seed in range(6):
        split = "train" if seed < 4 else "test"
        path = write_video(tmp_path / f"{seed}.mp4", scene(seed))
        videos.append(Video(str(seed), split, path))
    copy = recoded(scene(2), tmp_path / "copy.mp4", kind)
    pairs, silent = same_pictures([*videos, Video("copy", "test", copy)])
    assert [{first.video_id, second.video_id} for first, second, _ in pairs] == [{"2", "copy"}]
    assert pairs[0][2] > 0.985
    assert silent == []
    unsplit = [video._replace(split=None) for video in [*videos, Video("copy", None, copy)]]
    pairs, _ = same_pictures(unsplit)
    assert [(first.video_id, second.video_id) for first, second, _ in pairs] == [("2", "copy")]


def test_alike_is_not_the_same(tmp_path: Path) -> None:
    """One camera: four fifths of every picture are equal."""
    other = (scene(0) * 0.8 + scene(1) * 0.2).astype(np.uint8)
    videos = [
        Video("a", "train", write_video(tmp_path / "a.mp4", scene(0))),
        Video("b", "test", write_video(tmp_path / "b.mp4", other)),
    ]
    first, second = (signature_of(video.path) for video in videos)
    assert 0.95 < (first * second).sum(1).mean() < 0.985
    assert same_pictures(videos) == ([], [])


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    black = write_video(tmp_path / "black.mp4", np.zeros((10, 96, 128, 3), dtype=np.uint8))
    text = tmp_path / "text.mp4"
    text.write_text("<html>")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile black.mp4\n")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    videos = [
        Video(p.stem, s, p)
        for p, s in ((black, "train"), (text, "test"), (playlist, "val"), (pipe, "val"))
    ]
    pairs, silent = same_pictures(videos)
    assert pairs == []
    assert [line.split(":")[0] for line in silent] == ["black", "text", "list", "pipe"]
    assert "no contrast" in silent[0]


def test_a_decoder_that_is_not_listed_is_not_run(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", pattern(5), codec="magicyuv", pixel_format="gbrp")
    with pytest.raises(ValueError, match="magicyuv is not decoded here"):
        signature_of(path)


def test_equal_bytes_are_found_whatever_their_split(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    contents = {
        "a": data,
        "b": data[:150_000] + b"x" + data[150_001:],  # of equal size, and equal ends
        "c": data[:100],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    shutil.copyfile(tmp_path / "a", tmp_path / "d")
    videos = [Video(n, "train" if n == "a" else "test", tmp_path / n) for n in "abcd"]
    assert [[v.video_id for v in group] for group in same_bytes(videos)] == [["a", "d"]]
    for name in "ef":
        os.mkfifo(tmp_path / name)
    for name in "gh":
        (tmp_path / name).touch()
    assert same_bytes([Video(n, "test", tmp_path / n) for n in "efgh"]) == []
    # Two parts of one file are no copies.
    assert same_bytes([videos[0], videos[0]._replace(video_id="a2")]) == []


def test_captions_that_say_the_same() -> None:
    entries = [
        Entry("x", (), "test", ("A man is playing the guitar.", "something else")),
        Entry("y", (), "test", ("a man playing guitar",)),
        Entry("z", (), "test", ("a man in a red hat cooks fresh soup",)),
        Entry("w", (), "test", ("the man in the blue hat cooks fresh soup",)),
        Entry("u", (), "test", ("a man in a hat cooks fresh soup",)),
        Entry("v", (), "train", ("Something else!", "nothing")),
        Entry("t", (), "test", ("playing a guitar man", "dogs")),
    ]
    found = alike(entries)
    assert (found.total, found.distinct) == (8, 8)
    assert found.same == [("x", "y", "a man playing guitar")]
    # Of captions that are all near each other, the first is paired with the others.
    assert {row[:2] for row in found.near} == {("z", "w"), ("z", "u")}
    assert found.trained == [("x", "v", "something else")]
    assert telling_words("The A") == ("the", "a")
