"""Which temporal module is better, and does it matter: all cells of a table, then the report."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videoclip.checkpoints.weights import load
from videoclip.config import ConfigError, to_json
from videoclip.distributed import on_main, world_size
from videoclip.errors import VideoclipError
from videoclip.experiment import Experiment, Row
from videoclip.features.fingerprint import fingerprint
from videoclip.record import environment
from videoclip.reports.cells import Cell, pretrained, remove_unfinished, run_cell
from videoclip.reports.material import gather
from videoclip.reports.pictures import add_pictures
from videoclip.reports.report import write_report
from videoclip.reports.results import summarize
from videoclip.tasks import Recognition


def compare(
    *,
    experiment: Experiment,
    rows: Mapping[str, Row],
    seeds: Sequence[int],
    folder: Path,
    checkpoint: str | None,
    title: str,
    ceiling: dict[str, Any] | None,
    command: str,
    whole: bool = False,
) -> dict[str, Any]:
    """Trains the cells that are missing, evaluates them and writes the report into `folder`.

    All rows start from the towers of the checkpoint, and with `whole` from its temporal modules,
    where they are the row's.

    Returns the content of results.json. Rows are compared with the one named "mean", or with the
    first. A cell that fails is listed and the others go on; raises VideoclipError where none is
    left.
    """
    on_main(remove_unfinished, folder)
    base = load(checkpoint) if checkpoint else None
    if base:  # the towers and the normalization are the checkpoint's
        c = base.config
        names = ("visual", "text", "embedding", "pixels", "logit_bias")
        towers = {name: getattr(c, name) for name in names}
        experiment = replace(experiment, model=replace(experiment.model, **towers))
    record = {
        "title": title,
        "ceiling": ceiling,
        **run_record(experiment, rows, seeds, checkpoint, command),
    }
    experiments = [experiment]
    for row in rows.values():
        with contextlib.suppress(ConfigError):  # told when the row is trained
            experiments.append(row.of(experiment))
    material = on_main(gather, experiments, folder)
    record["manifest_hash"] = material.key
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    on_main((folder / "run.json").write_text, text)
    if base is None:
        base, base_key = pretrained(material, folder)
    else:
        base_key = fingerprint(base)[:16]  # another checkpoint, other cells
    cells: dict[str, list[Cell]] = {name: [] for name in rows}
    unfinished = []
    for seed in seeds:
        for name, row in rows.items():
            try:
                cell = run_cell(name, row, seed, material, base, base_key, folder, whole=whole)
            except (VideoclipError, ValueError, RuntimeError) as error:
                if world_size() > 1:  # the others may be waiting for this one
                    raise
                tqdm.write(f"{name}, seed {seed}, failed: {error}")
                unfinished.append({"name": name, "seed": seed, "reason": str(error)})
            else:
                cells[name].append(cell)
    finished = {name: found for name, found in cells.items() if found}
    if not finished:
        raise VideoclipError(f"no model could be trained; the first: {unfinished[0]['reason']}")
    for name, found in finished.items():
        if found[0].facts.get("note"):
            material.notes.append(f"{name}: {found[0].facts['note']}.")
    results = {
        "title": title,
        **summarize(finished, rows, material),
        "ceiling": ceiling,
        "models": {
            name: [str(cell.home.relative_to(folder)) for cell in found]
            for name, found in finished.items()
        },
        "unfinished": unfinished,
        "command": command,
        "environment": record["environment"],
        "manifest_hash": material.key,
        "config": {key: record[key] for key in ("experiment", "rows", "seeds", "checkpoint")},
    }
    on_main(add_pictures, results, material, folder)
    on_main(write_report, results, folder)
    return results


def run_record(
    experiment: Experiment,
    rows: Mapping[str, Row],
    seeds: Sequence[int],
    checkpoint: str | None,
    command: str,
) -> dict[str, Any]:
    """All that a run can be repeated from: `videoclip compare run.json --output ELSEWHERE`."""
    return {
        "experiment": to_json(absolute(experiment)),
        "rows": to_json(dict(rows)),
        "seeds": list(seeds),
        "checkpoint": checkpoint and _absolute_name(checkpoint),
        "command": command,
        "environment": environment(),
    }


def absolute(experiment: Experiment) -> Experiment:
    """The experiment with paths that do not depend on the working directory."""
    data = experiment.data
    manifest, images = (path and path.resolve() for path in (data.manifest, data.images))
    task = experiment.task
    if isinstance(task, Recognition):
        classes = task.classes and task.classes.resolve()
        templates = tuple(_absolute_name(name) for name in task.templates)
        task = replace(task, classes=classes, templates=templates, names=_absolute_name(task.names))
    run = replace(
        experiment.run, features=experiment.run.features and experiment.run.features.resolve()
    )
    data = replace(data, manifest=manifest, images=images)
    return replace(experiment, task=task, data=data, run=run)


def _absolute_name(name: str) -> str:
    """A path that does not depend on the working directory; any other name stays as it is."""
    return str(Path(name).resolve()) if "{" not in name and Path(name).exists() else name
