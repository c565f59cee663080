"""A classification -> the table that is printed, and the files that keep it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from videoclip.figures.charts import calibration_chart, confusion_chart
from videoclip.figures.classification import Classification
from videoclip.figures.intervals import Interval

FILES = (
    "index.html, evaluation.json, predictions.parquet, per_class.csv, confusion.png, "
    "calibration.png"
)

TEXT = ("95 % interval", "taken for")
"""Columns that are no numbers, besides the first."""
NAMED = 10
"""How many unreadable items are named where people read; the JSON has all."""


def summary(result: Classification, intervals: Mapping[str, Interval] | None = None) -> str:
    """The metrics with their 95 % intervals as a table of text, then the counts."""
    table = metric_table(result, intervals or result.intervals())
    return f"{markdown(table)}\n\n{result.counts()}"


def metric_table(result: Classification, intervals: Mapping[str, Interval]) -> pd.DataFrame:
    """A line a metric, all cells text."""
    rows = [
        {"metric": name, "%": f"{value:.1f}", "95 % interval": ends(intervals.get(name))}
        for name, value in result.metrics().items()
    ]
    return pd.DataFrame(rows)


def ends(interval: Interval | None) -> str:
    """Such as "41.2 to 47.0"; empty where there is none or a single item leaves it undefined."""
    if interval is None or np.isnan(interval.low):
        return ""
    return f"{interval.low:.1f} to {interval.high:.1f}"


def markdown(table: pd.DataFrame, left: Sequence[str] = TEXT) -> str:
    """A table of text, of which the first column and those of `left` are on the left."""
    sides = ("left" if name in (table.columns[0], *left) else "right" for name in table)
    escaped = table.map(lambda cell: str(cell).replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=tuple(sides))


def worth(
    result: Classification, intervals: Mapping[str, Interval], sources: Sequence[str] = ()
) -> str:
    """What the top-1 figure can tell, given how many items there are and what guessing gives."""
    top = intervals["top-1"]
    counts = np.bincount(result.labels, minlength=len(result.classes))
    chance, common = 100 / len(result.classes), 100 * counts.max() / counts.sum()
    drawn = f"{counts.sum():,} items"
    drawn += f" of {len(set(sources)):,} sources, which are drawn as wholes" if len(sources) else ""
    guessing = (
        f"guessing is right in {chance:.1f} % of cases, always saying "
        f"{result.classes[counts.argmax()]!r} in {common:.1f} %"
    )
    if np.isnan(top.low):
        return f"{drawn} have no interval, and the figure says nothing about others; {guessing}."
    width = top.high - top.low
    said = f"{drawn}: the 95 % interval of top-1 is {width:.1f} points wide; {guessing}"
    if top.low <= max(chance, common):
        said += ". Top-1 is not shown to be better than that"
    return f"{said}.{_ties(result)}"


def _ties(result: Classification) -> str:
    """A sentence where ties matter; else nothing."""
    ranks = result.ranks
    won = 100 * float(((ranks.optimistic == 1) & ~ranks.missing).mean())
    lost = 100 * float(((ranks.pessimistic == 1) & ~ranks.missing).mean())
    tied = int((ranks.optimistic < ranks.pessimistic).sum())
    if won == lost:
        return ""
    return (
        f" {tied:,} items tie with another class: top-1 is {lost:.1f} with every tie lost, "
        f"{won:.1f} with every tie won, and the table has the mean."
    )


def write(
    result: Classification,
    names: Sequence[str],
    unreadable: Mapping[str, str],
    folder: Path,
    *,
    title: str = "Classification",
    intervals: Mapping[str, Interval] | None = None,
    groups: Sequence[str] = (),
    lines: Sequence[str] = (),
    **record: Any,
) -> None:
    """Writes every prediction, the tables, the pictures and a page with all of it.

    `intervals` are those over items unless they are given; with `groups`, a word an item, there is
    a table of them. `lines` are what a reader must know; `record` goes into the JSON too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spelled = np.array([*result.classes, None], dtype=object)  # -1, nothing predicted, is None
    pd.DataFrame(
        {
            "name": list(names),
            "label": spelled[result.labels],
            "predicted": spelled[result.predicted],
            "confidence": result.confidence,
            "rank": np.where(result.ranks.missing, np.nan, result.ranks.rank),
        }
    ).to_parquet(folder / "predictions.parquet")
    result.per_class().to_csv(folder / "per_class.csv", index=False)
    confusion_chart(result, folder / "confusion.png")
    calibration_chart(result, folder / "calibration.png")
    intervals = intervals or result.intervals()
    whole = {
        "metrics": result.metrics(),
        # One item alone has no interval; JSON knows no NaN.
        "intervals": {
            name: [None if np.isnan(end) else end for end in interval]
            for name, interval in intervals.items()
        },
        "counts": result.counts(),
        "unreadable": unreadable,
        **({"groups": result.per_group(groups).to_dict("records")} if len(groups) else {}),
        **({"notes": list(lines)} if lines else {}),
        **record,
    }
    text = json.dumps(whole, indent=1, default=str, ensure_ascii=False, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    tables = {"Figures": metric_table(result, intervals)}
    if len(groups):
        tables["Top-1 by group"] = _readable(result.per_group(groups))
    worst_first = result.per_class().sort_values("top-1", kind="stable")
    tables["Classes, the worst first"] = _readable(worst_first)
    pictures = {"confusion.png": "what is taken for what", "calibration.png": "calibration"}
    write_page(
        folder, title, [result.counts(), *lines, *said_missing(unreadable)], tables, pictures
    )


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The percentages as text; empty where a class has no items."""
    shown = ["" if np.isnan(value) else f"{value:.1f}" for value in table["top-1"]]
    return table.assign(**{"top-1": shown})


def said_missing(unreadable: Mapping[str, str]) -> list[str]:
    """A line for each of the first items that could not be read, and one for all others."""
    lines = [f"unreadable, counted as wrong: {name}: {why}" for name, why in unreadable.items()]
    more = len(lines) - NAMED
    return lines[:NAMED] + ([f"and {more:,} more, all in evaluation.json"] if more > 0 else [])


def write_page(
    folder: Path,
    title: str,
    lines: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, str] = MappingProxyType({}),
    links: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes index.html: lines of text, tables by title, pictures and links by file."""
    loader = PackageLoader("videoclip.reports", "")
    template = Environment(loader=loader, autoescape=True).get_template("class_report.html.jinja")
    text = template.render(
        title=title, lines=lines, tables=tables, pictures=pictures, links=links, left=TEXT
    )
    (folder / "index.html").write_text(text, encoding="utf-8")
