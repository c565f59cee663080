"""`videoclip compare` end to end, on real .mp4 files, in small."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.moving_shapes import generate, order_blind_ceiling
from experiments import moving_actions, moving_shapes
from videoclip.__main__ import main
from videoclip.checkpoints.weights import load
from videoclip.evaluation.evaluate import evaluate
from videoclip.experiment import Data, Experiment
from videoclip.frames.store import FrameStore
from videoclip.manifest import manifest_hash, read_manifest
from videoclip.reports.compare import absolute
from videoclip.tasks import Recognition
from videoclip.tokenizer import Tokenizer

SMALL = [
    "--pretrain.epochs", "1", "--finetune.epochs", "1", "--finetune.batch-size", "12",
    "--model.visual.layers", "1", "--model.text.layers", "1", "--frames", "4", "--data.takes", "2",
    "--transformer.head.layers", "1", "--tight.scorer.layers", "1",
    "--class_token.head.layers", "1",
    "--finetune.precision", "fp32", "--pretrain.precision", "fp32",
]  # fmt: skip
MODULES = ("--transformer.", "--tight.", "--class_token.")


def small(*rows: str) -> list[str]:
    """Options for a comparison of seconds, without those of rows that do not run."""
    pairs = list(zip(SMALL[::2], SMALL[1::2], strict=True))
    kept = [p for p in pairs if not p[0].startswith(MODULES) or p[0][2:].split(".")[0] in rows]
    return [*("--modules", ",".join(rows)), *(word for pair in kept for word in pair)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The manifest of a small world: one shape, two colors, 18 captions."""
    folder = tmp_path_factory.mktemp("shapes")
    return generate(
        folder, clips_per_caption=1, images=60, shapes=["square"], colors=["red", "blue"]
    )


def run(shapes: Path, output: Path, *arguments: str, recipe: str = "moving_shapes") -> dict:
    images = str(shapes.with_name("images.jsonl"))
    status = main(
        ["compare", recipe, "--data", str(shapes), "--images", images,
         "--output", str(output), *arguments]
    )  # fmt: skip
    assert status == 0
    return json.loads((output / "results.json").read_text())


def finished(output: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in output.glob("cells/*/cell.json")}


def test_all_modules_make_a_table_a_chart_and_a_page(shapes: Path, tmp_path: Path, capsys) -> None:
    rows = list(moving_shapes.rows)
    results = run(shapes, tmp_path, *small(*rows), "--seeds", "0,1")
    assert [row["name"] for row in results["rows"]] == rows
    assert results["protocol"]["counts"] == "expected 18 = evaluated 18 = unique 18"
    for row in results["rows"]:
        for direction in ("text_to_video", "video_to_text"):
            found = row[direction]
            assert 0 <= found["R@1"]["low"] <= found["R@1"]["mean"] <= found["R@1"]["high"] <= 100
            assert found["R@1"]["mean"] <= found["R@5"]["mean"] <= found["R@10"]["mean"]
            assert 1 <= found["MdR"]["mean"] <= 18
        assert row["seeds"] == [0, 1]
        assert (row["difference"] is None) == (row["name"] == "mean")
        assert set(row["by_group"]) == {"content", "order"}
        assert set(row["frame_order"]) == {"shuffled", "reversed"}
    new = {row["name"]: row["new_parameters"] for row in results["rows"]}
    assert {name for name in rows if not new[name]} == {"mean", "shift"}
    for name in ("results.md", "results.csv", "results.tex", "chart.png", "chart.svg"):
        assert (tmp_path / name).stat().st_size > 100
    page = (tmp_path / "index.html").read_text()
    for picture in tmp_path.glob("pictures/*.jpg"):
        assert f"pictures/{picture.name}" in page
    assert "| transformer" in capsys.readouterr().out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    assert record["experiment"]["data"]["frames"] == 4
    assert record["manifest_hash"] == manifest_hash(shapes)


