"""results.json -> what people read: tables, a chart and a page; nothing is computed anew here.

Names, captions and reasons come from users' files: every renderer escapes what is special to it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#555555"
"""Of Okabe and Ito's palette, which color-blind readers can tell apart."""
PANELS = 3
"""How many panels of the chart stand beside each other at most."""
SHOWN = 36
"""Characters of a name that the chart has room for."""
COLUMNS = ("module", "minus", "direction", "frame_order", "group", "metric",
           "value", "sd", "low", "high", "seeds")  # fmt: skip
"""Of results.csv. `minus`: the module that a difference is to; empty `group`: all captions."""


class Bold(str):
    """A cell that stands out: a difference whose interval excludes zero."""

    __slots__ = ()


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Writes results.json, .md, .csv and .tex, chart.png and .svg, and index.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_strict(results), indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder / "results.json", text + "\n")
    _write(folder / "results.md", markdown(results))
    _write(folder / "results.csv", long_table(results).to_csv(index=False))
    _write(folder / "results.tex", latex(results))
    figure = chart(results)
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        partial = folder / f"chart.part{suffix}"
        with matplotlib.rc_context({"svg.hashsalt": "videoclip"}):  # the same file every time
            figure.savefig(partial, **options)
        partial.replace(folder / f"chart{suffix}")
    _write(folder / "index.html", page(results))


