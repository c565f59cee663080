"""The promises of the loop that trains one row of a comparison."""

import itertools
import json
import math
from pathlib import Path

import clips as files
import pytest
import torch
from models import build

from videoclip.errors import OutOfMemoryError, VideoclipError, VideoError
from videoclip.experiment import Data, Optim, Run
from videoclip.frames.loader import BadSamples
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tasks import Retrieval
from videoclip.towers import Text
from videoclip.training.logbook import BAD_SAMPLES, BAD_STEPS
from videoclip.training.loop import Evaluated
from videoclip.training.train import train
from videoclip.types import Embedding, Frames

RUNS = itertools.count()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number in range(6):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(4 + number, width=32, height=32))
        made.append(Clip(f"v{number}", path, (f"number {number}",)))
    return made


def train_small(
    videos: list[Clip],
    folder: Path,
    values: list[float] | None,
    epochs: int | None = None,
    run: Path | None = None,
    bad_steps: int = 10,
    bad_samples: BadSamples = "skip",
    **optim: float,
):
    model = build(head="lstm", text=Text(width=32, layers=1, context_length=12))
    store = FrameStore(folder, size=16, frames=4)
    store.fill(videos, 1, "clips")
    seen = iter(values or ())
    weights = []

    def validate(model) -> Evaluated:
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        value = next(seen)
        return Evaluated({"validation": value}, value)

    trained = train(
        model, Retrieval(), videos, store,
        optim=Optim(
            epochs=len(values) - 1 if epochs is None else epochs, batch_size=3, tower_rate=1e-3,
            precision="fp32", **optim,
        ),
        data=Data(takes=1, crop=0.8, words=12, workers=0, bad_samples=bad_samples),
        classes=(), seed=0,
        validate=None if values is None else validate, label="test",
        run=Run(bad_steps=bad_steps), decides={},
        folder=run or folder / f"run{next(RUNS)}",
    )  # fmt: skip
    return trained.model, trained.history, weights


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_clip_that_vanishes_is_told_and_the_rest_is_trained(
    videos, tmp_path, capsys, monkeypatch, policy: str
) -> None:
    read = FrameStore.read

    def without(self: FrameStore, clip: Clip, *more: int) -> torch.Tensor:
        if clip.video_id == "v2":
            raise VideoError("v2.mp4 is no longer there")
        return read(self, clip, *more)

    monkeypatch.setattr(FrameStore, "read", without)
    _, history, _ = train_small(
        videos, tmp_path, None, epochs=2, run=tmp_path / "run", bad_samples=policy
    )
    assert all(line.loss is None or math.isfinite(line.loss) for line in history)
    lines = (tmp_path / "run" / BAD_SAMPLES).read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [(line["epoch"], line["name"]) for line in lines] == [(1, "v2"), (2, "v2")]
    assert all((line["instead"] is None) == (policy == "zero") for line in lines)
    said = capsys.readouterr().err
    assert "test: 1 of 6 training clips could not be read; " in said
    assert str(tmp_path / "run" / BAD_SAMPLES) in said
    with pytest.raises(VideoclipError, match=r"v2\.mp4 is no longer there"):
        train_small(videos, tmp_path, None, epochs=2, bad_samples="fail")


def test_the_best_validated_epoch_is_kept(videos, tmp_path) -> None:
    model, history, weights = train_small(videos, tmp_path, [1.0, 5.0, 3.0, 2.0])
    assert [epoch.validation for epoch in history] == [1.0, 5.0, 3.0, 2.0]
    assert history[0].loss is None
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[1][key])
    assert not torch.equal(weights[0]["clip.visual.proj"], weights[1]["clip.visual.proj"])


def test_the_same_seed_gives_the_same_weights(videos, tmp_path) -> None:
    first, history, _ = train_small(videos, tmp_path, [0.0, 1.0, 2.0])
    second, again, _ = train_small(videos, tmp_path, [0.0, 1.0, 2.0])
    assert history[1:] == again[1:]
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_no_epochs_leave_the_weights_alone(videos, tmp_path) -> None:
    model, history, weights = train_small(videos, tmp_path, [7.0])
    assert len(history) == 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[0][key])


def test_losses_that_are_not_finite_end_the_run_with_the_clips_named(videos, tmp_path) -> None:
    with pytest.raises(VideoclipError, match=r"2 steps in a row changed nothing, .* loss is nan"):
        train_small(videos, tmp_path, [0.0] * 3, weight_decay=1e38, run=tmp_path, bad_steps=2)
    lines = [json.loads(line) for line in (tmp_path / BAD_STEPS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert set(lines[1]["samples"]) <= {video.video_id for video in videos}


def test_nothing_is_chosen_where_nothing_is_validated(videos, tmp_path) -> None:
    model, history, _ = train_small(videos, tmp_path, None, epochs=2)
    assert [epoch.validation for epoch in history] == [None] * 3
    assert not model.training


def test_memory_that_runs_out_costs_nothing_but_the_step(videos, tmp_path, monkeypatch) -> None:
    """The saved state goes on in smaller chunks, to the same weights."""
    straight, _, _ = train_small(videos, tmp_path, None, epochs=2)
    step, large = VideoCLIP.embed_video, []

    def full(model: VideoCLIP, clips: Frames) -> Embedding:
        large.append(len(clips.mask) > 2)
        if large[-1] and sum(large) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(model, clips)

    run = tmp_path / "run"
    monkeypatch.setattr(VideoCLIP, "embed_video", full)
    with pytest.raises(OutOfMemoryError) as caught:
        train_small(videos, tmp_path, None, epochs=2, run=run)
    told = str(caught.value)
    assert "memory ran out at step 2, at 3 samples of 4 frames in this process" in told
    assert "(chunk_size None, precision fp32, checkpointing off); no weight was changed" in told
    assert "chunk_size 1 or checkpointing blocks, or both" in told
    found, _, _ = train_small(videos, tmp_path, None, epochs=2, run=run, chunk_size=2)
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)