def test_recognition_has_its_table_from_the_same_code(shapes: Path, tmp_path: Path, capsys) -> None:
    rows = list(moving_actions.rows)
    results = run(shapes, tmp_path, *small(*rows), "--seeds", "0", recipe="moving_actions")
    assert [row["name"] for row in results["rows"]] == rows
    assert results["protocol"]["counts"] == "expected 18 = scored 18 + 0 bad"
    classes = {json.loads(line)["label"] for line in shapes.read_text().splitlines()}
    assert results["protocol"]["candidates"] == len(classes)
    ranks = {
        path.parent.name.partition("-")[0]: pd.read_parquet(path)
        for path in tmp_path.glob("cells/*/ranks.parquet")
    }
    for row in results["rows"]:
        found, table = row["video_to_class"], ranks[row["name"]].query("frame_order == 'normal'")
        assert sorted(table["query"]) == sorted({*table["query"]}), "every clip is scored once"
        assert len(table) == 18
        untied = table[table["optimistic"] == table["pessimistic"]]
        if len(untied) == len(table):
            top = table.assign(hit=100.0 * (table["rank"] <= 1))
            assert found["top-1"]["mean"] == pytest.approx(top["hit"].mean())
            by_class = top.groupby("label")["hit"].mean().mean()
            assert found["mean class"]["mean"] == pytest.approx(by_class)
        assert found["top-1"]["low"] <= found["top-1"]["mean"] <= found["top-1"]["high"]
        assert set(row["frame_order"]) == {"shuffled", "reversed"}
    assert any((t["optimistic"] == t["pessimistic"]).all() for t in ranks.values())
    page = (tmp_path / "index.html").read_text()
    assert "top-1" in page
    assert "probability" in page
    assert "R@1" not in page
    assert "Video to class" in capsys.readouterr().out


