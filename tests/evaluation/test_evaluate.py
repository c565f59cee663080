"""Evaluation scores every clip once: whatever the batches, lengths, processes and broken files."""

from pathlib import Path
from typing import Any, NamedTuple

import clips as files
import numpy as np
import processes
import pytest
import torch
from models import build

from videoclip.errors import VideoclipError
from videoclip.evaluation import evaluate as module
from videoclip.evaluation.evaluate import Evaluation, distinct, evaluate
from videoclip.frames.sampling import frame_order
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
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


def test_captions_with_the_same_tokens_are_embedded_once_and_tie(
    videos: list[Clip], tmp_path: Path, monkeypatch
) -> None:
    # In spelling alone, and behind what fits: 7 tokens hold the start, five words and the end.
    captions = ["a cat runs very fast now", "A  cat runs, fast", "a cat runs very fast then"]
    texts = ["a dog", captions[0], "A Dog", captions[1], captions[2], "a dog"]
    rows, place = distinct(texts, Tokenizer(7))
    assert rows == ["a dog", captions[0], captions[1]]
    assert place.tolist() == [0, 1, 0, 2, 1, 0]
    clips = [clip._replace(captions=(text,)) for clip, text in zip(videos, texts, strict=False)]
    monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", 1)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    found = evaluate(build(text=TEXT), clips, filled(clips, tmp_path), Tokenizer(7))
    assert found.scores[0].tolist() == found.scores[2].tolist()
    assert found.scores[1].tolist() == found.scores[4].tolist()
    assert len({tuple(row) for row in found.scores.tolist()}) == 3
    back = found.ranks["video_to_text"]
    assert (back.pessimistic - back.optimistic).tolist() == [1, 1, 1, 0, 1]


def test_the_way_over_time_is_gone_once_per_clip(videos: list[Clip], tmp_path: Path) -> None:
    model = build(head="lstm", text=TEXT)
    seen = []
    model.head.register_forward_hook(lambda _, given, out: seen.append(len(given[0].frames)))
    found = evaluate(model, videos, filled(videos, tmp_path), Tokenizer(12), batch_size=2)
    assert found.scores.shape == (9, 5)
    assert seen == [2, 2, 1]


# Several processes


class Work(NamedTuple):
    """What each process evaluates."""

    slots: dict[str, Any]
    sizes: list[int]
    """How many of the clips, one evaluation each."""
    broken: str = ""
    """A clip that the last process alone knows to be unreadable."""


WORK = {
    "cosine": Work({}, list(range(1, 66))),
    "tight": Work({"head": "lstm", "scorer": "tight"}, [1, 9, 32]),
    "broken": Work({}, [10], broken="v2"),
}
Found = dict[str, list[tuple[Evaluation, list[str]]]]
"""By name and size an evaluation, and what this process embedded itself for it."""


class Watched(FrameStore):
    """Keeps the ids of the clips that were read."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.given: list[str] = []

    def read(self, clip: Clip, takes: int, take: int = 0) -> torch.Tensor:
        self.given.append(clip.video_id)
        return super().read(clip, takes, take)


def work(given: tuple[list[Clip], Path]) -> Found:
    """Does all of WORK."""
    from videoclip.distributed import rank, world_size

    clips, folder = given
    torch.set_num_threads(1)
    found: Found = {name: [] for name in WORK}
    for name, one in WORK.items():
        model, tokenizer = build(**one.slots, text=TEXT), Tokenizer(12)
        for size in one.sizes:
            store = Watched(folder, size=16, frames=4)
            if one.broken and rank() == world_size() - 1:
                store.unreadable[one.broken] = "broken here"
            evaluation = evaluate(model, clips[:size], store, tokenizer, batch_size=4)
            found[name].append((evaluation._replace(ms_per_clip=0.0), store.given))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Found, list[Found]]:
    """What one process finds, and what each of two finds, on 65 clips of one to five frames."""
    folder = tmp_path_factory.mktemp("many")
    noise, made = np.random.default_rng(0), []
    for number in range(65):
        pixels = noise.integers(0, 256, (1 + number % 5, 4, 4, 3), dtype=np.uint8)
        path = files.write_video(folder / f"{number}.mp4", pixels.repeat(8, 1).repeat(8, 2))
        texts = tuple(f"{word} {number // 2}" for word in ("one", "two", "three")[: 1 + number % 3])
        made.append(Clip(f"v{number}", path, texts))
    FrameStore(folder / "frames", size=16, frames=4).fill(made, 1, "clips")
    given, threads = (made, folder / "frames"), torch.get_num_threads()
    both = processes.run(work, given, folder)
    alone = work(given)
    torch.set_num_threads(threads)
    return alone, both


@pytest.mark.parametrize("name", WORK)
def test_two_processes_find_what_one_does(found: tuple[Found, list[Found]], name: str) -> None:
    alone, both = found
    for number, size in enumerate(WORK[name].sizes):
        one, every = alone[name][number]
        assert one.counts == f"expected {size} = evaluated {size} = unique {size}"
        shares = [process[name][number] for process in both]
        for evaluation, _ in shares:
            assert evaluation.counts == one.counts
            np.testing.assert_array_equal(evaluation.scores, one.scores)
            for direction, ranks in one.ranks.items():
                for ours, theirs in zip(evaluation.ranks[direction], ranks, strict=True):
                    np.testing.assert_array_equal(ours, theirs)
        own = [embedded for _, embedded in shares]
        assert sorted(own[0] + own[1]) == sorted(every)  # each clip once
        assert len(own[0]) - len(own[1]) in range(5)  # batches of 4, in turn


def test_what_one_process_cannot_read_is_missing_in_all(found: tuple[Found, list[Found]]) -> None:
    alone, both = found
    for [(evaluation, embedded)] in (process["broken"] for process in (alone, *both)):
        assert np.isnan(evaluation.scores[:, 2]).all()
        assert evaluation.ranks["video_to_text"].missing.tolist() == [i == 2 for i in range(10)]
        assert "v2" not in embedded
