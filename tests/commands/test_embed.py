"""`videoclip embed`: features that training reads, and a vector for every clip that can be read."""

import re
from pathlib import Path

import clips as files
import numpy as np
import pandas as pd
import pytest
import torch
from action_clips import ACTIONS, action
from models import build

from videoclip.__main__ import main
from videoclip.checkpoints.weights import load
from videoclip.features import store as feature_store
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip, read_manifest, write_manifest
from videoclip.towers import Text


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Eight clips, two of them bad, and a model."""
    folder, clips = tmp_path_factory.mktemp("world"), []
    for number in range(8):
        label = ACTIONS[number % 3]
        path = files.write_video(folder / f"{number}.mp4", action(label, number, 4 + number))
        split = "train" if number < 4 else "val" if number < 6 else "test"
        clips.append(Clip(f"clip{number}", path, (f"{label} {number}",), label, split))
    files.cut(clips[1].path, 0.3)
    clips[7].path.unlink()
    write_manifest(folder / "clips.jsonl", clips)
    build(text=Text(width=32, layers=1, context_length=16)).save_pretrained(folder / "model")
    return folder


def embed(world: Path, output: Path, *more: str) -> pd.DataFrame:
    command = ["embed", str(world / "clips.jsonl"), "--model", str(world / "model")]
    assert main([*command, "--output", str(output), "--frames", "4", *more]) == 0
    return pd.concat([pd.read_parquet(path) for path in sorted(output.glob("*.parquet"))])


def test_vectors_are_those_of_the_model_and_counts_add_up(world, tmp_path, capsys) -> None:
    table = embed(world, tmp_path / "out").set_index("video_id")
    printed = capsys.readouterr().out
    assert "6 embedded + 2 bad = 8" in printed
    assert "'clip7'" in printed
    assert [name for name, row in table.iterrows() if isinstance(row.reason, str)] == [
        "clip1",
        "clip7",
    ]
    model, clips = load(world / "model"), read_manifest(world / "clips.jsonl")
    store = FrameStore(tmp_path / "frames", size=16, frames=4)
    for clip in store.fill(clips, 1, "clips"):
        with torch.no_grad():
            expected = model.encode_video(store.read(clip, 1)[None])[0]
        np.testing.assert_allclose(table.embedding[clip.video_id], expected, atol=1e-5)
    assert table.embedding["clip1"] is None
    assert not list((tmp_path / "out" / "frames").iterdir())


def test_parts_of_several_machines_are_the_whole(world, tmp_path, monkeypatch, capsys) -> None:
    whole = embed(world, tmp_path / "whole").set_index("video_id")
    made, of_frames = [], feature_store.embed
    monkeypatch.setattr(feature_store, "embed", lambda m, p: made.append(1) or of_frames(m, p))
    for part in ("1/3", "2/3", "3/3", "2/3"):  # one of them twice, after an interruption
        parts = embed(world, tmp_path / "parts", "--shard", part)
    assert len(made) == 6
    assert re.findall(r"\d embedded \+ \d bad = \d", capsys.readouterr().out)[1:] == [
        "3 embedded + 0 bad = 3", "1 embedded + 2 bad = 3", "2 embedded + 0 bad = 2",
        "1 embedded + 2 bad = 3",
    ]  # fmt: skip
    parts = parts.set_index("video_id").loc[whole.index]
    for name, row in whole.iterrows():
        assert np.array_equal(row.embedding, parts.embedding[name]) or isinstance(row.reason, str)


def test_a_comparison_finds_what_was_embedded(world, tmp_path, monkeypatch) -> None:
    features = str(tmp_path / "features")
    embed(world, tmp_path / "features", "--takes", "2", "--crop", "0.5")
    monkeypatch.setattr(feature_store, "embed", lambda *_: pytest.fail("embedded again"))
    command = [
        "compare", "moving_shapes", "--data", str(world / "clips.jsonl"), "--modules", "lstm",
        "--seeds", "0", "--checkpoint", str(world / "model"), "--run.features", features,
        "--finetune.lock", "both", "--finetune.epochs", "1", "--frames", "4", "--data.takes", "2",
        "--data.crop", "0.5", "--data.workers", "0", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(command) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "4/3"], "give i/n"),
        (["--shard", "9/9"], "none is left for part 9/9"),
        (["--model", "shift"], "no features of single frames: the mixer Shift works inside it"),
    ],
)
def test_what_cannot_be_embedded_is_one_clear_message(
    more: list[str], message: str, world: Path, tmp_path: Path, capsys
) -> None:
    if "shift" in more:
        build(mixer="shift").save_pretrained(tmp_path / "shift")
        more = ["--model", str(tmp_path / "shift")]
    command = ["embed", str(world / "clips.jsonl"), "--model", str(world / "model")]
    assert main([*command, "--output", str(tmp_path / "out"), *more]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
