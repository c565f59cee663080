"""`videoclip data prepare`: a data set's own annotation files and videos -> manifests."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from data_prep.annotations import AnnotationError
from data_prep.entries import Annotations, Dataset
from data_prep.prepare import DATA_SETS, Depth, Prepared, prepare
from videoclip.errors import VideoclipError, nearest
from videoclip.manifest import Clip, write_manifest

SHOWN = 3
"""So many examples of each finding are printed; the report has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Turns a data set's annotation files, as they are distributed, into manifests.

    Counts are compared with the published ones. Missing, extra, duplicated and conflicting entries,
    captions that several clips share, and clips that are both trained on and tested are printed and
    stand in NAME.report.json.
    """

    name: tyro.conf.Positional[str]
    """The data set: videoclip data sets lists them. `folders` and `table` are for your own."""
    annotations: Path | None = None
    """The folder with the annotation files, or the table of `table`."""
    videos: Path | None = None
    """The folder with the videos, in whatever subfolders and with whatever ending. None: nothing is
    looked for, and the manifest says where they belong (OUTPUT/videos)."""
    labels: Path | None = None
    """A file with the class names in the order of their numbers, where it does not lie with the
    annotations."""
    output: Path = Path()
    """The folder for the manifests and reports."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """How manifests are written."""
    exclude_missing: bool = False
    """Leave clips without a file out. Without it they stay, and count as misses in evaluation."""
    compare: Depth = "bytes"
    """How far train and test are compared: by ids, also by the bytes of the files, or also by their
    pictures, which finds re-encoded copies and decodes five frames of every video."""
    any_counts: bool = False
    """Take annotations whose counts are not the published ones."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, writes the manifests and prints what was found."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip data prepare", description=Options.__doc__
    )
    data_set = named(options.name)
    annotations = options.annotations or (options.videos if options.name == "folders" else None)
    if annotations is None:
        raise VideoclipError(
            f"{data_set.name} needs its annotation files: --annotations PATH with {data_set.files}"
            if options.name != "folders"
            else "folders needs --videos FOLDER"
        )
    if options.name != "table" and not annotations.is_dir():
        raise VideoclipError(f"there is no folder of annotations {annotations}")
    if options.name == "folders" and options.videos not in (None, annotations):
        raise VideoclipError("folders are their own annotations; give --videos FOLDER alone")
    videos = options.videos
    if videos is None and options.name in ("folders", "table"):
        videos = annotations if options.name == "folders" else annotations.parent
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        found = prepare(
            data_set,
            Annotations(annotations, options.labels),
            videos,
            options.output / "videos",
            depth=options.compare,
            any_counts=options.any_counts,
        )
    except AnnotationError as error:
        raise VideoclipError(str(error)) from error
    print(f"{data_set.title}\nlicense: {data_set.license}\npage: {data_set.page}")
    for prepared in found:
        _write(data_set, prepared, options)


def named(name: str) -> Dataset:
    """The data set of this name. Raises VideoclipError with the nearest one."""
    if name not in DATA_SETS:
        raise VideoclipError(f"no data set is named {name!r}; {nearest(name, DATA_SETS)}")
    return DATA_SETS[name]


def _write(data_set: Dataset, prepared: Prepared, options: Options) -> None:
    clips = [
        Clip(
            video_id=entry.video_id,
            path=path.absolute(),
            captions=entry.captions,
            label=entry.label,
            split=entry.split,
            start=entry.start,
            end=entry.end,
            group=entry.group,
            source=entry.source,
        )
        for index, (entry, path) in enumerate(zip(prepared.entries, prepared.paths, strict=True))
        if not (options.exclude_missing and index in prepared.missing)
    ]
    if not clips:
        raise VideoclipError(
            f"none of the {len(prepared.entries):,} videos of {data_set.name} is in "
            f"{options.videos}; its files are called such as {prepared.paths[0].name}"
        )
    name = data_set.name + prepared.suffix
    manifest = options.output / f"{name}.{options.format}"
    write_manifest(manifest, clips)
    report = prepared.report | {"manifest": manifest.name, "clips": len(clips)}
    place = options.output / f"{name}.report.json"
    part = place.with_name(place.name + ".part")
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(place)
    print(f"\n{manifest}: {len(clips):,} clips")
    for line in _lines(report):
        # Names and captions may hold signs that a terminal takes for commands.
        print("  " + "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line))
    print(f"  all of it: {place}")


def _lines(report: dict[str, Any]) -> list[str]:
    """What was found, in words; of lists the length and the first ones."""
    lines = [
        f"{split}: {counts['clips']:,} clips"
        + (f", {counts['captions']:,} captions" if counts["captions"] else "")
        for split, counts in report["splits"].items()
    ]
    if report["classes"]:
        lines.append(f"{report['classes']} classes")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"not as published: {sentence}" for sentence in report["differences"]]
    if report["missing"] is None:
        lines.append("no folder of videos was given; whether they are there was not looked at")
    captions, leaks = report["captions"], report["leaks"]
    findings = {
        "clips without a file": report["missing"],
        "files of no clip": report["extra"],
        "clips with several files": report["ambiguous"],
        "entries that stand there twice": report["duplicated"],
        "entries that contradict each other": report["conflicting"],
        "clips in two splits": report["in_two_splits"],
        "longer videos with clips in two splits": leaks["sources"],
        "groups of files with the same bytes": [
            ", ".join(f"{one['video_id']} ({one['split']})" for one in group)
            for group in leaks["bytes"] or ()
        ],
        "pairs with the same pictures": [
            f"{first} ({split or 'no split'}) and {second} ({other or 'no split'}), {likeness}"
            for first, split, second, other, likeness in leaks["pictures"] or ()
        ],
        "videos that could not be compared": leaks["not_compared"],
        "test captions that another test clip has too": [
            f"{first} and {second}: {caption!r}" for first, second, caption in captions["same"]
        ],
        "pairs of test captions that differ in one word": [
            f"{first} and {second}: {caption!r}, {text!r}"
            for first, second, caption, text in captions["near"]
        ],
        "test captions that were trained on": [
            f"{first} and {second}: {caption!r}"
            for first, second, caption in captions["in_training"]
        ],
    }
    for what, found in findings.items():
        if found:
            more = ", ..." if len(found) > SHOWN else ""
            lines.append(f"{len(found):,} {what}: {'; '.join(found[:SHOWN])}{more}")
    return lines