def report_tables(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables that people read, by title; cells are text, those that stand out `Bold`."""
    rows, measure, tables = results["rows"], results["measure"], {}
    main, queries = measure["main"], measure["queries"]
    minus = f"{main} minus {_plain(results['baseline'])}"
    for direction, title in measure["directions"].items():
        lines = []
        for row in rows:
            found, difference = row[direction], row["difference"] or {}
            line = {"module": _plain(row["name"]), main: _with_interval(found[main], row)}
            if len(rows) > 1:
                line[minus] = _difference(difference.get(direction, {}).get(main), results)
            line |= {name: _mean(value, row) for name, value in found.items() if name != main}
            if any(row["published"] for row in rows) and direction == measure["direction"]:
                line["published"] = _plain(row["published"] or "")
            lines.append(line)
        tables[title.capitalize()] = lines
    asked = _asked(results)
    ordered = any(row["frame_order"] for row in rows)
    for group in (*([None] if ordered else []), *results["groups"]):
        what = f"all {queries}" if group is None else f"{_plain(group)} {queries}"
        title = f"{asked}, {what}: {main}" + (" by order of frames" if ordered else "")
        tables[title] = [_order_line(row, group, results, minus) for row in rows]
    tables["Cost"] = [
        {
            "module": _plain(row["name"]),
            "parameters": f"{row['parameters']:,}",
            "of these new": f"{row['new_parameters']:,}",
            "ms per clip": f"{row['ms_per_clip']:.2f}",
            "seeds": ", ".join(str(seed) for seed in row["seeds"]),
        }
        for row in rows
    ]
    # dtype: pandas' own text type would turn Bold into plain text
    return {title: pd.DataFrame(lines, dtype=object) for title, lines in tables.items()}


def long_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Every number of the rows in a line of its own, with full precision, for other programs."""
    measure = results["measure"]
    main, lines = measure["main"], []
    for row in results["rows"]:
        base = {"module": row["name"], "frame_order": "normal", "seeds": len(row["seeds"])}
        base["direction"] = measure["direction"]
        minus = {"minus": results["baseline"]}
        for direction in measure["directions"]:
            own = base | {"direction": direction}
            for metric, value in row[direction].items():
                lines.append(own | {"metric": metric} | value)
            for metric, value in (row["difference"] or {}).get(direction, {}).items():
                lines.append(own | minus | {"metric": metric} | value)
        for group, found in row["by_group"].items():
            own = base | {"group": group, "metric": main}
            lines.append(own | found[main])
            if found["difference"]:
                lines.append(own | minus | found["difference"])
        for order, found in row["frame_order"].items():
            own = base | {"frame_order": order, "metric": main}
            lines.append(own | found[main])
            for group, inner in found["by_group"].items():
                lines.append(own | {"group": group} | inner[main])
        for fact in ("parameters", "new_parameters", "ms_per_clip"):
            own = {"module": row["name"], "seeds": len(row["seeds"])}
            lines.append(own | {"metric": fact, "mean": row[fact]})
    table = pd.DataFrame(lines).rename(columns={"mean": "value"}).reindex(columns=list(COLUMNS))
    for column in ("module", "minus", "frame_order", "group"):
        table[column] = table[column].map(_no_formula, na_action="ignore")
    return table


def protocol_line(results: Mapping[str, Any]) -> str:
    """What was measured on what, and how."""
    p = results["protocol"]
    queries = results["measure"]["queries"]
    asked = f"{p['queries']} {queries}"
    if queries == "clips":
        asked = f"{p['candidates']} classes"
    return (
        f"Split {p['split']}: {p['videos']} videos, {asked}; {p['counts']}; "
        f"tie rule: {p['tie_rule']}; selection: {p['selection']}; interval: {p['interval']}."
    )


def table_note(results: Mapping[str, Any]) -> str:
    """How to read the tables' cells."""
    several = any(len(row["seeds"]) > 1 for row in results["rows"])
    cell = "mean over seeds ± standard deviation over seeds" if several else "one seed"
    unit = "R@K" if results["measure"]["positions"] else "All"
    note = f"Cells: {cell}; in brackets the 95 % interval over test videos. {unit} in percent."
    if len(results["rows"]) == 1:
        return note
    if results["protocol"].get("few"):
        return f"{note} With so few test videos no difference is set in bold."
    return f"{note} A difference in bold has an interval that excludes zero."


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = list(results["protocol"]["notes"])
    for bad in results["protocol"]["unreadable"]:
        notes.append(f"Unreadable, counted as a miss: {bad['video_id']}: {bad['reason']}")
    for row in results["rows"]:
        notes += [f"{row['name']}, {note}" for note in row["tie_notes"]]
    for cell in results["unfinished"]:
        notes.append(f"Not finished: {cell['name']}, seed {cell['seed']}: {cell['reason']}")
    if results["ceiling"]:
        label, value, measure = *results["ceiling"].values(), results["measure"]
        over = f"over all {measure['queries']}"
        notes.append(f"The {label}, {over}, is {value:.1f} % {measure['main']}.")
    return notes


def markdown(results: Mapping[str, Any]) -> str:
    """The tables with their protocol and notes, to be pasted."""
    head = f"# {_markdown_text(results['title'])}\n\n{_markdown_text(protocol_line(results))}\n\n"
    notes = "".join(f"- {_markdown_text(note)}\n" for note in footnotes(results))
    return head + markdown_table(results) + (f"\n{notes}" if notes else "")


def markdown_table(results: Mapping[str, Any]) -> str:
    """The tables alone with the note that explains their cells, to be printed."""
    parts = []
    for title, table in report_tables(results).items():
        escaped = table.map(_markdown_cell).rename(columns=_markdown_text)
        parts.append(f"**{_markdown_text(title)}**")
        parts.append(escaped.to_markdown(index=False, disable_numparse=True))
    return "\n\n".join([*parts, table_note(results)]) + "\n"


def latex(results: Mapping[str, Any]) -> str:
    """A table environment per table; only the package booktabs is needed."""
    parts = []
    for title, table in report_tables(results).items():
        cells = table.map(_latex_cell).rename(columns=_latex_text)
        style = cells.style.hide(axis="index")
        body = style.to_latex(hrules=True, column_format="l" * cells.shape[1])
        note = "" if title == "Cost" else f" {table_note(results)}"
        caption = _latex_text(f"{title}.{note}")
        parts.append(
            f"\\begin{{table}}\n\\centering\n{body}\\caption{{{caption}}}\n\\end{{table}}\n"
        )
    return "\n".join(parts)


def page(results: Mapping[str, Any]) -> str:
    """index.html: refers to chart.svg and pictures/ beside it and to nothing else."""
    environment = Environment(loader=PackageLoader("videoclip.reports", ""), autoescape=True)
    environment.tests["bold"] = lambda cell: isinstance(cell, Bold)
    environment.filters["plain"] = _plain
    measure = results["measure"]
    direction, main = measure["direction"], measure["main"]
    values = ", ".join(f"{r['name']} {r[direction][main]['mean']:.1f}" for r in results["rows"])
    return environment.get_template("report.html.jinja").render(
        results=results,
        protocol=protocol_line(results),
        tables=report_tables(results),
        note=table_note(results),
        footnotes=footnotes(results),
        description=f"{_asked(results)}: {main} in percent of every module: {values}",
    )


def chart(results: Mapping[str, Any]) -> Figure:
    """The main figure of every module with its interval, a panel per group of queries."""
    rows, panels = results["rows"], [None, *results["groups"]]
    main, queries = results["measure"]["main"], results["measure"]["queries"]
    columns = min(PANELS, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (max(7.5, 2 + 3.2 * columns), 1.2 + lines * (0.7 + 0.4 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    names = [_short(row["name"]) for row in rows]
    legend: dict[str, Line2D] = {}
    for axes, group in zip(grid, panels, strict=False):
        at = range(len(rows))
        own = [_of_group(row, group, results) for row in rows]
        legend["frames in order"] = _points(axes, own, at, -0.12, BLUE, filled=True)
        orders = [row["frame_order"].get("shuffled") for row in rows]
        shuffled = [order and _of_group(order, group, results) for order in orders]
        if any(shuffled):
            legend["frames shuffled"] = _points(axes, shuffled, at, 0.2, ORANGE, filled=False)
        if results["ceiling"] and group is None:
            value = results["ceiling"]["value"]
            label = f"{_short(results['ceiling']['label'])}, all {queries}: {value:.1f} %"
            legend[label] = axes.axvline(value, color=GRAY, linestyle="--", linewidth=1.2, zorder=1)
        title = f"all {queries}" if group is None else f"{_short(group)} {queries}"
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_yticks(at, names, parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{main} (%) with 95 % interval")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.suptitle(f"{_short(results['title'])}: {_asked(results).lower()}", parse_math=False)
    key = figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=3, frameon=False,
        fontsize=9,
    )  # fmt: skip
    for text in key.get_texts():
        text.set_parse_math(False)
    return figure


def _points(
    axes: Axes,
    values: Sequence[Mapping[str, float] | None],
    at: Sequence[int],
    shift: float,
    color: str,
    *,
    filled: bool,
) -> Line2D:
    """Means as points and intervals as bars; what a row does not have is left out."""
    found = [(value, y + shift) for value, y in zip(values, at, strict=True) if value]
    # Lines from bound to bound: a mean at 100 may lie outside its interval by a rounding error.
    bars = [(*bounds, y) for value, y in found if (bounds := _bounds(value))]
    if bars:
        low, high, heights = zip(*bars, strict=True)
        axes.hlines(heights, low, high, color=color, linewidth=2 if filled else 1.1, zorder=2)
    [line] = axes.plot(
        [value["mean"] for value, _ in found], [y for _, y in found],
        linestyle="", marker="o", markersize=6 if filled else 5, color=color,
        markerfacecolor=color if filled else "white", clip_on=False, zorder=3,
    )  # fmt: skip
    return line


def _asked(results: Mapping[str, Any]) -> str:
    """The direction by which modules are compared, as a title."""
    measure = results["measure"]
    return measure["directions"][measure["direction"]].capitalize()


def _of_group(
    found: Mapping[str, Any], group: str | None, results: Mapping[str, Any]
) -> Mapping[str, float]:
    """The main figure of a row, or of a row's frame order, on all queries or on one group."""
    main, direction = results["measure"]["main"], results["measure"]["direction"]
    if group is not None:
        return found["by_group"][group][main]
    return found[direction][main] if direction in found else found[main]


def _order_line(
    row: Mapping[str, Any], group: str | None, results: Mapping[str, Any], minus: str
) -> dict[str, str]:
    own = _with_interval(_of_group(row, group, results), row)
    line = {"module": _plain(row["name"]), "in order": own}
    # The one of all queries stands in the table of its direction.
    if group is not None and len(results["rows"]) > 1:
        line[minus] = _difference(row["by_group"][group]["difference"], results)
    for order, found in row["frame_order"].items():
        line[order] = _with_interval(_of_group(found, group, results), row)
    return line


def _bounds(value: Mapping[str, float | None]) -> tuple[float, float] | None:
    """The interval, or None where there is none: NaN before results.json, null in it."""
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return None
    return low, high


def _mean(value: Mapping[str, float], row: Mapping[str, Any]) -> str:
    text = f"{value['mean']:.1f}"
    return f"{text} ± {value['sd']:.1f}" if len(row["seeds"]) > 1 else text


def _with_interval(value: Mapping[str, float], row: Mapping[str, Any]) -> str:
    text, bounds = _mean(value, row), _bounds(value)
    return f"{text} [{bounds[0]:.0f}, {bounds[1]:.0f}]" if bounds else text


def _difference(value: Mapping[str, float] | None, results: Mapping[str, Any]) -> str:
    """A difference, bold where its interval excludes zero and there are videos enough."""
    if value is None:
        return ""
    text, bounds = f"{value['mean']:+z.1f}", _bounds(value)
    if bounds is None:
        return text
    text += f" [{bounds[0]:+z.1f}, {bounds[1]:+z.1f}]"
    beyond = bounds[0] > 0 or bounds[1] < 0
    return Bold(text) if beyond and not results["protocol"].get("few") else text


def _plain(text: str) -> str:
    """One line without control characters, which would break tables, comments and SVG."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _short(text: str) -> str:
    text = _plain(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _markdown_text(text: str) -> str:
    # Brackets are harmless but before what makes them a link, underscores but at a word's end.
    return re.sub(r"[\\`*<|]|\](?=[(:\[])|(?<!\w)_|_(?!\w)", r"\\\g<0>", _plain(text))


def _markdown_cell(cell: str) -> str:
    return f"**{cell}**" if isinstance(cell, Bold) else _markdown_text(cell)


def _latex_text(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(character, character) for character in _plain(text))


def _latex_cell(cell: str) -> str:
    text = re.sub(r"(^|\[| )-(?=\d)", r"\1$-$", _latex_text(cell))
    if text[:1] in ("[", "*"):  # after a line's end TeX would take it for an argument
        text = f"{{{text[0]}}}{text[1:]}"
    return f"\\textbf{{{text}}}" if isinstance(cell, Bold) else text


def _strict(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for (bounds that are undefined)."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_formula(text: str) -> str:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def _write(path: Path, text: str) -> None:
    """Replaces a file at once; half a character, as in undecodable file names, is spelled out."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
