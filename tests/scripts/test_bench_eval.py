"""The benchmark of the evaluation, made small: what it times, compares, refuses, prints, writes."""

import importlib.util
import json
import math
import time
from pathlib import Path
from statistics import median

import clips as files
import numpy as np
import pytest
import torch
from models import build

from videoclip.manifest import Clip, write_manifest
from videoclip.scorers import Tight
from videoclip.towers import Text

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("bench_eval", ROOT / "scripts/bench_eval.py")
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)
SMALL = {
    "captions": 60, "videos": 20, "texts": 3, "clips": 5, "frames": 4, "width": 64, "layers": 2,
    "pairs": 8, "rounds": 2, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*words: str, **changes: object) -> None:
    options = {**SMALL, **changes}
    bench.main([*(f"--{name}={value}" for name, value in options.items()), "--top", "2", *words])


def cells(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_command_prints_a_table_of_what_it_writes(tmp_path: Path, capsys) -> None:
    run("--json", str(tmp_path / "bench.json"))
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert printed.splitlines()[0] == found["conditions"]
    assert "2 rounds" in found["conditions"]
    assert [row["what"] for row in found["rows"]] == ["ranks", "tight-fusion", "re-ranking"]
    assert [len(row["seconds"]) for row in found["rows"]] == [2, 4, 2]
    shown = iter(cells(printed)[2:])
    for row in found["rows"]:
        assert f"{row['what']}: {row['note']}" in printed
        slowest = median(row["seconds"][[*row["seconds"]][-1]])
        for way, seconds in row["seconds"].items():
            assert len(seconds) == 2
            what, name, shown_seconds, ratio = next(shown)
            assert (what, name) == (row["what"], way)
            assert float(shown_seconds) == pytest.approx(median(seconds), rel=0.01)
            assert float(ratio) == pytest.approx(slowest / median(seconds), rel=0.01)
    assert next(shown, None) is None
    assert "R@1" not in printed  # random weights say nothing


def test_a_trained_model_shows_its_recalls(tmp_path: Path, capsys) -> None:
    noise, made = np.random.default_rng(0), []
    for number in range(5):
        pixels = noise.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        path = files.write_video(tmp_path / f"{number}.mp4", pixels)
        made.append(Clip(f"v{number}", path, (f"clip {number}",), split="test"))
    write_manifest(tmp_path / "clips.jsonl", made)
    text = Text(width=32, layers=1, context_length=32)
    for name in ("cosine", "tight"):
        build(text=text, scorer=name).save_pretrained(tmp_path / name)
    data = ["--data", str(tmp_path / "clips.jsonl")]
    run("--model", str(tmp_path / "tight"), *data, "--parts", "re-ranking")
    printed = capsys.readouterr().out
    assert [cell[0] for cell in cells(printed)[2:]] == ["re-ranking"] * 2
    assert "5 texts and 5 clips; R@1 text to video / video to text: all pairs " in printed
    assert ", top 2 " in printed
    assert ", loose score alone " in printed
    with pytest.raises(bench.VideoclipError, match="scores by the cosine"):
        run("--model", str(tmp_path / "cosine"), *data)
    with pytest.raises(SystemExit, match="belong together"):
        run(*data)


def test_every_way_scores_every_pair_alike() -> None:
    options = bench.Options(texts=5, clips=7, frames=3, width=64, layers=3)
    scorer = Tight(layers=3, variant="reference").build(64).eval()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    text, video = bench.random_embeddings(5, 7, options)
    assert not video.mask.all()
    with torch.no_grad():
        wanted = scorer(text, video, torch.zeros(()))
        for score in (bench.PlainTight(scorer), bench.SharedLayers(scorer)):
            for side in (1, 2, 16):
                found = bench.by_pairs(score, text, video, side)
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_nothing_is_timed_where_results_differ(monkeypatch) -> None:
    def wrong(scores: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
        by_caption, by_video = right(scores, owners)
        by_caption[7] += 1
        return [by_caption, by_video]

    right = bench.padded_double_argsort
    monkeypatch.setattr(bench, "padded_double_argsort", wrong)
    with pytest.raises(SystemExit, match="ranks: counted and sorted ones differ"):
        run()
    monkeypatch.setattr(bench, "padded_double_argsort", right)
    pairs = bench.by_pairs
    monkeypatch.setattr(bench, "by_pairs", lambda *given: pairs(*given) + 0.01)
    with pytest.raises(SystemExit, match=r"tight-fusion, .*: results are 1\.0e-02 apart"):
        run()


def test_other_peoples_time_does_not_count_by_the_clock_of_the_processor() -> None:
    ways = {"sleeps": lambda: time.sleep(0.2)}
    for clock, (low, high) in {"wall": (0.2, math.inf), "processor": (0, 0.1)}.items():
        row = bench.timed("", ways, "", bench.Options(rounds=1, clock=clock))
        assert low <= row.seconds["sleeps"][0] < high


def test_ways_take_turns_after_a_round_that_warms_up(monkeypatch) -> None:
    clock, calls = iter(range(1000)), []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    ways = {name: lambda name=name: calls.append(name) for name in "abc"}
    row = bench.timed("all", ways, "", bench.Options(rounds=2))
    assert "".join(calls) == "abcbcacab"
    assert row.seconds == {name: [1, 1] for name in "abc"}
    assert bench.Row("", {"a": [9, 1, 2], "b": [6, 6, 6]}, "").ratio("a") == 3
