"""Which captions stand beside the clips of a batch, and what an epoch is."""

from pathlib import Path

import numpy as np
import pytest

from videoclip.errors import ManifestError
from videoclip.manifest import Clip
from videoclip.tasks import Retrieval

CLIPS = [
    Clip("a", Path("a.mp4"), ("one", "two", "three")),
    Clip("b", Path("b.mp4"), ("two",)),
    Clip("c", Path("c.mp4"), ("two", "four")),
]


def numbers(seed: int, count: int = 3) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, place]) for place in range(count)]


def test_an_epoch_holds_every_clip_once_or_every_caption_once() -> None:
    assert Retrieval().samples(CLIPS, (), seed=0) == CLIPS
    every = Retrieval(captions="every").samples(CLIPS, (), seed=0)
    assert [(c.video_id, c.captions) for c in every] == [
        ("a#0", ("one",)), ("a#1", ("two",)), ("a#2", ("three",)), ("b#0", ("two",)),
        ("c#0", ("two",)), ("c#1", ("four",)),
    ]  # fmt: skip
    assert {c.path for c in every} == {c.path for c in CLIPS}


def test_captions_are_drawn_by_each_clips_own_numbers() -> None:
    drawn = {Retrieval().texts(CLIPS, numbers(seed)).sentences for seed in range(60)}
    assert {sentences[0] for sentences in drawn} == {"one", "two", "three"}
    assert {sentences[1] for sentences in drawn} == {"two"}
    again = Retrieval().texts(CLIPS, numbers(5))
    assert again.sentences == Retrieval().texts(CLIPS, numbers(5)).sentences
    [alone] = Retrieval().texts(CLIPS[2:], numbers(5)[2:]).sentences
    assert alone == again.sentences[2], "whatever else is in the batch"


def test_clips_with_one_caption_match_each_other() -> None:
    for seed in range(20):
        texts = Retrieval().texts(CLIPS, numbers(seed))
        equal = np.array([[s == t for t in texts.sentences] for s in texts.sentences])
        assert np.array_equal(texts.keys.matches().numpy(), equal)


def test_a_clip_without_a_caption_is_named() -> None:
    with pytest.raises(ManifestError, match="lost"):
        Retrieval().require([*CLIPS, Clip("lost", Path("d.mp4"), ())], Path("m.jsonl"))
