"""`videoclip evaluate retrieval` as a user types it: the table, the files, labels and errors."""

import json
import os
from pathlib import Path

import clips as files
import numpy as np
import pandas as pd
import processes
import pytest
import torch
from models import build

from videoclip.__main__ import main
from videoclip.checkpoints.weights import load
from videoclip.evaluation.evaluate import evaluate
from videoclip.figures.intervals import mean_interval
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip, read_manifest, write_manifest
from videoclip.tasks import protocols
from videoclip.tasks.protocols import Protocol
from videoclip.tokenizer import Tokenizer
from videoclip.towers import Text

TEXT = Text(width=32, layers=1, context_length=16)
TINY = Protocol("tiny", 6, 8, "several", 3, "these tests", frames=3, words=9)
GONE = "5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models and nine clips: three to train on, six to test on, of which one is not there."""
    place = tmp_path_factory.mktemp("place")
    noise, made = np.random.default_rng(0), []
    for number in range(9):
        pixels = noise.integers(0, 256, (30 + number, 4, 4, 3), dtype=np.uint8)
        path = place / f"{number}.mp4"
        if str(number) != GONE:
            files.write_video(path, pixels.repeat(8, 1).repeat(8, 2))
        texts = (f"a thing of number {number}", f"a number {number}")[: 1 + (number in (1, 4))]
        made.append(Clip(str(number), path, texts, split="test" if number < 6 else "train"))
    write_manifest(place / "clips.jsonl", made)
    build(text=TEXT).save_pretrained(place / "loose")
    build(text=TEXT, head="lstm", scorer="tight").save_pretrained(place / "tight")
    return place


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(protocols.PROTOCOLS, "tiny", TINY)


def run(*words: str, model: str = "loose", data: str = "clips.jsonl") -> int:
    return main(["evaluate", "retrieval", model, "--data", data, "--output", "out", *words])


def record() -> dict:
    return json.loads(Path("out/evaluation.json").read_text())


def rows(printed: str) -> list[str]:
    """The first cells of the table."""
    found = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    return found[2:]


def direct(folder: Path, **options) -> dict:
    """The same without the command."""
    clips = [clip for clip in read_manifest(folder / "clips.jsonl") if clip.split == "test"]
    store = FrameStore(folder / "direct", size=16, frames=4)
    store.fill(clips, 1, "clips")
    tokenizer = Tokenizer(options.pop("words", 16))
    return evaluate(load(folder / "loose"), clips, store, tokenizer, **options).metrics()


def test_the_table_the_files_and_what_is_missing(folder: Path, capsys) -> None:
    assert run("--frames", "4") == 0
    printed = capsys.readouterr().out
    assert rows(printed) == ["text to video", "video to text"]
    assert "N = 6 videos, 8 captions; 1 videos are missing and count as misses" in printed
    assert "expected 6 = evaluated 6 = unique 6" in printed
    assert "unreadable, counted as a miss: 5: " in printed
    assert "5.mp4 does not exist" in printed
    assert "4 frames by segments, 16 words" in printed
    found = record()
    assert found["metrics"] == direct(folder)
    assert (found["label"], found["beside"], found["protocol"]) == ("", {}, None)
    assert list(found["unreadable"]) == ["5"]
    assert found["options"]["frames"] == 4
    ranks = pd.read_parquet("out/ranks.parquet")
    assert ranks.groupby("direction").size().to_dict() == {"text_to_video": 8, "video_to_text": 6}
    hits = 100 * (ranks["rank"] <= 1).groupby(ranks["direction"]).mean()
    assert hits["text_to_video"] == pytest.approx(found["metrics"]["text_to_video"]["R@1"])
    missing = pd.read_csv("out/missing.csv", dtype=str)
    assert missing["video_id"].tolist() == ["5"]


