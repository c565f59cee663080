"""Evaluation scores every clip once, whatever the batches, the lengths and the broken files."""

from pathlib import Path

import clips as files
import numpy as np
import pytest
import torch
from models import build

from videoclip.data import FrameStore
from videoclip.errors import VideoclipError
from videoclip.evaluate import evaluate
from videoclip.manifest import Clip
from videoclip.sampling import frame_order
from videoclip.tokenizer import Tokenizer
from videoclip.towers import Text

TEXT = Text(width=32, layers=1, context_length=12)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number, frames in enumerate([4, 9, 2, 1, 6]):
        path = folder / f"{number}.mp4"
        picture = files.pattern(frames, width=32, height=32)
        files.write_video(path, np.roll(picture, 7 * number, axis=2))
        # The longest first, for captions are embedded in the order of their lengths.
        captions = tuple(f"caption {'so ' * (2 - i)}{i} of {number}" for i in range(1 + number % 3))
        made.append(Clip(f"v{number}", path, captions))
    return made


def filled(videos: list[Clip], folder: Path) -> FrameStore:
    store = FrameStore(folder, size=16, frames=6)
    store.fill(videos, 1, "clips")
    return store


@pytest.mark.parametrize("slots", [{"head": "lstm"}, {"scorer": "tight"}, {"mixer": "shift"}])
def test_scores_do_not_depend_on_batches_and_equal_the_public_surface(
    slots: dict, videos: list[Clip], tmp_path: Path
) -> None:
    model, store = build(**slots, text=TEXT), filled(videos, tmp_path)
    tokenizer = Tokenizer(12)
    one = evaluate(model, videos, store, tokenizer, batch_size=1)
    all_ = evaluate(model, videos, store, tokenizer, batch_size=5)
    np.testing.assert_allclose(one.scores, all_.scores, atol=1e-4)
    assert one.scores.shape == (9, 5)
    assert one.counts == "expected 5 = evaluated 5 = unique 5"
    with torch.no_grad():
        for column, clip in enumerate(videos):
            video = store.read(clip, 1)[None]
            direct = model.similarity(tokenizer(one.captions), video)[:, 0]
            np.testing.assert_allclose(one.scores[:, column], direct.numpy(), atol=1e-4)
    owners = [i for i, clip in enumerate(videos) for _ in clip.captions]
    assert one.video_of_caption.tolist() == owners
    ranks = one.ranks["text_to_video"].rank
    expected = [1 + (row > row[owner]).sum() for row, owner in zip(one.scores, owners, strict=True)]
    assert ranks.tolist() == expected


def test_frame_order_is_taken_from_every_clip(videos: list[Clip], tmp_path: Path) -> None:
    store, tokenizer = filled(videos, tmp_path), Tokenizer(12)
    ordered = build(head="lstm", text=TEXT)
    found = {
        order: evaluate(ordered, videos, store, tokenizer, order=order).scores
        for order in ("normal", "reversed", "shuffled")
    }
    with torch.no_grad():
        for order in ("reversed", "shuffled"):
            clip = videos[1]
            frames = store.read(clip, 1)[frame_order(6, order, sample="v1")]
            direct = ordered.similarity(tokenizer(videos[0].captions[:1]), frames[None])
            assert found[order][0, 1] == pytest.approx(direct.item(), abs=1e-4)
            assert abs(found[order] - found["normal"])[:, 1].max() > 1e-4
    blind = build(text=TEXT)
    scores = [
        evaluate(blind, videos, store, tokenizer, order=order).scores
        for order in ("normal", "shuffled")
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_an_unreadable_clip_stays_in_the_count(videos: list[Clip], tmp_path: Path) -> None:
    broken = [*videos[:3], videos[3]._replace(path=tmp_path / "gone.mp4"), videos[4]]
    store = filled(broken, tmp_path / "frames")
    found = evaluate(build(text=TEXT), broken, store, Tokenizer(12))
    assert found.counts == "expected 5 = evaluated 5 = unique 5"
    assert np.isnan(found.scores[:, 3]).all()
    assert not np.isnan(found.scores[:, [0, 1, 2, 4]]).any()
    ranks = found.ranks["text_to_video"]
    assert ranks.missing.tolist() == [owner == 3 for owner in found.video_of_caption]
    assert found.ranks["video_to_text"].missing.tolist() == [False] * 3 + [True, False]


def test_nothing_readable_is_an_error(videos: list[Clip], tmp_path: Path) -> None:
    gone = [videos[0]._replace(path=tmp_path / "gone.mp4")]
    store = filled(gone, tmp_path / "frames")
    with pytest.raises(VideoclipError, match=r"none of the 1 clips.*gone\.mp4"):
        evaluate(build(text=TEXT), gone, store, Tokenizer(12))
