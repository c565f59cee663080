"""The benchmark of locked towers, made small: what it times, prints and writes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("bench_features", ROOT / "scripts/bench_features.py")
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def test_the_command_prints_a_table_of_what_it_writes(tmp_path: Path, capsys) -> None:
    before = torch.get_num_threads()
    sizes = {
        "clips": 6, "frames": 3, "batch-size": 3, "size": 32, "patch-size": 8, "width": 96,
        "layers": 1,
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in sizes.items()]
    bench.main([*options, "--modules", "mean", "lstm", "--json", str(tmp_path / "bench.json")])
    torch.set_num_threads(before)
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert found["conditions"] in printed
    assert [(row["module"], row["way"]) for row in found["rows"]] == [
        ("mean", bench.TRAINED), ("mean", bench.SEEN), ("mean", bench.READ), ("lstm", bench.READ),
    ]  # fmt: skip
    assert all(len(row["seconds"]) == 2 for row in found["rows"])
    trained, _, read, _ = (sum(row["seconds"]) for row in found["rows"])
    assert read < trained
    ratio = printed.splitlines()[-4].split("|")[-2]
    assert float(ratio) == pytest.approx(trained / read, rel=0.01)
