"""A classification -> the table that is printed, and the files that keep it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from videoclip.charts import calibration_chart, confusion_chart
from videoclip.classification import Classification

FILES = "evaluation.json, predictions.parquet, per_class.csv, confusion.png, calibration.png"


def summary(result: Classification) -> str:
    """The metrics with their 95 % intervals as a table of text, then the counts."""
    intervals = result.intervals()
    rows = [
        {
            "metric": name,
            "%": f"{value:.1f}",
            "95 % interval": f"{intervals[name].low:.1f} to {intervals[name].high:.1f}"
            if name in intervals and not np.isnan(intervals[name].low)
            else "",
        }
        for name, value in result.metrics().items()
    ]
    table = pd.DataFrame(rows).to_markdown(
        index=False, disable_numparse=True, colalign=("left", "right", "left")
    )
    return f"{table}\n\n{result.counts()}"


def write(
    result: Classification,
    names: Sequence[str],
    unreadable: dict[str, str],
    folder: Path,
    **record: Any,
) -> None:
    """Writes every prediction, the tables and the pictures; `record` goes into the JSON too."""
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
    whole = {
        "metrics": result.metrics(),
        # One item alone has no interval; JSON knows no NaN.
        "intervals": {
            name: [None if np.isnan(end) else end for end in interval]
            for name, interval in result.intervals().items()
        },
        "counts": result.counts(),
        "unreadable": unreadable,
        **record,
    }
    text = json.dumps(whole, indent=1, default=str, ensure_ascii=False, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
