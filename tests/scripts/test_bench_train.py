"""The benchmark of training on a tiny CLIP: what it times, compares, refuses and writes."""

import json
from statistics import median

import bench_train as bench
import pytest

from videoclip.model import Model
from videoclip.towers import Text, ViT

TINY = Model(
    visual=ViT(width=64, layers=2, patch_size=8, image_size=32),
    text=Text(width=64, layers=2),
    embedding=64,
)
QUICK = [
    "--models", "tiny", "--frames", "2", "--clips", "3", "--rounds", "2", "--matrix", "64",
    "--threads", "1", "--clock", "processor", "--precision", "fp32",
]  # fmt: skip


def test_the_command_prints_a_table_of_what_it_writes(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "architecture", {"tiny": TINY}.get)
    written = tmp_path / "bench.json"
    engines = ["plain", "transformers"]
    bench.main([*QUICK, "--modules", "mean", "--engines", *engines, "--json", str(written)])
    found = json.loads(written.read_text())
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert lines[0] == found["conditions"]
    [row] = found["rows"]
    rates = {way: 3 / median(seconds) for way, seconds in row["seconds"].items()}
    assert [len(seconds) for seconds in row["seconds"].values()] == [2, 2]
    assert 0 < row["flops"]["plain"] < row["flops"]["transformers"]  # one row of the last block
    for way, cell in zip(engines, cells[2:], strict=True):
        assert cell[:4] == ["tiny", "2", "mean", way]
        assert float(cell[4].replace(",", "")) == pytest.approx(rates[way], rel=0.01)
        assert cell[5] == f"{rates[way] / rates['transformers']:.2f}"
        assert cell[6] == f"{row['flops'][way] * rates[way] / 3 / row['peak']:.0%}"
        assert 0.1 < float(cell[7]) == pytest.approx(row["memory"][way] / 1e9, abs=0.01)


class Fake:
    """A worker that notes what it is asked."""

    asked: list[str] = []  # noqa: RUF012

    def __init__(self, way: str, *_: object) -> None:
        self.way = way

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def answer(self) -> dict[str, float]:
        return {"loss": 1.0 if self.way == "plain" else 1.001, "flops": 1}

    def ask(self, what: str) -> float:
        self.asked.append(f"{self.way} {what}")
        return 1.0


def test_engines_take_turns_after_a_round_that_warms_up() -> None:
    seconds, peaks = bench.interleaved({name: Fake(name) for name in ("plain", "other")}, 2)
    assert (seconds, peaks) == ({"plain": [1.0, 1.0], "other": [1.0, 1.0]}, [1.0, 1.0])
    round_, turned = ["plain step", "other step"], ["other step", "plain step"]
    assert Fake.asked == [*round_, "plain peak", *turned, "plain peak", *round_, "plain peak"]


def test_nothing_is_timed_where_first_losses_disagree(monkeypatch) -> None:
    monkeypatch.setattr(bench, "Worker", Fake)
    options = bench.Options(precision="fp32", engines=("compile",))
    with pytest.raises(SystemExit, match=r"is 1.001 with compile and 1.0 with plain; nothing was"):
        bench.measure("tiny", TINY, 2, "mean", options)


def test_an_engine_that_cannot_work_says_why() -> None:
    options = bench.Options(engines=("plain",), clips=1)
    with (
        bench.Worker("zero-7", TINY, 2, options) as worker,
        pytest.raises(SystemExit, match=r"(?s)zero-7 cannot be timed:.*(stage|zero)"),
    ):
        worker.answer()
