"""Finished cells -> the numbers of the table: means over seeds, intervals, paired differences.

Everything is derived from the ranks that the cells saved, so a table can be made again at any time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from videoclip.evaluation.evaluate import FRAME_ORDERS
from videoclip.experiment import Row
from videoclip.figures.intervals import mean_interval, paired_difference
from videoclip.figures.metrics import TIE_RULE, Ranks, hits_at_k
from videoclip.manifest import sources
from videoclip.reports.cells import Cell
from videoclip.reports.material import Material
from videoclip.tasks import Measure

FEW = 30
"""Under so many test videos, or sources of them, a bootstrap interval is too narrow to be trusted.
"""
INTERVAL = "95 % percentile bootstrap over {}, 10,000 draws, seeds averaged"


def summarize(
    cells: Mapping[str, Sequence[Cell]], rows: Mapping[str, Row], material: Material
) -> dict[str, Any]:
    """The finished cells by row as results.json holds them: protocol, groups and rows."""
    baseline = "mean" if "mean" in cells else next(iter(cells))
    test, unreadable = material.splits["test"], material.unreadable
    measure = material.experiment.task.measure
    first = next(iter(cells.values()))[0]
    candidates = int(_queries([first], measure.direction)[0]["candidates"].iloc[0])
    if not measure.positions:  # all answers of a clip are among the first five of five classes
        kept = {n: k for n, k in measure.hits.items() if k < candidates or n == measure.main}
        measure = measure._replace(hits=kept)
    chosen_by = "mean of all recalls" if measure.positions else measure.main
    selected = f"best epoch on the validation split ({chosen_by})"
    if material.experiment.selection == "last":
        selected = "the last epoch"
    notes = list(material.notes)
    drawn, what = len(set(sources(test))), "videos"
    if drawn < len(test):
        what = "sources"
        notes.append(
            f"The {len(test)} test clips were cut from {drawn} sources; intervals draw sources."
        )
    if drawn < FEW:
        notes.append(
            f"Only {drawn} test {what}: bootstrap intervals are too narrow there, and no "
            "difference should be believed."
        )
    return {
        "baseline": baseline,
        "measure": {**measure._asdict(), "main": measure.main, "direction": measure.direction},
        "protocol": {
            "split": "test",
            "videos": len(test),
            "queries": len(_queries([first], measure.direction)[0]),
            "candidates": candidates,
            "counts": first.facts["counts"],
            "tie_rule": TIE_RULE,
            "selection": selected,
            "interval": INTERVAL.format(what),
            "unreadable": [
                {"video_id": clip.video_id, "reason": unreadable[clip.video_id]}
                for clip in test
                if clip.video_id in unreadable
            ],
            "notes": notes,
            "few": drawn < FEW,
        },
        "groups": sorted({clip.group for clip in test if clip.group}),
        "rows": [
            summarize_row(found, None if name == baseline else cells[baseline], measure)
            | {"published": rows[name].published}
            for name, found in cells.items()
        ],
    }


def summarize_row(
    cells: Sequence[Cell], baseline: Sequence[Cell] | None, measure: Measure
) -> dict[str, Any]:
    """The numbers of one row from its cells, one per seed; differences are to the baseline's cells.

    `baseline` is None for the row that the others are compared with.
    """
    first = cells[0].facts
    groups = sorted({*cells[0].ranks["group"]} - {""})
    main, direction = measure.main, measure.direction
    row: dict[str, Any] = {
        "name": cells[0].name,
        "parameters": first["parameters"],
        "new_parameters": first["new_parameters"],
        "ms_per_clip": float(np.median([cell.facts["ms_per_clip"] for cell in cells])),
        "seeds": [cell.seed for cell in cells],
        "tie_notes": [note for cell in cells for note in cell.facts["tie_notes"]],
        "gallery": first["gallery"],
        "difference": None,
        "by_group": {},
        "frame_order": {},
    }
    for each in measure.directions:
        row[each] = _metrics(_queries(cells, each), measure)
    if baseline is not None:
        row["difference"] = {
            each: {n: _difference(cells, baseline, each, None, k) for n, k in measure.hits.items()}
            for each in measure.directions
        }
    for group in groups:
        found = _queries(cells, direction, group=group)
        row["by_group"][group] = {
            main: _value(*_hits(found, 1)),
            "difference": baseline and _difference(cells, baseline, direction, group, 1),
        }
    for order in FRAME_ORDERS[1:]:
        found = _queries(cells, direction, order)
        row["frame_order"][order] = {
            main: _value(*_hits(found, 1)),
            "by_group": {
                group: {main: _value(*_hits(_queries(cells, direction, order, group), 1))}
                for group in groups
            },
        }
    return row


def _queries(
    cells: Sequence[Cell], direction: str, order: str = "normal", group: str | None = None
) -> list[pd.DataFrame]:
    """The queries of one kind, one table per seed, in the same order."""
    tables = []
    for cell in cells:
        ranks = cell.ranks
        chosen = (ranks["direction"] == direction) & (ranks["frame_order"] == order)
        if group is not None:
            chosen &= ranks["group"] == group
        tables.append(ranks[chosen])
    return tables


def _hits(tables: Sequence[pd.DataFrame], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits at K in percent, (S, Q), and the source that each query belongs to, (Q,)."""
    hits = [100 * hits_at_k(_ranks(table), k) for table in tables]
    return np.stack(hits), tables[0]["source"].to_numpy()


def _ranks(table: pd.DataFrame) -> Ranks:
    columns = {name: table[name].to_numpy() for name in Ranks._fields[:-1]}
    return Ranks(**columns, candidates=int(table["candidates"].iloc[0]))


def _value(values: np.ndarray, videos: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation over seeds and interval of values (S, Q) of queries."""
    interval = mean_interval(values, videos)
    sd = _spread(values.mean(1))["sd"]
    return {"mean": interval.mean, "sd": sd, "low": interval.low, "high": interval.high}


def _metrics(tables: Sequence[pd.DataFrame], measure: Measure) -> dict[str, dict[str, float]]:
    found = {name: _value(*_hits(tables, k)) for name, k in measure.hits.items()}
    if measure.positions:
        ranks = np.stack([table["rank"].to_numpy() for table in tables])
        found["MdR"] = _spread(np.median(ranks, axis=1))
        found["MnR"] = _value(ranks, tables[0]["source"].to_numpy())
    else:
        hits, _ = _hits(tables, 1)
        labels = tables[0]["label"].to_numpy()
        by_class = [hits[:, labels == label].mean(1) for label in np.unique(labels)]
        found["mean class"] = _spread(np.mean(by_class, axis=0))
    return found


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation of one value a seed (S,)."""
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "sd": sd}


def _difference(
    cells: Sequence[Cell], baseline: Sequence[Cell], direction: str, group: str | None, k: int
) -> dict[str, float]:
    """The paired difference of recall at K in percent points, on the same draws of videos."""
    own, videos = _hits(_queries(cells, direction, group=group), k)
    other, _ = _hits(_queries(baseline, direction, group=group), k)
    return paired_difference(own, other, videos)._asdict()
