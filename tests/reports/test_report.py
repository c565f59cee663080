"""What people read: tables, chart and page hold the numbers of results.json and nothing harmful."""

import copy
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from videoclip.reports.report import (
    Bold,
    chart,
    footnotes,
    latex,
    long_table,
    markdown,
    markdown_table,
    report_tables,
    write_report,
)
from videoclip.tasks import Measure, Retrieval

HOSTILE = '<script>alert(1)</script> a|b & 50% of_it "x" \n{y} ~ ^ \\ # $z$ [a](b) `c`\x00\u202e'
ORDER = "Text to video, order captions: R@1 by order of frames"
ALL = "Text to video, all captions: R@1 by order of frames"


def written(measure: Measure) -> dict:
    """A task's figures as results.json has them."""
    return {**measure._asdict(), "main": measure.main, "direction": measure.direction}


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
    shuffled = {"R@1": value(first / 2), "by_group": {"order": {"R@1": value(first / 3)}}}
    back = {"R@1": value(first / 2 + 1), "by_group": {"order": {"R@1": value(first / 3 + 1)}}}
    return {
        "name": name, "parameters": 1234567, "new_parameters": 89, "ms_per_clip": 0.456,
        "seeds": [0, 1], "text_to_video": metrics(first), "video_to_text": metrics(first + 1),
        "difference": gap and {d: {"R@1": gap} for d in ("text_to_video", "video_to_text")},
        "by_group": {"order": group},
        "frame_order": {"shuffled": shuffled, "reversed": back},
        "tie_notes": [f"text to video, seed 0: {HOSTILE}"], "published": None,
        "gallery": {"right": [item], "wrong": [item | {"retrieved": [clip | {"correct": False}]}]},
    }  # fmt: skip


@pytest.fixture
def results() -> dict:
    return {
        "title": f"title {HOSTILE}", "baseline": "mean", "groups": ["order"],
        "measure": written(Retrieval.measure),
        "protocol": {
            "split": "test", "videos": 40, "queries": 40, "candidates": 40, "few": False,
            "counts": "expected 40",
            "tie_rule": "mean", "selection": "val", "interval": "95 %", "notes": ["one note"],
            "unreadable": [{"video_id": "v9", "reason": HOSTILE}],
        },
        "ceiling": {"label": "order-blind ceiling", "value": 58.3},
        "rows": [row("mean", 30.0, None), row("lstm", 42.0, 12.0), row("=cmd", 31.0, 1.0)],
        "unfinished": [{"name": "tight", "seed": 3, "reason": "out of memory"}],
        "command": "videoclip compare", "environment": {"torch": "2"}, "config": {"seeds": [0]},
    }  # fmt: skip


def test_tables_hold_the_numbers(results: dict) -> None:
    tables = report_tables(results)
    table = tables["Text to video"].set_index("module")
    assert table.loc["lstm", "R@1"] == "43.0 ± 1.2 [38, 48]"
    assert table.loc["lstm", "R@5"] == "47.0 ± 1.2"
    assert table.loc["lstm", "MdR"] == "2.0 ± 0.0", "no spread over seeds is a finding too"
    assert table.loc["mean", "R@1 minus mean"] == ""
    assert table.loc["lstm", "R@1 minus mean"] == "+12.0 [+8.0, +16.0]"
    assert table.loc["=cmd", "R@1 minus mean"] == "+1.0 [-3.0, +5.0]"
    order = tables[ORDER].set_index("module")
    assert order.loc["lstm", "in order"] == "42.0 ± 1.2 [37, 47]"
    assert order.loc["lstm", "shuffled"] == "14.0 ± 1.2 [9, 19]"
    assert order.loc["lstm", "reversed"] == "15.0 ± 1.2 [10, 20]"
    assert order.loc["lstm", "R@1 minus mean"] == "+12.0 [+8.0, +16.0]"
    whole = tables[ALL].set_index("module")
    assert whole.loc["lstm"].tolist() == [
        "43.0 ± 1.2 [38, 48]", "21.0 ± 1.2 [16, 26]", "22.0 ± 1.2 [17, 27]"
    ]  # fmt: skip
    assert tables["Video to text"].set_index("module").loc["lstm", "R@1"].startswith("44.0")
    assert tables["Cost"].loc[0].tolist() == ["mean", "1,234,567", "89", "0.46", "0, 1"]


def test_only_a_difference_whose_interval_excludes_zero_is_bold(results: dict) -> None:
    gap = results["rows"][2]["difference"]["video_to_text"]
    gap["R@1"] = {"mean": -3.0, "low": -5.0, "high": -1.0}
    tables = report_tables(results)
    bold = {(title, cell) for title, t in tables.items() for cell in t.to_numpy().flat
            if isinstance(cell, Bold)}  # fmt: skip
    up, down = "+12.0 [+8.0, +16.0]", "-3.0 [-5.0, -1.0]"
    assert bold == {(title, up) for title in ("Text to video", "Video to text", ORDER)} | {
        ("Video to text", down)
    }
    assert markdown(results).count("**+12.0 [+8.0, +16.0]**") == 3
    assert r"\textbf{+12.0 [+8.0, +16.0]}" in latex(results)
    assert r"\textbf{$-$3.0 [$-$5.0, $-$1.0]}" in latex(results)


