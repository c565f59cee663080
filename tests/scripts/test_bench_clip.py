"""The side-by-side benchmark on a tiny CLIP: what it times, counts, computes, refuses, writes."""

import importlib.util
import json
from pathlib import Path
from statistics import median

import pytest
import torch
from PIL import Image

from videoclip.model import Model
from videoclip.towers import ResNet, Text, ViT

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("bench_clip", ROOT / "scripts/bench_clip.py")
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)

WIDTH, PATCH, SIZE, WORDS = 64, 8, 32, 77
TINY = Model(
    visual=ViT(width=WIDTH, layers=2, patch_size=PATCH, image_size=SIZE),
    text=Text(width=WIDTH, layers=2),
    embedding=32,
)
RESNET = Model(
    visual=ResNet(width=8, layers=(1, 1, 1, 1), image_size=SIZE),
    text=Text(width=WIDTH, layers=1),
    embedding=32,
)
QUICK = {"batch_size": 2, "rounds": 3, "matrix": 64}


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch) -> None:
    monkeypatch.setattr(bench, "SHORTEST", 0.0)


def test_the_command_prints_a_table_of_what_it_writes(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "architecture", {"tiny": TINY, "resnet": RESNET}.get)
    written, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    files = [f"--json={written}", f"--picture={picture}", "--device=cpu"]
    bench.main([*options, *files, "--models", "tiny", "resnet"])
    found = json.loads(written.read_text())
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert lines[0] == found["conditions"]
    assert cells[0][2:6] == ["ours/s", "transformers/s", "open_clip/s", "ratio"]
    assert len(found["rows"]) == len(cells) - 2 == 2 * 5 * 2  # models, tasks, types
    assert [row["type"] for row in found["rows"]] == ["float32", "bfloat16"] * 10
    for row, cell in zip(found["rows"], cells[2:], strict=True):
        assert cell[:2] == [f"{row['model']}, {row['task']}", row["type"]]
        rates = {name: 2 / median(seconds) for name, seconds in row["seconds"].items()}
        others = [rates[name] for name in ("transformers", "open_clip") if name in rates]
        assert len(others) == (2 if row["model"] == "tiny" else 1)
        assert row["ratio"] == pytest.approx(rates["ours"] / max(others))
        assert cell[5] == f"{row['ratio']:.2f}"
        assert float(cell[2].replace(",", "")) == pytest.approx(rates["ours"], rel=0.01)
        speeds = {name: row["flops"][name] / median(s) for name, s in row["seconds"].items()}
        peak = max(speeds["matmul"], speeds["linear"])
        assert cell[6] == f"{speeds['ours'] / peak:.0%}"
        assert {len(seconds) for seconds in row["seconds"].values()} == {3}
        assert row["difference"] < 0.05
    assert "TFLOP/s" in lines[-1]
    with Image.open(picture) as drawn:
        assert drawn.width > 500


def test_rates_ratio_and_part_of_the_peak() -> None:
    row = bench.Row(
        model="", task="images", type="float32", units=12, difference=0.0,
        flops={"ours": 30, "transformers": 40, "open_clip": 40, "matmul": 100, "linear": 100},
        seconds={
            "ours": [9, 2, 1], "transformers": [3, 3, 3], "open_clip": [4, 4, 0.1],
            "matmul": [5, 5, 5], "linear": [4, 4, 4],
        },
    )  # fmt: skip
    assert [row.rate(name) for name in row.projects] == [6, 4, 3]
    assert row.ratio == 1.5
    assert row.of_peak("ours") == 15 / 25
    assert bench.digits(1234.5) == "1,234"
    assert bench.digits(12.345) == "12.3"


def block(rows: int, width: int) -> int:
    """FLOPs of a transformer block for one sequence."""
    return 8 * rows * width**2 + 4 * rows**2 * width + 16 * rows * width**2


def read(rows: int, width: int) -> int:
    """FLOPs of the last block for the one row that is read: no keys or values are computed.

    The query is carried through the keys' weights instead, and the rows' mean through the values'.
    """
    heads = width // 64
    return 8 * width**2 + 4 * heads * rows * width + 16 * width**2


def test_flops_are_those_that_each_really_computes() -> None:
    options = bench.Options(**QUICK, types=("float32",))
    rows = {row.task: row for row in bench.measure({"tiny": TINY}, options, "cpu")}
    tokens = (SIZE // PATCH) ** 2 + 1
    patches = 2 * (tokens - 1) * 3 * PATCH**2 * WIDTH
    projection = 2 * WIDTH * 32
    ids, long = bench.sentences(2, WORDS)
    cut = int(ids.argmax(1).max()) + 1
    assert cut < 25
    assert (long.argmax(1).max(), long[0].tolist()) == (WORDS - 1, ids[0].tolist())
    whole = {
        "images": patches + 2 * block(tokens, WIDTH) + projection,
        "texts": 2 * block(WORDS, WIDTH) + projection,
    }
    ours = {
        "images": patches + block(tokens, WIDTH) + read(tokens, WIDTH) + projection,
        "texts": block(cut, WIDTH) + read(cut, WIDTH) + projection,
        "texts, one long": block(WORDS, WIDTH) + read(WORDS, WIDTH) + projection,
    }
    for task, expected in ours.items():
        assert rows[task].flops["ours"] == 2 * expected, task
    for name in ("transformers", "open_clip"):
        assert {task: rows[task].flops[name] for task in whole} == {
            task: 2 * expected for task, expected in whole.items()
        }
        # Three times the forward pass; none for the pixels, and attention's scores once more.
        forward = 3 * (whole["images"] + whole["texts"])
        scores = 2 * 2 * (tokens**2 + WORDS**2) * WIDTH
        expected = 2 * (forward - patches + scores)
        assert rows["training"].flops[name] == pytest.approx(expected, rel=1e-3)
    assert rows["training"].flops["ours"] < rows["training, one long"].flops["ours"]
    assert rows["images"].flops["matmul"] == 2 * 64**3


def test_nothing_is_timed_where_outputs_disagree(monkeypatch) -> None:
    build = bench.build

    def wrong(config: Model) -> dict:
        projects = build(config)
        with torch.no_grad():
            projects["open_clip"].model.visual.ln_post.bias[0] += 1
        return projects

    monkeypatch.setattr(bench, "build", wrong)
    with pytest.raises(SystemExit, match="tiny, images in float32: open_clip computes something"):
        bench.measure({"tiny": TINY}, bench.Options(**QUICK), "cpu")


def test_projects_take_turns_after_a_round_that_warms_up(monkeypatch) -> None:
    clock, calls = iter(range(1000)), []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    named = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = bench.interleaved(named, 2, lambda: None, lambda: calls.append("|"))
    assert "".join(calls) == "abc|bca|cab|"
    assert seconds == {name: [1, 1] for name in "abc"}
