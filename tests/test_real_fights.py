"""A comparison of modules on real clips of fights, split by what they were cut from."""

import csv
import json
import re
from pathlib import Path

import pandas as pd

from videoclip.__main__ import main
from videoclip.manifest import Clip, write_manifest


def test_fights_are_compared_by_whole_sources(shared: Path, tmp_path: Path, capsys) -> None:
    with (shared / "data/MANIFEST.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["path"].startswith("action_fight/")]
    clips = [
        Clip(
            Path(row["path"]).stem, shared / "data" / row["path"], label=row["label"],
            source=re.search(r"source group \d+", row["note"])[0],
        )
        for row in rows
    ]  # fmt: skip
    assert len(clips) == 78
    write_manifest(tmp_path / "fights.jsonl", clips)
    arguments = [
        "compare", "moving_actions", "--data", str(tmp_path / "fights.jsonl"),
        "--modules", "mean,shift", "--seeds", "0", "--output", str(tmp_path / "run"),
        "--task.templates", "a video of {}", "--task.views", "3x1",
        "--pretrain.epochs", "1", "--finetune.epochs", "1", "--data.takes", "1",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "run/results.json").read_text())
    protocol = results["protocol"]
    tested = protocol["videos"]
    assert protocol["counts"] == f"expected {tested} = scored {tested} + 0 bad"
    assert protocol["candidates"] == 2
    [note] = [n for n in protocol["notes"] if "were cut from" in n]
    sources = int(re.search(r"from (\d+) sources", note)[1])
    assert f"Only {sources} test sources: bootstrap intervals are too narrow" in printed
    assert "no difference is set in bold" in printed
    source = {clip.video_id: clip.source for clip in clips}
    for path in (tmp_path / "run").glob("cells/*/ranks.parquet"):
        ranks = pd.read_parquet(path).query("frame_order == 'normal'")
        assert len(ranks) == len(set(ranks["video_id"])) == tested
        assert len(set(ranks["source"])) == sources == len({source[v] for v in ranks["video_id"]})
    for row in results["rows"]:
        assert set(row["video_to_class"]) == {"top-1", "mean class"}, "two classes have no top-5"
        top = row["video_to_class"]["top-1"]
        assert top["low"] <= top["mean"] <= top["high"]