def test_too_few_videos_make_nothing_bold(results: dict) -> None:
    results["protocol"]["few"] = True
    assert "**+12.0" not in markdown(results)
    assert "+12.0 [+8.0, +16.0]" in markdown(results)
    assert "no difference is set in bold" in markdown(results)


def test_one_seed_has_no_deviation(results: dict) -> None:
    for one in results["rows"]:
        one["seeds"] = [0]
    assert "±" not in markdown(results) + latex(results)
    assert "43.0 [38, 48]" in markdown_table(results)


def test_markdown_says_all_that_must_be_known(results: dict) -> None:
    text = markdown(results)
    for part in ("one note", "Unreadable, counted as a miss: v9", "tight, seed 3: out of memory"):
        assert part in text
    assert "expected 40" in text
    assert "58.3" in text
    assert markdown_table(results) in text
    assert markdown_table(results).count("| lstm") == 5


def test_markdown_tables_are_whole_whatever_the_names_are(results: dict) -> None:
    results["rows"][0]["name"] = results["baseline"] = HOSTILE
    results["rows"][1]["name"] = "**lstm_2** _x_"
    text = markdown(results)
    assert "<" not in text.replace("\\<", "")
    assert text.startswith("# title \\<script>")
    assert "\x00" not in text
    assert "\u202e" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5 * (2 + 3)
    cells = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines}
    assert cells == {7, 4, 5}
    assert r"\*\*lstm_2\*\* \_x\_" in text
    assert r"[a\](b) \`c\`" in text


