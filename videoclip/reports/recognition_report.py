"""What a model said about clips -> the table that is printed, and a folder with every score.

A protocol of one part is one page; of several, such as three official splits, each has a folder,
and a page above them the figure of all.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from videoclip.evaluation.recognition import Recognition
from videoclip.figures.intervals import Interval
from videoclip.manifest import source_of
from videoclip.reports.class_report import (
    FILES,
    ends,
    markdown,
    said_missing,
    summary,
    worth,
    write,
    write_page,
)
from videoclip.tasks.action_protocols import Part, Protocol, harmonic_mean

FIGURES = ("top-1", "top-5", "mean per class")


def report(
    parts: Sequence[Part],
    found: Sequence[Recognition],
    protocol: Protocol | None,
    unreadable: Mapping[str, str],
    output: Path,
    *,
    notes: Sequence[str] = (),
    record: Mapping[str, Any],
) -> str:
    """Writes the files of an evaluation and returns what is to be printed.

    `notes` are what a reader of the figures must know, `record` what else the JSON keeps. Intervals
    are drawn over clips, or over what several of them were cut from.
    """
    homes = [output / _slug(part.name) if len(parts) > 1 else output for part in parts]
    intervals = []
    for part, one, home in zip(parts, found, homes, strict=True):
        intervals.append(_write_part(part, one, unreadable, home, notes, record))
    if len(parts) == 1:
        [one], [own] = found, intervals
        printed = [
            f"{parts[0].name}, {len(parts[0].classes)} classes\n\n{summary(one.result, own)}",
            worth(one.result, own, _sources(one)),
        ]
    else:
        table, overall = _overall(parts, found, intervals, protocol)
        counts = [f"{part.name}: {one.counts}" for part, one in zip(parts, found, strict=True)]
        printed = [f"{markdown(table)}\n", *counts]
        whole = {"overall": overall, "counts": counts, "notes": notes, **record}
        text = json.dumps(whole, indent=1, default=str, ensure_ascii=False, allow_nan=False)
        (output / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        pages = zip(parts, homes, strict=True)
        links = {part.name: f"{home.name}/index.html" for part, home in pages}
        title = f"Recognition: {protocol.name if protocol else ''}"
        write_page(output, title, [*counts, *notes], {"Figures": table}, links=links)
    ids = dict.fromkeys(clip.video_id for part in parts for clip in part.clips)
    printed += [*notes, *said_missing({i: unreadable[i] for i in ids if i in unreadable})]
    each = " for each part" if len(parts) > 1 else ""
    return "\n".join([*printed, f"{output}: {FILES}, scores.parquet{each}"])


def _write_part(
    part: Part,
    one: Recognition,
    unreadable: Mapping[str, str],
    home: Path,
    notes: Sequence[str],
    record: Mapping[str, Any],
) -> dict[str, Interval]:
    """The page, the predictions and the scores of one part; returns its intervals."""
    sources = _sources(one)
    intervals = one.result.intervals(sources)
    named = tuple(clip.group for clip in one.clips if clip.group)
    ids = [clip.video_id for clip in part.clips]
    write(
        one.result,
        ids,
        {video_id: unreadable[video_id] for video_id in ids if video_id in unreadable},
        home,
        title=f"Recognition: {part.name}",
        intervals=intervals,
        groups=named if len(named) == len(one.clips) else sources,
        lines=[worth(one.result, intervals, sources), *notes],
        ms_per_clip=one.ms_per_clip,
        **record,
    )
    index = pd.Index(ids, name="video_id")
    scores = pd.DataFrame(one.scores, index=index, columns=list(part.classes))
    scores.to_parquet(home / "scores.parquet")
    return intervals


def _sources(one: Recognition) -> tuple[str, ...]:
    """What each clip was cut from, where several were cut from one thing; else nothing."""
    found = tuple(source_of(clip) for clip in one.clips)
    return found if len(set(found)) < len(found) else ()


def _overall(
    parts: Sequence[Part],
    found: Sequence[Recognition],
    intervals: Sequence[Mapping[str, Interval]],
    protocol: Protocol | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A line a part and one of all: the harmonic mean, or the mean and how far the parts differ.

    The deviation divides by the number of parts, as Text4Vis does: they are all that there are.
    """
    figures = [one.result.metrics() for one in found]
    rows = []
    for part, own, drawn in zip(parts, figures, intervals, strict=True):
        row = {
            "part": part.name,
            "clips": f"{len(part.clips):,}",
            "classes": str(len(part.classes)),
        }
        row |= {"top-1": f"{own['top-1']:.1f}", "95 % interval": ends(drawn["top-1"])}
        rows.append(row | {name: f"{own[name]:.1f}" for name in FIGURES[1:] if name in own})
    common = [name for name in FIGURES if all(name in own for own in figures)]
    values = {name: np.array([own[name] for own in figures]) for name in common}
    overall: dict[str, Any] = {part.name: own for part, own in zip(parts, figures, strict=True)}
    if protocol and protocol.kind == "base and novel":
        means = {name: harmonic_mean(*map(float, both)) for name, both in values.items()}
        rows.append({"part": "harmonic mean"} | {n: f"{mean:.1f}" for n, mean in means.items()})
        overall["harmonic mean"] = means
    else:
        cells = {name: f"{each.mean():.1f} ± {each.std():.1f}" for name, each in values.items()}
        rows.append({"part": "mean ± standard deviation"} | cells)
        overall["mean"] = {name: float(each.mean()) for name, each in values.items()}
        overall["standard deviation"] = {name: float(each.std()) for name, each in values.items()}
    return pd.DataFrame(rows).fillna(""), overall


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
