"""Finished cells -> the numbers of the table: means over seeds, intervals, paired differences.

Everything is derived from the ranks that the cells saved, so a table can be made again at any time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from videoclip.cells import Cell, Material
from videoclip.evaluate import DIRECTIONS, FRAME_ORDERS
from videoclip.intervals import mean_interval, paired_difference
from videoclip.metrics import TIE_RULE, Ranks, hits_at_k

RECALLS = {"R@1": 1, "R@5": 5, "R@10": 10}
FEW = 30
"""Under so many test videos a bootstrap interval is too narrow to be trusted."""
INTERVAL = "95 % percentile bootstrap over videos, 10,000 draws, seeds averaged"


def summarize(cells: Mapping[str, Sequence[Cell]], material: Material) -> dict[str, Any]:
    """The finished cells by row as results.json holds them: protocol, groups and rows."""
    baseline = "mean" if "mean" in cells else next(iter(cells))
    test = material.splits["test"]
    unreadable = material.store.unreadable
    notes = list(material.notes)
    if len(test) < FEW:
        notes.append(
            f"Only {len(test)} test videos: bootstrap intervals are too narrow there, and no "
            "difference should be believed."
        )
    return {
        "baseline": baseline,
        "protocol": {
            "split": "test",
            "videos": len(test),
            "queries": sum(len(clip.captions) for clip in test),
            "counts": next(iter(cells.values()))[0].facts["counts"],
            "tie_rule": TIE_RULE,
            "selection": "best epoch on the validation split (mean of all recalls)",
            "interval": INTERVAL,
            "unreadable": [
                {"video_id": clip.video_id, "reason": unreadable[clip.video_id]}
                for clip in test
                if clip.video_id in unreadable
            ],
            "notes": notes,
            "few": len(test) < FEW,
        },
        "groups": sorted({clip.group for clip in test if clip.group}),
        "rows": [
            summarize_row(found, None if name == baseline else cells[baseline])
            for name, found in cells.items()
        ],
    }


def summarize_row(cells: Sequence[Cell], baseline: Sequence[Cell] | None) -> dict[str, Any]:
    """The numbers of one row from its cells, one per seed; differences are to the baseline's cells.

    `baseline` is None for the row that the others are compared with.
    """
    first = cells[0].facts
    groups = sorted({*cells[0].ranks["group"]} - {""})
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
    for direction in DIRECTIONS:
        row[direction] = _metrics(_queries(cells, direction))
    if baseline is not None:
        row["difference"] = {
            direction: _differences(cells, baseline, direction) for direction in DIRECTIONS
        }
    for group in groups:
        row["by_group"][group] = _recall_1(cells, baseline, group)
    for order in FRAME_ORDERS[1:]:
        found = _queries(cells, "text_to_video", order)
        row["frame_order"][order] = {
            "R@1": _value(*_hits(found, 1)),
            "by_group": {
                group: {"R@1": _value(*_hits(_queries(cells, "text_to_video", order, group), 1))}
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
    """Hits at K in percent, (S, Q), and the video that each query belongs to, (Q,)."""
    hits = [100 * hits_at_k(_ranks(table), k) for table in tables]
    return np.stack(hits), tables[0]["video"].to_numpy()


def _ranks(table: pd.DataFrame) -> Ranks:
    columns = {name: table[name].to_numpy() for name in Ranks._fields[:-1]}
    return Ranks(**columns, candidates=int(table["candidates"].iloc[0]))


def _value(values: np.ndarray, videos: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation over seeds and interval of values (S, Q) of queries."""
    interval = mean_interval(values, videos)
    sd = float(values.mean(1).std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": interval.mean, "sd": sd, "low": interval.low, "high": interval.high}


def _metrics(tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, float]]:
    found = {name: _value(*_hits(tables, k)) for name, k in RECALLS.items()}
    ranks = np.stack([table["rank"].to_numpy() for table in tables])
    medians = np.median(ranks, axis=1)
    sd = float(medians.std(ddof=1)) if len(medians) > 1 else 0.0
    found["MdR"] = {"mean": float(medians.mean()), "sd": sd}
    found["MnR"] = _value(ranks, tables[0]["video"].to_numpy())
    return found


def _difference(
    cells: Sequence[Cell], baseline: Sequence[Cell], direction: str, group: str | None, k: int
) -> dict[str, float]:
    """The paired difference of recall at K in percent points, on the same draws of videos."""
    own, videos = _hits(_queries(cells, direction, group=group), k)
    other, _ = _hits(_queries(baseline, direction, group=group), k)
    return paired_difference(own, other, videos)._asdict()


def _differences(
    cells: Sequence[Cell], baseline: Sequence[Cell], direction: str
) -> dict[str, dict[str, float]]:
    return {name: _difference(cells, baseline, direction, None, k) for name, k in RECALLS.items()}


def _recall_1(
    cells: Sequence[Cell], baseline: Sequence[Cell] | None, group: str
) -> dict[str, Mapping[str, float] | None]:
    value = _value(*_hits(_queries(cells, "text_to_video", group=group), 1))
    difference = None
    if baseline is not None:
        difference = _difference(cells, baseline, "text_to_video", group, 1)
    return {"R@1": value, "difference": difference}
