"""results.json -> what people read: tables, a chart and a page; nothing is computed anew here."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's palette, which color-blind readers can tell apart."""
TITLES = {"text_to_video": "text to video", "video_to_text": "video to text"}
NOTE = (
    "Cells: mean over seeds ± standard deviation over seeds [95 % interval over test videos]. "
    "A difference in bold has an interval that excludes zero."
)


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Writes results.json, .md, .csv and .tex, chart.png and .svg, and index.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = report_tables(results)
    text = json.dumps(_strict(results), indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder / "results.json", text + "\n")
    _write(folder / "results.md", markdown(results))
    _write(folder / "results.csv", long_table(results).to_csv(index=False))
    _write(folder / "results.tex", "\n".join(_latex(title, t) for title, t in tables.items()))
    figure = chart(results)
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        partial = folder / f"chart.part{suffix}"
        figure.savefig(partial, **options)
        partial.replace(folder / f"chart{suffix}")
    environment = Environment(loader=PackageLoader("videoclip", ""), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        tables={title: _html_rows(table) for title, table in tables.items()},
        note=NOTE,
        footnotes=footnotes(results),
    )
    _write(folder / "index.html", page)


def markdown(results: Mapping[str, Any]) -> str:
    """The tables with their protocol, to be pasted."""
    parts = [f"# {results['title']}", protocol_line(results)]
    for title, table in report_tables(results).items():
        escaped = table.map(lambda cell: str(cell).replace("|", "\\|"))
        parts += [f"**{title}**", escaped.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join([*parts, NOTE, *footnotes(results)]) + "\n"


def protocol_line(results: Mapping[str, Any]) -> str:
    """One sentence that says what was measured on what."""
    p = results["protocol"]
    return (
        f"Split {p['split']}: {p['videos']} videos, {p['queries']} captions; {p['counts']}; "
        f"{p['tie_rule']}; selection: {p['selection']}; interval: {p['interval']}."
    )


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = list(results["protocol"]["notes"])
    for bad in results["protocol"]["unreadable"]:
        notes.append(f"Unreadable, counted as a miss: {bad['video_id']}: {bad['reason']}")
    notes += [f"{row['name']}, {note}" for row in results["rows"] for note in row["tie_notes"]]
    for cell in results["unfinished"]:
        notes.append(f"Not finished: {cell['name']}, seed {cell['seed']}: {cell['reason']}")
    if results["ceiling"]:
        label, value = results["ceiling"]["label"], results["ceiling"]["R@1"]
        notes.append(f"The {label} is {value:.1f} R@1.")
    return notes


def report_tables(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables that people read, by title; cells are text."""
    rows, tables = results["rows"], {}
    for direction, title in TITLES.items():
        table = []
        for row in rows:
            found = row[direction]
            line = {"module": row["name"]}
            line |= {name: _cell(found[name]) for name in ("R@1", "R@5", "R@10", "MdR", "MnR")}
            difference = (row["difference"] or {}).get(direction, {}).get("R@1")
            line[f"R@1 - {results['baseline']}"] = _difference(difference, results)
            table.append(line)
        tables[title.capitalize()] = pd.DataFrame(table)
    if results["groups"]:
        tables["R@1 by kind of caption, text to video"] = pd.DataFrame(
            [_group_line(row, results) for row in rows]
        )
    tables["Cost"] = pd.DataFrame(
        [
            {
                "module": row["name"],
                "parameters": f"{row['parameters']:,}",
                "of these new": f"{row['new_parameters']:,}",
                "ms per clip": f"{row['ms_per_clip']:.2f}",
                "seeds": ", ".join(str(seed) for seed in row["seeds"]),
            }
            for row in rows
        ]
    )
    return tables


def long_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Every number of the tables in a line of its own, for other programs."""
    lines = []
    for row in results["rows"]:
        name = _no_formula(row["name"])
        for direction in TITLES:
            for metric, value in row[direction].items():
                lines.append({"module": name, "what": direction, "metric": metric, **value})
            for metric, value in (row["difference"] or {}).get(direction, {}).items():
                what = f"{direction} minus {results['baseline']}"
                lines.append({"module": name, "what": what, "metric": metric, **value})
        for group, value in row["by_group"].items():
            line = {"module": name, "what": f"group {group}", "metric": "R@1"}
            lines.append(line | value["R@1"])
            if value["difference"]:
                line["what"] += f" minus {results['baseline']}"
                lines.append(line | value["difference"])
        for order, value in row["frame_order"].items():
            line = {"module": name, "what": f"frames {order}", "metric": "R@1"}
            lines.append(line | value["R@1"])
            for group, inner in value["by_group"].items():
                lines.append(line | {"what": f"frames {order}, group {group}"} | inner["R@1"])
        for fact in ("parameters", "new_parameters", "ms_per_clip"):
            lines.append({"module": name, "what": "cost", "metric": fact, "mean": row[fact]})
    columns = ["module", "what", "metric", "mean", "sd", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def chart(results: Mapping[str, Any]) -> Figure:
    """R@1 of every module with its interval; hollow where the frames were shuffled."""
    rows, groups = results["rows"], [None, *results["groups"]]
    figure = Figure(figsize=(8, 1.6 + 0.32 * len(rows) * (len(groups) + 0.6)), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    step = 0.8 / len(groups)
    for place, (group, color) in enumerate(zip(groups, COLORS * len(groups), strict=False)):
        label = f"{group} captions" if group else "all captions"
        heights = [i + (place - (len(groups) - 1) / 2) * step for i in range(len(rows))]
        normal = [r["by_group"][group]["R@1"] if group else r["text_to_video"]["R@1"] for r in rows]
        _points(axes, normal, heights, color, label, filled=True)
        shuffled = [r["frame_order"]["shuffled"] for r in rows]
        shuffled = [s["by_group"][group]["R@1"] if group else s["R@1"] for s in shuffled]
        heights = [h + step / 3 for h in heights]
        _points(axes, shuffled, heights, color, f"{label}, frames shuffled", filled=False)
    if results["ceiling"]:
        value, label = results["ceiling"]["R@1"], results["ceiling"]["label"]
        axes.axvline(value, color="gray", linestyle="--", label=f"{label}, all captions")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("text-to-video R@1 (%), mean over seeds, 95 % interval over test videos")
    axes.set_title(results["title"], parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure


def _points(
    axes: Any,
    values: Sequence[Mapping[str, float]],
    heights: Sequence[float],
    color: str,
    label: str,
    *,
    filled: bool,
) -> None:
    means = [value["mean"] for value in values]
    below = [value["mean"] - value["low"] for value in values]
    above = [value["high"] - value["mean"] for value in values]
    fill = color if filled else "white"
    axes.errorbar(
        means, heights, xerr=[below, above], fmt="o", color=color, markerfacecolor=fill,
        capsize=3, markersize=6 if filled else 4, linewidth=1.6 if filled else 0.9, label=label,
    )  # fmt: skip


def _group_line(row: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    line = {"module": row["name"]}
    for group in results["groups"]:
        found = row["by_group"][group]
        line[group] = _cell(found["R@1"])
        line[f"{group} - {results['baseline']}"] = _difference(found["difference"], results)
        for order, other in row["frame_order"].items():
            line[f"{group}, {order}"] = _cell(other["by_group"][group]["R@1"])
    return line


def _cell(value: Mapping[str, float]) -> str:
    text = f"{value['mean']:.1f}"
    if value.get("sd"):
        text += f" ± {value['sd']:.1f}"
    if "low" in value and not math.isnan(value["low"]):
        text += f" [{value['low']:.1f}, {value['high']:.1f}]"
    return text


def _difference(value: Mapping[str, float] | None, results: Mapping[str, Any]) -> str:
    """The difference, in bold where its interval excludes zero and there are videos enough."""
    if value is None:
        return ""
    if math.isnan(value["low"]):
        return f"{value['mean']:+.1f}"
    text = f"{value['mean']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"
    beyond = value["low"] > 0 or value["high"] < 0
    return f"**{text}**" if beyond and not results["protocol"]["few"] else text


def _html_rows(table: pd.DataFrame) -> dict[str, list]:
    """A table for the page, where bold is a tag and not two stars."""
    cells = []
    for line in table.to_numpy().tolist():
        cells.append([(str(c).strip("*"), str(c).startswith("**")) for c in line])
    return {"columns": list(table.columns), "rows": cells}


def _latex(title: str, table: pd.DataFrame) -> str:
    """A tabular with its title as a comment; only booktabs is needed."""
    plain = table.map(lambda cell: _tex(str(cell).strip("*")))
    plain.columns = [_tex(str(column)) for column in table.columns]
    body = plain.style.hide(axis="index").to_latex(hrules=True, column_format="l" * plain.shape[1])
    return f"% {title}\n{body}"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def _strict(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for (bounds that are undefined)."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_formula(text: str) -> str:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
