"""Which sentences about classes stand beside the clips of a batch."""

from pathlib import Path

import numpy as np
import pytest

from videoclip.errors import ManifestError, VideoclipError
from videoclip.manifest import Clip
from videoclip.prompts import templates_of
from videoclip.tasks import Recognition, class_names

CLASSES = ("ApplyEyeMakeup", "Archery", "Biking")
LABELS = ["Archery", "Biking", "Archery", "Archery"]
CLIPS = [Clip(f"v{i}", Path(f"{i}.mp4"), (), label=label) for i, label in enumerate(LABELS)]


def numbers(seed: int, count: int = 4) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, place]) for place in range(count)]


def test_a_sentence_about_the_class_of_every_clip() -> None:
    task = Recognition(templates=("a video of {}", "{}, an action"))
    seen = set()
    for seed in range(40):
        texts = task.texts(CLIPS, numbers(seed), CLASSES)
        for sentence, label in zip(texts.sentences, LABELS, strict=True):
            assert sentence in (f"a video of {label}", f"{label}, an action")
        seen |= set(texts.sentences)
        equal = np.array([[a == b for b in LABELS] for a in LABELS])
        assert np.array_equal(texts.keys.matches().numpy(), equal), "whatever the template"
    assert len(seen) == 4


def test_the_default_draws_from_the_sixteen_templates() -> None:
    drawn = {Recognition().texts(CLIPS, numbers(s), CLASSES).sentences[0] for s in range(400)}
    assert drawn == {t.format("Archery") for t in templates_of(("actionclip",))}
    assert len(drawn) == 16


def test_one_sentence_for_every_class() -> None:
    task = Recognition(targets="classes", templates=("a video of {}", "never {}"), names="words")
    texts = task.texts(CLIPS, numbers(0), CLASSES)
    assert texts.sentences == (
        "a video of apply eye makeup", "a video of archery", "a video of biking"
    )  # fmt: skip
    assert texts.keys.shared
    expected = np.array([[c == label for label in LABELS] for c in CLASSES])
    assert np.array_equal(texts.keys.matches().numpy(), expected)


def test_few_shots_are_so_many_of_every_class_and_depend_on_the_seed() -> None:
    clips = [
        Clip(f"{label}{i}", Path("x.mp4"), (), label=label) for label in CLASSES for i in range(9)
    ]
    task = Recognition(shots=2)
    first = task.samples(clips, CLASSES, seed=0)
    assert sorted(clip.label for clip in first) == sorted(CLASSES * 2)
    assert first == task.samples(clips, CLASSES, seed=0)
    assert any(first != task.samples(clips, CLASSES, seed=seed) for seed in (1, 2, 3))
    with pytest.raises(VideoclipError, match="9"):
        Recognition(shots=10).samples(clips, CLASSES, seed=0)


def test_base_classes_are_the_half_with_the_most_clips() -> None:
    clips = [
        Clip(f"{label}{i}", Path("x.mp4"), (), label=label)
        for label, count in zip(("a", "b", "c", "d"), (1, 5, 2, 4), strict=True)
        for i in range(count)
    ]
    chosen = Recognition(known="base").samples(clips, ("a", "b", "c", "d"), seed=0)
    assert {clip.label for clip in chosen} == {"b", "d"}
    assert len(chosen) == 9


def test_clips_without_a_label_are_named() -> None:
    with pytest.raises(ManifestError, match="1 of 5 clips have no label, among them lost"):
        Recognition().require([*CLIPS, Clip("lost", Path("l.mp4"), ())], Path("m.jsonl"))


def test_class_names_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert class_names(CLIPS, None) == ("Archery", "Biking")
    listed = tmp_path / "labels.csv"
    listed.write_text("id,name\n0,Biking\n1,Archery\n2,Yoga\n")
    assert class_names(CLIPS, listed) == ("Biking", "Archery", "Yoga")
    plain = tmp_path / "labels.txt"
    plain.write_text("Yoga\nBiking\nArchery\n")
    assert class_names(CLIPS, plain) == ("Yoga", "Biking", "Archery")
    plain.write_text("Biking\n")
    with pytest.raises(ManifestError, match=r"1 labels of the clips are not in .*'Archery'"):
        class_names(CLIPS, plain)
    plain.write_text("Biking\nArchery\nBiking\n")
    with pytest.raises(ManifestError, match="twice"):
        class_names(CLIPS, plain)
    listed.write_text("id,label\n0,Biking\n")
    with pytest.raises(ManifestError, match="the columns id, label"):
        class_names(CLIPS, listed)
