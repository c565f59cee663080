"""Any clip and any labels, as a user asks for them in Python."""

import pytest
from action_clips import ACTIONS, labelled
from models import build
from pictures_on_disk import small_clip

import videoclip
from videoclip.errors import VideoclipError, VideoError
from videoclip.evaluation.predict import classify_clips, classify_video
from videoclip.evaluation.recognition import evaluate_actions
from videoclip.frames.store import FrameStore
from videoclip.frames.views import views_named
from videoclip.prompts import templates_of


def test_a_clip_is_classified_as_an_evaluation_does_it(tmp_path) -> None:
    model, [clip, *_] = small_clip(), labelled(tmp_path / "clips", 1)
    store = FrameStore(tmp_path / "frames", size=16, frames=8)
    store.fill([clip], 1, "the clip")
    wanted = evaluate_actions(model, [clip], store, ACTIONS, templates_of(["actionclip"])).scores[0]
    found = videoclip.classify_video(model, str(clip.path), list(ACTIONS))
    assert found == {a: pytest.approx(float(p)) for a, p in zip(ACTIONS, wanted, strict=True)}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1)


def test_templates_frames_parts_and_views_change_what_is_seen(tmp_path) -> None:
    model, [clip, *_] = small_clip(), labelled(tmp_path / "clips", 1)
    plain = classify_video(model, clip.path, ACTIONS)
    for changed in ({"templates": ["{}"]}, {"frames": 1}, {"end": 0.1}, {"start": 0.2}):
        assert classify_video(model, clip.path, ACTIONS, **changed) != plain
    scores, _ = classify_clips(model, [clip], ACTIONS, views="4x3")
    store = FrameStore(tmp_path / "frames", size=16, frames=8)
    views = views_named("4x3", size=16)
    store.fill_views([clip], views, "the clip")
    wanted = evaluate_actions(
        model, [clip], store, ACTIONS, templates_of(["actionclip"]), views=views
    )
    assert scores == pytest.approx(wanted.scores)


def test_the_weights_own_templates_and_frames_come_first(tmp_path) -> None:
    [clip, *_] = labelled(tmp_path / "clips", 1)
    told = small_clip(templates=("they {}",), frames=2)
    plain = small_clip()
    assert classify_video(told, clip.path, ACTIONS) == classify_video(
        plain, clip.path, ACTIONS, templates=["they {}"], frames=2
    )


def test_what_cannot_be_classified_is_said(tmp_path) -> None:
    model, [clip, *_] = small_clip(), labelled(tmp_path / "clips", 1)
    with pytest.raises(VideoError, match=r"none\.mp4 does not exist"):
        classify_video(model, tmp_path / "none.mp4", ACTIONS)
    with pytest.raises(VideoclipError, match=r"a vocabulary of 100 .*tokenizer of these weights"):
        classify_video(build(), clip.path, ACTIONS)
    for labels in ("fade", [], ["fade", "fade"]):
        with pytest.raises(VideoclipError, match="give a list of different texts"):
            classify_video(model, clip.path, labels)
    scores, unreadable = classify_clips(
        model, [clip, clip._replace(video_id="none", path=tmp_path / "none.mp4")], ACTIONS
    )
    assert list(unreadable) == ["none"]
    assert scores[0].sum() == pytest.approx(1)
    assert (scores[1] != scores[1]).all()
