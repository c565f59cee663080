"""What people read: tables, chart and page hold the numbers of results.json and nothing harmful."""

import copy
import html.parser
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from videoclip.report import chart, long_table, markdown, report_tables, write_report

HOSTILE = '<script>alert(1)</script> a|b & 50% of_it "x" \n{y} ~ ^ \\ #'


def value(mean: float, sd: float = 1.25) -> dict:
    return {"mean": mean, "sd": sd, "low": mean - 5, "high": mean + 5}


def metrics(first: float) -> dict:
    recalls = {f"R@{k}": value(first + k) for k in (1, 5, 10)}
    return recalls | {"MdR": {"mean": 2.0, "sd": 0.0}, "MnR": value(7.0)}


def row(name: str, first: float, difference: float | None) -> dict:
    gap = difference and {"mean": difference, "low": difference - 4, "high": difference + 4}
    clip = {"video_id": HOSTILE, "score": 1.5, "correct": True, "picture": "pictures/a.jpg"}
    item = {
        "query": HOSTILE, "truth": "v1", "rank": 1.5, "retrieved": [clip], "truth_picture": None
    }  # fmt: skip
    group = {"R@1": value(first), "difference": gap}
    order = {"R@1": value(first / 2), "by_group": {"order": {"R@1": value(first / 3)}}}
    return {
        "name": name, "parameters": 1234567, "new_parameters": 89, "ms_per_clip": 0.456,
        "seeds": [0, 1], "text_to_video": metrics(first), "video_to_text": metrics(first + 1),
        "difference": gap and {d: {"R@1": gap} for d in ("text_to_video", "video_to_text")},
        "by_group": {"order": group}, "frame_order": {"shuffled": order, "reversed": order},
        "tie_notes": [f"text to video, seed 0: {HOSTILE}"],
        "gallery": {"right": [item], "wrong": [item | {"retrieved": [clip | {"correct": False}]}]},
    }  # fmt: skip


@pytest.fixture
def results() -> dict:
    return {
        "title": f"title {HOSTILE}", "baseline": "mean", "groups": ["order"],
        "protocol": {
            "split": "test", "videos": 40, "queries": 40, "counts": "expected 40", "few": False,
            "tie_rule": "mean", "selection": "val", "interval": "95 %", "notes": ["one note"],
            "unreadable": [{"video_id": "v9", "reason": HOSTILE}],
        },
        "ceiling": {"label": "order-blind ceiling", "R@1": 58.3},
        "rows": [row("mean", 30.0, None), row("lstm", 42.0, 12.0), row("=cmd", 31.0, 1.0)],
        "unfinished": [{"name": "tight", "seed": 3, "reason": "out of memory"}],
        "command": "videoclip compare", "environment": {"torch": "2"}, "config": {"seeds": [0]},
    }  # fmt: skip


def test_tables_hold_the_numbers(results: dict) -> None:
    table = report_tables(results)["Text to video"].set_index("module")
    assert table.loc["lstm", "R@1"] == "43.0 ± 1.2 [38.0, 48.0]"
    assert table.loc["lstm", "MdR"] == "2.0"
    assert table.loc["mean", "R@1 - mean"] == ""
    assert table.loc["lstm", "R@1 - mean"] == "**+12.0 [+8.0, +16.0]**"
    assert table.loc["=cmd", "R@1 - mean"] == "+1.0 [-3.0, +5.0]"
    groups = report_tables(results)["R@1 by kind of caption, text to video"].set_index("module")
    assert groups.loc["lstm", "order, shuffled"].startswith("14.0")
    assert report_tables(results)["Cost"].loc[0, "parameters"] == "1,234,567"


def test_too_few_videos_make_nothing_bold(results: dict) -> None:
    results["protocol"]["few"] = True
    assert "**+12.0" not in markdown(results)
    assert "+12.0 [+8.0, +16.0]" in markdown(results)


def test_markdown_says_all_that_must_be_known(results: dict) -> None:
    text = markdown(results)
    for part in ("one note", "Unreadable, counted as a miss: v9", "tight, seed 3: out of memory"):
        assert part in text
    lines = [line for line in text.splitlines() if line.startswith("| lstm")]
    assert len(lines) == 4
    assert "expected 40" in text
    assert "58.3" in text


def test_every_number_is_in_the_csv(results: dict, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    chosen = table.query("module == 'lstm' and what == 'text_to_video' and metric == 'R@5'")
    assert chosen[["mean", "low", "high"]].to_numpy().tolist() == [[47.0, 42.0, 52.0]]
    gap = table.query("module == 'lstm' and what == 'group order minus mean'")
    assert gap["mean"].tolist() == [12.0]
    shuffled = table.query("module == 'lstm' and what == 'frames shuffled, group order'")
    assert shuffled["mean"].tolist() == [14.0]
    assert "'=cmd" in set(table["module"]), "a spreadsheet must not run a name as a formula"
    assert len(long_table(results)) == len(table)


class Page(html.parser.HTMLParser):
    """Collects tags and checks that what is opened is closed."""

    EMPTY = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_runs_nothing(results: dict, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    text = (tmp_path / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert "script" not in [tag for tag, _ in page.seen]
    assert "http" not in text
    for tag, attributes in page.seen:
        if tag == "img":
            assert attributes["alt"]
            assert attributes["src"] in ("chart.svg", "pictures/a.jpg")
    assert text.count("<details>") == 2 * 3 + 1
    assert "43.0 ± 1.2 [38.0, 48.0]" in text
    assert "<strong>+12.0 [+8.0, +16.0]</strong>" in text
    assert "the video is unreadable" in text


def test_latex_has_no_raw_specials(results: dict, tmp_path: Path) -> None:
    results["rows"][0]["name"] = "a_b%"
    write_report(results, tmp_path)
    text = (tmp_path / "results.tex").read_text()
    assert r"a\_b\%" in text
    assert r"43.0 $\pm$ 1.2 [38.0, 48.0]" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 4


@pytest.mark.parametrize("groups", [[], ["order"]])
def test_the_chart_shows_every_module(results: dict, tmp_path: Path, groups: list[str]) -> None:
    results["groups"] = groups
    figure = chart(results)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "lstm", "=cmd"]
    assert len(axes.containers) == 2 * (1 + len(groups)), "all captions, then every group"
    write_report(results, tmp_path)
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size[0] == 1200
        assert len(set(picture.convert("L").resize((40, 40)).tobytes())) > 5
    assert "<svg" in (tmp_path / "chart.svg").read_text()


def test_results_json_is_the_truth(results: dict, tmp_path: Path) -> None:
    before = copy.deepcopy(results)
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == before == results
    assert not list(tmp_path.glob("*.part*"))
    stream = io.StringIO(markdown(results))
    assert stream.readline().startswith("# title")


def test_an_undefined_interval_is_left_out(results: dict, tmp_path: Path) -> None:
    """A single test video has no interval; JSON has no nan."""
    nan = float("nan")
    results["rows"][1]["text_to_video"]["R@1"] |= {"low": nan, "high": nan}
    results["rows"][1]["difference"]["text_to_video"]["R@1"] |= {"low": nan, "high": nan}
    write_report(results, tmp_path)
    table = report_tables(results)["Text to video"].set_index("module")
    assert table.loc["lstm", "R@1"] == "43.0 ± 1.2"
    assert table.loc["lstm", "R@1 - mean"] == "+12.0"
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert written["rows"][1]["text_to_video"]["R@1"]["low"] is None