def test_every_number_is_in_the_csv(results: dict, tmp_path: Path) -> None:
    results["rows"][1]["frame_order"]["shuffled"]["R@1"]["mean"] = 100 / 3
    write_report(results, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    lstm = table[(table["module"] == "lstm") & table["minus"].isna()]
    numbers = ["value", "sd", "low", "high"]
    chosen = lstm.query("direction == 'video_to_text' and metric == 'R@5'")
    assert chosen[numbers].to_numpy().tolist() == [[48.0, 1.25, 43.0, 53.0]]
    gap = table.query("module == 'lstm' and minus == 'mean' and group == 'order'")
    assert gap[["value", "low", "high"]].to_numpy().tolist() == [[12.0, 8.0, 16.0]]
    shuffled = lstm.query("frame_order == 'shuffled' and group == 'order'")
    assert shuffled["value"].tolist() == [14.0]
    whole = lstm[(lstm["frame_order"] == "shuffled") & lstm["group"].isna()]
    assert whole["value"].tolist() == [100 / 3], "all digits"
    assert lstm.query("metric == 'parameters'")["value"].tolist() == [1234567]
    assert not table.duplicated(["module", "minus", "direction", "frame_order", "group", "metric"])[
        lambda repeated: repeated
    ].size
    # 2 x 5 metrics, a group, 2 x 2 of frame orders, 3 costs; 3 differences for all but the first
    assert len(table) == len(long_table(results)) == 3 * (10 + 1 + 4 + 3) + 2 * 3


def test_a_spreadsheet_runs_no_name(results: dict, tmp_path: Path) -> None:
    names = ["=a", "+b", "-c", "@d", "\t=e", "plain", 'quoted "x",\ny']
    results["baseline"] = "=a"
    results["rows"] = [row(name, 30.0, 1.0) for name in names]
    write_report(results, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    found = table["module"].drop_duplicates().tolist()
    assert found == ["'=a", "'+b", "'-c", "'@d", "'\t=e", "plain", 'quoted "x",\ny']
    assert set(table["minus"].dropna()) == {"'=a"}


class Page(html.parser.HTMLParser):
    """Collects tags and text and checks that what is opened is closed."""

    EMPTY = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_runs_nothing(results: dict, tmp_path: Path) -> None:
    results["rows"][0]["name"] = results["groups"][0] = HOSTILE
    for one in results["rows"]:
        for found in (one, *one["frame_order"].values()):
            found["by_group"] = {HOSTILE: found["by_group"]["order"]}
    results["config"] = {"note": f"{HOSTILE}</pre>"}
    write_report(results, tmp_path)
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert not page.open
    tags = [tag for tag, _ in page.seen]
    assert not {"script", "link", "iframe", "a", "object"} & set(tags)
    assert not re.search(r"https?:|url\(|@import|src=.?//", text)
    for tag, attributes in page.seen:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["alt"]
            assert attributes["src"] in ("chart.svg", "pictures/a.jpg")
            assert (tmp_path / attributes["src"]).parent in (tmp_path, tmp_path / "pictures")
    assert tags.count("details") == tags.count("summary") == 2 * 3 + 1
    words = " ".join(" ".join(page.text).split())
    assert "<script>alert(1)</script> a|b & 50% of_it" in words, "shown as it was written"
    assert "43.0 ± 1.2 [38, 48]" in words
    assert "<strong>+12.0 [+8.0, +16.0]</strong>" in text
    assert "the video is unreadable" in words
    assert "tie rule: mean" in words
    assert "1 of the models could not be trained" in words
    for note in footnotes(results):
        assert " ".join(note.split()) in words


def test_a_wrong_query_shows_the_clip_that_was_wanted(results: dict, tmp_path: Path) -> None:
    [item] = results["rows"][0]["gallery"]["wrong"]
    item |= {"truth": "the truth", "truth_picture": "pictures/truth.jpg", "rank": 1234567.5}
    for one in results["rows"][1:]:
        one["gallery"] = {"right": [], "wrong": []}
    write_report(results, tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    shown = [attributes["src"] for tag, attributes in page.seen if tag == "img"]
    assert shown == ["chart.svg", "pictures/a.jpg", "pictures/a.jpg", "pictures/truth.jpg"]
    words = " ".join(" ".join(page.text).split())
    assert "wanted : the truth" in words
    assert "rank 1234567.5" in words
    assert "None that lstm got right." in words
    assert [tag for tag, _ in page.seen].count("details") == 2 + 1


def test_latex_has_no_raw_specials(results: dict, tmp_path: Path) -> None:
    results["rows"][0]["name"] = results["baseline"] = HOSTILE
    results["rows"][1]["name"] = "[2pt]"
    results["rows"][2]["name"] = "*_b"
    write_report(results, tmp_path)
    text = (tmp_path / "results.tex").read_text()
    assert r"43.0 $\pm$ 1.2 [38, 48]" in text
    for part in (
        r"50\% of\_it",
        r"\{y\} \textasciitilde{} \textasciicircum{}",
        r"\$z\$",
        r"a\textbar{}b",
    ):
        assert part in text
    for line in text.splitlines():
        assert not re.match(r"\s*[\[*]", line), "a line's end would take it for an argument"
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\caption{") == 5
    bare = re.sub(r"\\[&%$#_{}\\]|\$(\\pm|-)\$", "", text)
    assert not re.search(r"[%#~^_<>|]|\$", bare)
    assert bare.count("{") == bare.count("}")
    rows = [line for line in bare.splitlines() if line.startswith("{[}2pt]")]
    assert [line.count("&") for line in rows] == [6, 6, 3, 4, 4]


def without_groups(results: dict) -> None:
    results["groups"] = []
    for one in results["rows"]:
        one["by_group"] = {}
        for order in one["frame_order"].values():
            order["by_group"] = {}


def without_orders(results: dict) -> None:
    for one in results["rows"]:
        one["frame_order"] = {}


def without_both(results: dict) -> None:
    without_groups(results)
    without_orders(results)


def bare_protocol(results: dict) -> None:
    """No remark on ties, and no word about few videos or a ceiling."""
    del results["protocol"]["few"]
    results["ceiling"] = None
    for one in results["rows"]:
        one["tie_notes"] = []


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        (without_groups, [ALL]),
        (without_orders, ["Text to video, order captions: R@1"]),
        (without_both, []),
        (bare_protocol, [ALL, ORDER]),
    ],
)
def test_what_a_run_does_not_have_is_left_out(
    results: dict, tmp_path: Path, change: Callable[[dict], None], titles: list[str]
) -> None:
    change(results)
    write_report(results, tmp_path)
    expected = ["Text to video", "Video to text", *titles, "Cost"]
    assert list(report_tables(results)) == expected
    assert not Page((tmp_path / "index.html").read_text()).open
    notes = footnotes(results)
    assert any("ceiling" in note for note in notes) == (change is not bare_protocol)


def test_the_chart_shows_every_number(results: dict) -> None:
    figure = chart(results)
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["all captions", "order captions"]
    expected = [([31, 43, 32], [15, 21, 15.5]), ([30, 42, 31], [10, 14, 31 / 3])]
    for axes, (own, shuffled) in zip(figure.axes, expected, strict=True):
        filled, hollow = (line for line in axes.lines if line.get_marker() == "o")
        assert list(filled.get_xdata()) == own
        assert list(hollow.get_xdata()) == shuffled
        assert filled.get_markerfacecolor() != hollow.get_markerfacecolor() == "white"
        bars = [path.get_segments() for path in axes.collections]
        assert [(bar[0, 0], bar[1, 0]) for bar in bars[0]] == [(m - 5, m + 5) for m in own]
        assert axes.get_xlim() == (0, 100)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["mean", "lstm", "=cmd"]
    top, bottom = (filled.get_ydata()[place] for place in (0, -1))
    low, high = figure.axes[0].transData.transform([(0, bottom), (0, top)])[:, 1]
    assert low < high, "the first row is the topmost"
    dashed = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[58.3, 58.3]], "of all captions only"
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == [
        "frames in order", "frames shuffled", "order-blind ceiling, all captions: 58.3 %"
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "groups"), [(1, 0), (5, 2), (12, 2), (3, 7)])
def test_the_chart_has_room(results: dict, tmp_path: Path, rows: int, groups: int) -> None:
    results["rows"] = [row(f"module {i}", 40.0, 1.0) for i in range(rows)]
    results["groups"] = [f"g{i}" for i in range(groups)]
    for one in results["rows"]:
        for found in (one, *one["frame_order"].values()):
            found["by_group"] = dict.fromkeys(results["groups"], found["by_group"]["order"])
    figure = chart(results)
    figure.draw_without_rendering()
    whole = figure.bbox
    assert len(figure.axes) == 1 + groups
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [figure.legends[0].get_tightbbox(), figure._suptitle.get_tightbbox()]
    for place, box in enumerate(boxes):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        for other in boxes[:place]:
            assert not box.overlaps(other)
    write_report(results, tmp_path)
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == tuple(int(150 * inches) for inches in figure.get_size_inches())
        assert len(set(picture.convert("L").resize((40, 40)).tobytes())) > 5
    assert ET.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")