def test_intervals_draw_what_the_clips_were_cut_from(folder: Path, capsys) -> None:
    assert run("--frames", "4") == 0
    by_clip = record()
    ranks = pd.read_parquet("out/ranks.parquet").query("direction == 'text_to_video'")
    own = mean_interval(100.0 * (ranks["rank"] <= 5), ranks["video"])
    assert by_clip["intervals"]["text_to_video"]["R@5"] == pytest.approx([own.low, own.high])
    assert own.low < own.high
    whole = by_clip["intervals"]["text_to_video"]["R@1"]
    assert f"{whole[0]:.1f} to {whole[1]:.1f}" in capsys.readouterr().out
    films = [
        c._replace(source=str(int(c.video_id) // 3)) for c in read_manifest(Path("clips.jsonl"))
    ]
    write_manifest(Path("films.jsonl"), films)
    assert run("--frames", "4", data="films.jsonl") == 0
    film = ranks["video_id"].astype(int) // 3
    together = mean_interval(100.0 * (ranks["rank"] <= 5), film)
    found = record()["intervals"]["text_to_video"]["R@5"]
    assert found == pytest.approx([together.low, together.high])
    assert found != pytest.approx([own.low, own.high])
    one = [c._replace(source="one") for c in films]
    write_manifest(Path("one.jsonl"), one)
    assert run("--frames", "4", data="one.jsonl") == 0
    assert record()["intervals"]["text_to_video"]["R@1"] is None


def test_missing_videos_are_left_out_only_where_that_is_asked_for(folder: Path, capsys) -> None:
    assert run("--frames", "4", "--exclude-missing") == 0
    printed = capsys.readouterr().out
    assert "N = 5 videos of 6 (1 excluded because they are missing), 7 captions" in printed
    assert "unreadable, excluded: 5: " in printed
    assert "expected 5 = evaluated 5 = unique 5" in printed
    assert record()["excluded"] == ["5"]
    assert len(pd.read_parquet("out/ranks.parquet")) == 7 + 5
    assert run("--split", "all", "--frames", "4") == 0
    assert "N = 9 videos, 11 captions" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--words", "--max-words"])
def test_order_and_words_are_those_that_were_asked_for(folder: Path, words: str) -> None:
    assert run("--frames", "4", "--frame-order", "reversed", words, "5") == 0
    found = record()
    assert found["words"] == 5
    assert found["notes"] == [
        "6 of 8 captions are longer than 5 tokens, start and end included, and lose their end."
    ]
    assert found["metrics"] == direct(folder, order="reversed", words=5)
    assert found["metrics"] != direct(folder, order="reversed")
    table = pd.read_parquet("out/ranks.parquet")
    assert set(table["frame_order"]) == {"reversed"}


def test_a_protocol_is_checked_and_brings_its_recipe(folder: Path, capsys) -> None:
    assert run("--protocol", "tiny") == 0
    printed = capsys.readouterr().out
    assert "tiny: N = 6 videos, 8 captions; 1 videos are missing" in printed
    assert "3 frames by seconds, 9 words" in printed
    assert "would print R@1" in printed
    assert "of 5 queries" in printed
    found = record()
    assert found["protocol"]["source"] == "these tests"
    assert list(found["counted_as_in_clip4clip"]) == ["video_to_text"]  # several captions a video
    assert found["notes"] == []
    assert run("--protocol", "tiny", "--frames", "2", "--sampling", "segments", "--words", "7") == 0
    assert record()["notes"] == []  # the longest captions have just 7
    assert "2 frames by segments, 7 words" in capsys.readouterr().out
    assert run("--protocol", "tiny", "--exclude-missing") == 0
    assert "tiny: N = 5 videos of 6 (1 excluded" in capsys.readouterr().out


def test_a_split_that_is_not_the_protocols_is_refused_before_anything_is_read(capsys) -> None:
    clips = [clip for clip in read_manifest(Path("clips.jsonl")) if clip.video_id != "2"]
    write_manifest(Path("fewer.jsonl"), clips[:-1])
    assert run("--protocol", "tiny", data="fewer.jsonl", model="nowhere") == 1
    assert "is not tiny: 5 videos instead of 6; 7 captions instead of 8" in capsys.readouterr().err
    assert run("--protocol", "tiny", "--exclude-missing", data="fewer.jsonl") == 0
    printed = capsys.readouterr().out
    assert "N = 4 videos of 6 (2 excluded because they are missing)" in printed
    assert "The manifest has 2 training videos, the training list of tiny 3" in printed


def test_other_scores_are_labelled_in_the_table_and_in_the_record(capsys) -> None:
    assert run("--frames", "4", "--rescore", "dsl", "qb-norm", "dsl") == 0
    printed = capsys.readouterr().out
    dsl, bank = "dsl-uses-test-queries", "qb-norm-uses-test-queries-and-training-captions"
    assert rows(printed) == [
        "text to video", "video to text", f"text to video, {dsl}", f"video to text, {dsl}",
        f"text to video, {bank}",
    ]  # fmt: skip
    assert f"{dsl}: dual softmax: uses test queries" in printed
    assert f"{bank}: QB-Norm, beta 20: uses test queries one at a time, but with them 3" in printed
    found = record()
    assert found["label"] == ""
    assert list(found["beside"]) == [dsl, bank]
    for name, beside in found["beside"].items():
        assert beside["label"] in printed
        assert set(pd.read_parquet(f"out/ranks-{name}.parquet")["direction"]) == set(
            beside["metrics"]
        )
    assert run("--frames", "4") == 0
    assert sorted(p.name for p in Path("out").glob("*.parquet")) == ["ranks.parquet"]


def test_a_re_ranking_is_labelled_and_stands_beside_the_loose_score(capsys) -> None:
    assert run("--frames", "4", model="tight") == 0
    whole = record()["metrics"]
    assert run("--frames", "4", "--rerank", "2", model="tight") == 0
    printed = capsys.readouterr().out
    assert rows(printed)[-4:] == [
        "text to video, reranked-top-2", "video to text, reranked-top-2",
        "text to video, loose", "video to text, loose",
    ]  # fmt: skip
    found = record()
    assert found["label"].startswith("top-2 re-rank from the loose score: the model scored ")
    assert found["label"] in printed
    assert list(found["beside"]) == ["loose"]
    assert found["metrics"] != whole
    assert run("--frames", "4", "--rerank", "8", model="tight") == 0
    assert record()["metrics"] == whole


def test_a_model_without_numbers_is_said(folder: Path, capsys) -> None:
    model = build(text=TEXT)
    with torch.no_grad():
        model.clip.text_projection.fill_(torch.nan)
    model.save_pretrained(folder / "broken")
    assert run("--frames", "4", model="broken") == 0
    found = record()
    assert found["metrics"]["text_to_video"]["R@10"] == 0
    [note] = found["notes"]
    assert note.startswith("7 of 8 captions count as misses although their video can be read")
    assert note in capsys.readouterr().out


def test_results_have_a_place_of_their_own(folder: Path) -> None:
    for words in ([], ["--frame-order", "shuffled", "--protocol", "tiny", "--exclude-missing"]):
        assert main(["evaluate", "loose", "--data", "clips.jsonl", "--frames", "2", *words]) == 0
    made = {path.name for path in (folder / "loose").iterdir() if path.is_dir()}
    assert made == {
        "frames", "evaluation-normal", "evaluation-tiny-shuffled-missing-excluded",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--protocol tinny", "no retrieval protocol is named 'tinny'; did you mean 'tiny'"),
        ("--protocol tiny --split val", "measured on the test split, but --split is val"),
        ("--frames 0", "--frames is 0; give at least 1 frame"),
        ("--max-words -1", "--words is -1; give at least 1 token"),
        ("--batch-size 0", "--batch-size is 0; give at least 1 clip"),
        ("--rerank 0", "--rerank is 0; give at least 1 candidate"),
        ("--rerank 2 --rescore dsl", "--rescore needs the score of every pair"),
        ("--rerank 2", "leave --rerank out"),
        ("--output clips.jsonl/inside", "cannot write to clips.jsonl/inside"),
    ],
)
def test_what_cannot_be_is_one_message(words: str, message: str, capsys) -> None:
    assert run(*words.split()) == 1
    assert message in capsys.readouterr().err


def test_a_bank_is_asked_for_before_anything_is_decoded(folder: Path, capsys) -> None:
    clips = [clip for clip in read_manifest(Path("clips.jsonl")) if clip.split == "test"]
    write_manifest(Path("test_only.jsonl"), clips)
    assert run("--rescore", "qb-norm", data="test_only.jsonl") == 1
    out, err = capsys.readouterr()
    assert "no captions in a split named train" in err
    assert "decoding" not in out + err
    write_manifest(Path("gone.jsonl"), [clip for clip in clips if clip.video_id == GONE])
    assert run(data="gone.jsonl") == 1
    assert "none of the 1 clips can be read" in capsys.readouterr().err
    assert run("--exclude-missing", data="gone.jsonl") == 1
    assert "all 1 videos are missing: nothing is left" in capsys.readouterr().err


def both(folder: Path) -> list[int]:
    """What each of several processes does."""
    os.chdir(folder)
    common = ["--data", "clips.jsonl", "--frames", "4", "--batch-size", "2", "--output"]
    loose = ["loose", *common, "both-loose", "--rescore", "dsl", "qb-norm"]
    tight = ["tight", *common, "both-tight", "--rerank", "2"]
    return [main(["evaluate", *words]) for words in (loose, tight)]


def test_two_processes_write_what_one_writes(folder: Path, tmp_path: Path) -> None:
    assert processes.run(both, folder, tmp_path) == [[0, 0], [0, 0]]
    found = _records()
    assert both(folder) == [0, 0]
    for ours, alone in zip(found, _records(), strict=True):
        for name in ("metrics", "label", "beside", "counts", "evaluated", "unreadable"):
            assert ours[name] == alone[name], name


def _records() -> list[dict]:
    return [json.loads(Path(f"both-{n}/evaluation.json").read_text()) for n in ("loose", "tight")]
