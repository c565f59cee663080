"""The verbs that say which action a clip shows, as a user types them."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from action_clips import ACTIONS, labelled, manifest
from pictures_on_disk import small_clip

from videoclip.__main__ import main
from videoclip.manifest import Clip, read_manifest, write_manifest
from videoclip.tasks.action_protocols import PROTOCOLS


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a model and a manifest of six test clips, one of them gone."""
    small_clip().save_pretrained(tmp_path / "model")
    clips = labelled(tmp_path / "videos", 6)
    manifest(tmp_path, [*clips, Clip("gone", tmp_path / "gone.mp4", label="fade", split="test")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*words: str) -> int:
    return main(["evaluate", "recognition", "model", "--data", *words])


def test_classify_video_prints_a_table_and_strict_json(place, capsys) -> None:
    videos = ["videos/00.mp4", "videos/01.mp4"]
    words = ["classify-video", *videos, "--model", "model", "--labels"]
    assert main([*words, "fade, a | b,flicker", "--top", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6
    assert "videos/00.mp4" in table[2]
    assert main([*words, "fade", "a | b", "flicker", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["video"] for row in rows] == videos
    for row in rows:
        assert set(row["labels"]) == {"fade", "a | b", "flicker"}
        assert sum(row["labels"].values()) == pytest.approx(1)
    (place / "labels.txt").write_text("fade\na | b\nflicker\n")
    assert main([*words[:-1], "--labels-file", "labels.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert main([*words[:-1], "--labels-file", "kinetics400", "--json", "--top", "400"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["labels"]) == 400


def test_classify_video_goes_on_after_a_bad_video_and_says_so(place, capsys) -> None:
    (place / "bad.mp4").write_bytes(b"no video")
    words = ["classify-video", "bad.mp4", "videos/00.mp4", "none.mp4", "--model", "model"]
    assert main([*words, "--labels", "fade", "flicker", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["video"] for row in json.loads(out)] == ["videos/00.mp4"]
    assert "none.mp4 does not exist" in err
    assert "2 of 3 videos could not be read" in err


def test_what_classify_video_cannot_use_is_one_message(place, capsys) -> None:
    for words, message in {
        ("--top", "0"): "--top is 0; give at least 1",
        ("--start", "2", "--end", "1"): "--start is 2.0 and --end 1.0; the end must come later",
        ("--templates", "a photo"): "a template needs one {}",
        ("--views", "4x2"): "no views are named '4x2'",
    }.items():
        command = ["classify-video", "videos/00.mp4", "--labels", "a", "b", "--model", "model"]
        assert main([*command, *words]) == 1
        assert message in capsys.readouterr().err
    assert main(["classify-video", "videos/00.mp4", "--model", "model"]) == 1
    assert "no labels are given" in capsys.readouterr().err
    assert main(["classify-video", "--labels", "a", "--model", "model"]) == 1
    assert "no video is given" in capsys.readouterr().err


def test_an_evaluation_keeps_every_score(place, capsys) -> None:
    assert evaluate("clips.jsonl", "--names", "words", "--output", "out") == 0
    printed = capsys.readouterr().out
    assert "| top-1" in printed
    assert "expected 7 = scored 6 + 1 bad" in printed
    assert "unreadable, counted as wrong: gone: " in printed
    record = json.loads((place / "out/evaluation.json").read_text())
    scores = pd.read_parquet(place / "out/scores.parquet")
    predictions = pd.read_parquet(place / "out/predictions.parquet").set_index("name")
    assert list(scores.columns) == sorted(ACTIONS)
    assert list(scores.index) == [clip.video_id for clip in read_manifest(Path("clips.jsonl"))]
    assert scores.loc["gone"].isna().all()
    known = scores.drop(index="gone")
    assert np.allclose(known.sum(axis=1), 1, atol=1e-5)
    assert (known.idxmax(axis=1) == predictions.loc[known.index, "predicted"]).all()
    right = (known.idxmax(axis=1) == predictions.loc[known.index, "label"]).sum()
    assert record["metrics"]["top-1"] == pytest.approx(100 * right / 7)
    assert record["class_names"] == {name: name for name in ACTIONS}
    assert record["options"]["names"] == "words"
    assert "gone" in record["unreadable"]
    page = (place / "out/index.html").read_text()
    assert "confusion.png" in page
    assert (place / "out/confusion.png").is_file()


def test_a_protocol_of_several_parts_has_a_folder_for_each(place, capsys) -> None:
    clips = read_manifest(Path("clips.jsonl"))
    for number in range(3):
        write_manifest(Path(f"split{number}.jsonl"), clips[number : number + 4])
    splits = [f"split{number}.jsonl" for number in range(3)]
    assert evaluate(*splits, "--protocol", "zs-splits3", "--output", "out") == 0
    printed = capsys.readouterr().out
    assert "| mean ± standard deviation |" in printed
    record = json.loads((place / "out/evaluation.json").read_text())
    tops = [
        json.loads((place / f"out/split-{number}/evaluation.json").read_text())["metrics"]["top-1"]
        for number in (1, 2, 3)
    ]
    assert record["overall"]["mean"]["top-1"] == pytest.approx(np.mean(tops))
    assert record["overall"]["standard deviation"]["top-1"] == pytest.approx(np.std(tops))
    assert 'href="split-2/index.html"' in (place / "out/index.html").read_text()
    (place / "base.txt").write_text("fade\nflicker\n")
    (place / "novel.csv").write_text("id,name\n0,move left\n")
    lists = ["--class-lists", "base.txt", "novel.csv", "--output", "both"]
    assert evaluate("clips.jsonl", "--protocol", "base-to-novel", *lists) == 0
    assert "| harmonic mean |" in capsys.readouterr().out
    found = json.loads((place / "both/evaluation.json").read_text())["overall"]
    base, novel = found["base"]["top-1"], found["novel"]["top-1"]
    assert found["harmonic mean"]["top-1"] == pytest.approx(2 * base * novel / (base + novel))


def test_base_clip_is_the_middle_frame_and_its_own_rule(place, capsys) -> None:
    assert evaluate("clips.jsonl", "--base-clip", "middle", "--output", "middle") == 0
    assert "frames 1 by segments, views none" in capsys.readouterr().out
    record = json.loads((place / "middle/evaluation.json").read_text())
    assert (record["ensemble"], record["temperature"]) == ("embeddings", "model")
    assert len(record["templates"]) == 28
    assert evaluate("clips.jsonl", "--base-clip", "mean", "--templates", "ucf101") == 0
    assert "frames 8 by segments" in capsys.readouterr().out
    assert evaluate("clips.jsonl", "--base-clip", "middle", "--frames", "8") == 1
    assert "--base-clip middle reads one frame, but --frames is 8" in capsys.readouterr().err
    from videoclip.heads import LSTM

    small_clip(head=LSTM()).save_pretrained("lstm")
    words = ["evaluate", "recognition", "lstm", "--data", "clips.jsonl", "--base-clip", "mean"]
    assert main(words) == 1
    assert "but lstm has NoMixer, LSTM, Cosine" in capsys.readouterr().err


def test_what_an_evaluation_cannot_use_is_one_message(place, capsys) -> None:
    clips = read_manifest(Path("clips.jsonl"))
    write_manifest(Path("bare.jsonl"), [clip._replace(label=None) for clip in clips])
    for words, message in {
        ("clips.jsonl", "--protocol", "zs-split3"): "did you mean 'zs-splits3'?",
        ("clips.jsonl", "--protocol", "zs-splits3"): "one per official split, and got 1",
        ("clips.jsonl", "--expect", "hmdb51"): "3 classes, published are 51",
        ("clips.jsonl", "--split", "val"): "has the splits test; val is needed too",
        ("clips.jsonl", "--batch-size", "0"): "--batch-size is 0; give at least 1",
        (): "no manifest is given; name one",
        ("clips.jsonl", "--view-seconds", "2"): "--view-seconds is 2.0, but no views of that",
        ("clips.jsonl", "clips.jsonl"): "2 manifests and 0 class lists are given without a",
        ("bare.jsonl",): "7 of 7 clips have no label, among them clip00",
    }.items():
        assert evaluate(*words) == 1
        assert message in capsys.readouterr().err


def test_real_fights_split_by_their_source(shared: Path, place, capsys) -> None:
    with (shared / "data/MANIFEST.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["path"].startswith("action_fight/")]
    clips = []
    for row in rows:
        source = int(re.search(r"source group (\d+)", row["note"])[1])
        clips.append(
            Clip(
                Path(row["path"]).stem, shared / "data" / row["path"], label=row["label"],
                split="test" if source % 2 else "train", source=f"film {source}",
            )
        )  # fmt: skip
    write_manifest(Path("fights.jsonl"), clips)
    tested = {clip.video_id for clip in clips if clip.split == "test"}
    sources = {clip.source for clip in clips if clip.split == "test"}
    assert not sources & {clip.source for clip in clips if clip.split == "train"}
    words = ["--frames", "4", "--output", "fights"]
    assert evaluate("fights.jsonl", *words) == 0
    printed = capsys.readouterr().out
    assert f"expected {len(tested)} = scored {len(tested)} + 0 bad" in printed
    told = f"{len(tested)} items of {len(sources)} sources, which are drawn as wholes: the 95 %"
    assert told in printed
    assert "Top-1 is not shown to be better than that." in printed  # the weights are random
    scores = pd.read_parquet(place / "fights/scores.parquet")
    assert set(scores.index) == tested
    assert len(scores) == len(tested)
    assert list(scores.columns) == ["fight", "noFight"]
    record = json.loads((place / "fights/evaluation.json").read_text())
    assert sum(group["items"] for group in record["groups"]) == len(tested)
    low, high = record["intervals"]["top-1"][1:]
    assert high - low > 10


def test_the_page_on_protocols(place, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text()
    recognition = page[page.index("## Recognition") :].replace("ViT-B/32", "model")
    Path("videos/00.mp4").rename("clip.mp4")
    [commands] = re.findall(r"^```bash\n(.*?)^```", recognition, re.DOTALL | re.MULTILINE)
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert "| clip.mp4 | " in printed
    assert "scored 5 + 2 bad" in printed
    [program] = re.findall(r"^```python\n(.*?)^```", recognition, re.DOTALL | re.MULTILINE)
    exec(program, {})
    assert len(capsys.readouterr().out.splitlines()) == 3
    for protocol in PROTOCOLS:
        words = protocol.name.split("-")
        shown = f"-{words[-1]}" if words[0] == "fewshot" else protocol.name
        assert shown in recognition[recognition.index("| protocol") :]