def test_the_chart_bears_any_name(results: dict, tmp_path: Path) -> None:
    results["title"] = results["rows"][0]["name"] = r"_$\frac$ " + HOSTILE
    results["ceiling"]["label"] = r"_x$\frac$ " + HOSTILE
    write_report(results, tmp_path)
    ET.parse(tmp_path / "chart.svg")
    figure = chart(results)
    [name, *_] = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert name == r"_$\frac$ <script>alert(1)</script> …"
    assert figure.legends[0].get_texts()[-1].get_text().startswith(r"_x$\frac$")


def test_a_rounding_error_at_the_bound_does_no_harm(results: dict, tmp_path: Path) -> None:
    above = {"mean": 100.0, "sd": 0.0, "low": 100.00000000000001, "high": 100.00000000000001}
    results["rows"][0]["text_to_video"]["R@1"] = above
    results["rows"][1]["difference"]["text_to_video"]["R@1"] = {
        "mean": -0.01, "low": -0.04, "high": 0.04
    }  # fmt: skip
    write_report(results, tmp_path)
    table = report_tables(results)["Text to video"].set_index("module")
    assert table.loc["mean", "R@1"] == "100.0 ± 0.0 [100, 100]"
    assert table.loc["lstm", "R@1 minus mean"] == "+0.0 [+0.0, +0.0]"


def test_results_json_is_the_truth(results: dict, tmp_path: Path) -> None:
    before = copy.deepcopy(results)
    write_report(results, tmp_path)
    names = ["chart.png", "chart.svg", "index.html"]
    names += [f"results.{kind}" for kind in ("csv", "json", "md", "tex")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "and nothing half written"
    assert json.loads((tmp_path / "results.json").read_text()) == before == results
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(json.loads((tmp_path / "results.json").read_text()), tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_an_undefined_interval_is_left_out(results: dict, tmp_path: Path) -> None:
    """A single test video has no interval; JSON has no nan."""
    nan = float("nan")
    results["rows"][1]["text_to_video"]["R@1"] |= {"low": nan, "high": nan}
    results["rows"][1]["difference"]["text_to_video"]["R@1"] |= {"low": nan, "high": nan}
    write_report(results, tmp_path)
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert written["rows"][1]["text_to_video"]["R@1"]["low"] is None
    for source in (results, written):
        table = report_tables(source)["Text to video"].set_index("module")
        assert table.loc["lstm", "R@1"] == "43.0 ± 1.2"
        assert table.loc["lstm", "R@1 minus mean"] == "+12.0"
        assert len(chart(source).axes[0].collections[0].get_segments()) == 2
    write_report(written, tmp_path)


def test_an_undecodable_name_stops_nothing(results: dict, tmp_path: Path) -> None:
    """File names may hold bytes that are no text; Python keeps them as lone surrogates."""
    results["protocol"]["unreadable"][0]["video_id"] = "clip\udce9"
    results["rows"][0]["gallery"]["right"][0]["truth"] = "clip\udce9"
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_a_single_row_is_compared_with_nothing(results: dict) -> None:
    del results["rows"][1:]
    text = markdown(results)
    assert "minus" not in text
    assert "difference" not in text
    assert "31.0 ± 1.2 [26, 36]" in text
