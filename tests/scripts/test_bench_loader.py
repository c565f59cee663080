"""The benchmark of the loader, made small: what it prints."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "bench_loader", Path(__file__).resolve().parents[2] / "scripts/bench_loader.py"
)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def test_speed_and_memory_are_measured(capsys) -> None:
    """Memory is looked at while clips pass: a loader that leaks stands out in the last line."""
    bench.main([
        "--clips", "8", "--size", "16", "--batch-size", "4", "--workers", "0", "1",
        "--rounds", "1", "--soak", "3000",
    ])  # fmt: skip
    lines = capsys.readouterr().out.strip().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    speeds, held = rows[2:4], [(int(a.replace(",", "")), float(b)) for a, b in rows[6:]]
    assert [row[0] for row in speeds] == ["0", "1"]
    assert all(float(number) > 0 for row in speeds for number in row[1:3])
    assert [number for number, _ in held][-1] == 3000
    warm = [size for number, size in held if number >= 1000]
    assert max(warm) - warm[0] < 10, f"MiB: {held}"