def test_finished_cells_are_reused_and_a_new_row_trains_only_itself(shapes, tmp_path) -> None:
    run(shapes, tmp_path, *small("mean"), "--seeds", "0")
    before = finished(tmp_path)
    assert len(before) == 1
    results = run(shapes, tmp_path, *small("mean", "lstm"), "--seeds", "0")
    after = finished(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 2
    assert [row["name"] for row in results["rows"]] == ["mean", "lstm"]
    run(shapes, tmp_path, *small("mean", "lstm"), "--seeds", "0", "--data.crop", "0.9")
    assert len(finished(tmp_path)) == 4, "other settings are other cells"


def test_a_run_repeats_from_its_record(shapes: Path, tmp_path: Path) -> None:
    first = run(shapes, tmp_path / "a", *small("mean", "shift+lstm"), "--seeds", "3")
    record = str(tmp_path / "a" / "run.json")
    assert main(["compare", record, "--output", str(tmp_path / "b")]) == 0
    second = json.loads((tmp_path / "b" / "results.json").read_text())
    assert second["title"] == first["title"]
    for one, two in zip(first["rows"], second["rows"], strict=True):
        for key in ("name", "seeds", "text_to_video", "video_to_text", "by_group", "frame_order"):
            assert one[key] == two[key]


def test_a_given_checkpoint_is_what_the_rows_start_from(shapes: Path, tmp_path: Path) -> None:
    run(shapes, tmp_path / "a", *small("mean"), "--seeds", "0")
    [base] = (tmp_path / "a").glob("base/*")
    still = ["--checkpoint", str(base), "--finetune.epochs", "0"]
    results = run(
        shapes, tmp_path / "b", "--modules", "mean,lstm", "--frames", "4", "--seeds", "0", *still
    )
    assert not (tmp_path / "b" / "base").exists(), "nothing is pre-trained"
    given = load(base)
    for name in ("mean", "lstm"):
        [cell] = (tmp_path / "b").glob(f"cells/{name}-*")
        for key, value in load(cell).clip.state_dict().items():
            assert value.equal(given.clip.state_dict()[key])
    assert results["config"]["checkpoint"] == str(base.resolve())
    assert results["config"]["experiment"]["model"]["visual"]["layers"] == 1


def test_ranks_are_saved_per_query(shapes: Path, tmp_path: Path) -> None:
    results = run(shapes, tmp_path, *small("mean"), "--seeds", "0")
    [path] = tmp_path.glob("cells/*/ranks.parquet")
    ranks = pd.read_parquet(path)
    normal = ranks[(ranks["frame_order"] == "normal") & (ranks["direction"] == "text_to_video")]
    assert len(normal) == 18
    found = results["rows"][0]["text_to_video"]
    low, high = ((normal[name] <= 5).mean() for name in ("pessimistic", "optimistic"))
    assert 100 * low <= found["R@5"]["mean"] + 1e-9
    assert found["R@5"]["mean"] <= 100 * high + 1e-9
    assert normal["rank"].mean() == pytest.approx(found["MnR"]["mean"])


def test_killed_and_started_again(shapes: Path, tmp_path: Path) -> None:
    arguments = [
        "compare", "moving_shapes", "--data", str(shapes),
        "--images", str(shapes.with_name("images.jsonl")), "--output", str(tmp_path),
        *small("mean", "lstm"), "--seeds", "0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "videoclip", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not finished(tmp_path) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(tmp_path)
    assert before
    (tmp_path / "cells" / "half-done").mkdir()
    assert main(arguments) == 0
    assert before.items() <= finished(tmp_path).items()
    assert not (tmp_path / "cells" / "half-done").exists()


TOY = '''"""A toy: the last real frame."""
from dataclasses import dataclass
import torch
from torch import nn
from videoclip.heads.base import Head
from videoclip.types import Embedding, Features

@dataclass(frozen=True, kw_only=True)
class Toy(Head):
    """The last frame."""
    def build(self, width: int) -> nn.Module:
        return ToyHead()

class ToyHead(nn.Module):
    def forward(self, features: Features) -> Embedding:
        last = features.mask.long().cumsum(1).argmax(1)
        rows = torch.arange(len(last))
        return Embedding(features.frames[rows, last], features.frames, features.mask)
'''


def test_a_new_module_is_one_file_and_one_line(shapes: Path, tmp_path: Path) -> None:
    """In a copy of the sources: compare knows the module, and the common suite runs it."""
    root = Path(__file__).resolve().parents[2]
    for folder in ("videoclip", "experiments", "data_prep", "tests"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / "videoclip/heads/toy.py").write_text(TOY)
    with (tmp_path / "videoclip/heads/__init__.py").open("a") as file:
        file.write("from videoclip.heads.toy import Toy as Toy\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable, "-m", "videoclip", "compare", "moving_shapes", "--data", str(shapes),
        "--images", str(shapes.with_name("images.jsonl")), "--output", str(tmp_path / "run"),
        *small("mean", "toy"), "--seeds", "0",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["mean", "toy"]
    suite = [sys.executable, "-m", "pytest", "-q", "tests/test_slots.py", "-k", "toy"]
    answer = subprocess.run(suite, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert "passed" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modules", "mean,transfomer"], "did you mean 'transformer'"),
        (["--modules", "lstm+transformer"], "slot 'head'"),
        (["--modules", ","], "separated by commas"),
        (["--seeds", "0,x"], "whole numbers"),
        (["--seeds", "1,1"], "different"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_gets_one_clear_message(arguments, message, tmp_path, capsys) -> None:
    status = main(["compare", "moving_shapes", "--output", str(tmp_path / "run"), *arguments])
    printed = capsys.readouterr().err
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed


def test_unknown_names_are_answered_with_the_nearest(capsys) -> None:
    assert main(["compar"]) == 2
    assert "did you mean 'compare'" in capsys.readouterr().err
    assert main(["compare", "moving_shape"]) == 1
    assert "did you mean 'moving_shapes'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", "moving_shapes", "--finetune.epoch", "3"])
    assert "--finetune.epochs" in capsys.readouterr().err


def damaged(shapes: Path, tmp_path: Path, split: str) -> Path:
    """The small world with one clip of a split missing and one that is a text file."""
    lines = [json.loads(line) for line in shapes.read_text().splitlines()]
    (tmp_path / "text.mp4").write_text("not a video")
    bad = iter([str(tmp_path / "gone.mp4"), str(tmp_path / "text.mp4")])
    for row in lines:
        row["path"] = str(shapes.parent / row["path"])
        if row["split"] == split:
            row["path"] = next(bad, row["path"])
    manifest = tmp_path / "damaged.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return manifest


def test_unreadable_test_clips_are_listed_and_counted_as_misses(shapes, tmp_path) -> None:
    manifest = damaged(shapes, tmp_path, "test")
    images = str(shapes.with_name("images.jsonl"))
    results = run(manifest, tmp_path / "run", *small("mean"), "--seeds", "0", "--images", images)
    reasons = [bad["reason"] for bad in results["protocol"]["unreadable"]]
    assert len(reasons) == 2
    assert "does not exist" in reasons[0]
    assert "text.mp4" in reasons[1]
    assert results["protocol"]["counts"] == "expected 18 = evaluated 18 = unique 18"
    [path] = (tmp_path / "run").glob("cells/*/ranks.parquet")
    assert pd.read_parquet(path).query("direction == 'text_to_video'")["missing"].sum() == 3 * 2
    assert "Unreadable, counted as a miss" in (tmp_path / "run" / "results.md").read_text()


def test_unreadable_training_clips_are_counted(shapes: Path, tmp_path: Path) -> None:
    manifest = damaged(shapes, tmp_path, "train")
    images = str(shapes.with_name("images.jsonl"))
    results = run(manifest, tmp_path / "run", *small("mean"), "--seeds", "0", "--images", images)
    assert "2 of 18 training clips cannot be read." in results["protocol"]["notes"]


def test_only_a_temporal_module_passes_the_ceiling(tmp_path: Path) -> None:
    """The mean scores twins alike; the shift, trained for seconds, tells them apart."""
    manifest = generate(
        tmp_path / "shapes", clips_per_caption=80, images=1500, shapes=["square"], colors=["red"]
    )
    arguments = [
        "--modules", "mean,shift", "--seeds", "0",
        "--pretrain.epochs", "8", "--pretrain.batch-size", "20",
        "--finetune.epochs", "12", "--finetune.batch-size", "16", "--finetune.tower-rate", "1e-3",
    ]  # fmt: skip
    results = run(manifest, tmp_path / "run", *arguments)
    recalls = {row["name"]: row["text_to_video"]["R@1"]["mean"] for row in results["rows"]}
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    ceiling = 100 * order_blind_ceiling([row for row in rows if row["split"] == "test"])
    assert ceiling == pytest.approx(100 * (1 - 6 / 16))
    assert recalls["shift"] > ceiling
    shuffled = results["rows"][1]["frame_order"]["shuffled"]["R@1"]["mean"]
    assert shuffled <= ceiling
    gaps = {name: twin_gaps(tmp_path / "run", name, rows, manifest) for name in recalls}
    assert gaps["mean"].max() < 1e-3 < gaps["shift"].min()


def twin_gaps(output: Path, name: str, rows: list[dict], manifest: Path) -> np.ndarray:
    """How differently a trained model scores each order caption with its clip and the twin's."""
    [cell] = output.glob(f"cells/{name}-*")
    clips = [c for c in read_manifest(manifest) if c.split == "test" and c.group == "order"]
    store = FrameStore(output / "frames", size=32, frames=4)
    store.fill(clips, 1, "twins")
    scores = evaluate(load(cell), clips, store, Tokenizer(32)).scores
    pairs = np.arange(len(clips)) ^ 1  # twins follow each other
    return np.abs(scores[np.arange(len(clips)), pairs] - scores.diagonal())


def test_a_record_does_not_depend_on_where_it_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("labels.txt", "names.txt", "templates.txt"):
        Path(name).write_text("a {}\n")
    task = Recognition(
        classes=Path("labels.txt"), names="names.txt", templates=("templates.txt", "a video of {}")
    )
    found = absolute(Experiment(task=task, data=Data(manifest=Path("m.jsonl"))))
    assert found.data.manifest == tmp_path / "m.jsonl"
    assert found.task == Recognition(
        classes=tmp_path / "labels.txt", names=str(tmp_path / "names.txt"),
        templates=(str(tmp_path / "templates.txt"), "a video of {}"),
    )  # fmt: skip
    assert absolute(Experiment(task=Recognition())).task == Recognition()
