"""A data set's annotations and videos -> clips with files, and a report of all that is wrong.

    files of annotations -read-> entries -settle-> unique ids -find_videos-> files -leaks-> report

Counts that differ from the published ones are an error: half a list gives a benchmark that looks
like the real one.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_prep import (
    activitynet,
    didemo,
    folders,
    hmdb51,
    kinetics,
    lsmdc,
    msrvtt,
    msvd,
    ssv2,
    ucf101,
    vatex,
)
from data_prep.annotations import AnnotationError
from data_prep.captions import alike
from data_prep.entries import Annotations, Dataset, Entry, Part, Settled, settle
from data_prep.leaks import Video, same_bytes, same_pictures
from data_prep.videos import Found, expected_path, find_videos

MODULES = (
    msrvtt, msvd, lsmdc, activitynet, didemo, vatex, kinetics, ucf101, hmdb51, ssv2, folders,
)  # fmt: skip
DATA_SETS: dict[str, Dataset] = {
    data_set.name: data_set for module in MODULES for data_set in module.DATA_SETS
}
"""Every data set that can be prepared, by name."""
Depth = Literal["ids", "bytes", "pictures"]


class Prepared(NamedTuple):
    """One manifest's worth."""

    suffix: str
    entries: list[Entry]
    paths: list[Path]
    """One per entry; the place where the file is expected where it is missing."""
    missing: set[int]
    """Indices of the entries without a file; empty where no folder was searched."""
    report: dict[str, Any]
    """What was found, as it goes into JSON."""


def prepare(
    data_set: Dataset,
    annotations: Annotations,
    videos: Path | None,
    expected_in: Path,
    *,
    depth: Depth = "bytes",
    any_counts: bool = False,
) -> list[Prepared]:
    """Reads, checks and settles everything; `expected_in` is where videos belong without `videos`.

    Raises AnnotationError for annotations that cannot be read, and unless `any_counts` for counts
    that are not the published ones.
    """
    if videos is not None and not Path(videos).is_dir():
        raise AnnotationError(f"there is no folder of videos {videos}")
    parts = data_set.read(annotations)
    settled = [settle(part.entries) for part in parts]
    differences = [
        sentence
        for part, found in zip(parts, settled, strict=True)
        for sentence in _differences(part, found)
    ]
    if differences and not any_counts:
        raise AnnotationError(
            f"this is not {data_set.title} as published: {'; '.join(differences)}. Get the "
            f"annotations again ({data_set.page}), or take them as they are: --any-counts"
        )
    prepared = []
    for part, found in zip(parts, settled, strict=True):
        files = find_videos(videos, found.entries) if videos is not None else None
        paths = files.paths if files else [expected_path(expected_in, e) for e in found.entries]
        prepared.append(
            Prepared(
                part.suffix,
                found.entries,
                paths,
                set(files.missing) if files else set(),
                _report(data_set, annotations, part, found, files, depth)
                | {"differences": _differences(part, found)},
            )
        )
    return prepared


def _differences(part: Part, found: Settled) -> list[str]:
    """Where the counts are not the published ones, as sentences."""
    sentences = []
    clips = Counter(entry.split for entry in found.entries)
    captions: Counter[str | None] = Counter()
    for entry in found.entries:
        captions[entry.split] += len(entry.captions)
    of = f" of {part.suffix.removeprefix('-')}" if part.suffix else ""
    for split, expected in part.expected.items():
        for what, has, known in (
            ("clips", clips[split], expected.clips),
            ("captions", captions[split], expected.captions),
        ):
            if split in clips and known and has not in known:
                published = " or ".join(f"{number:,}" for number in sorted(known))
                files = {e.where.partition(",")[0] for e in found.entries if e.split == split}
                named = f" ({', '.join(sorted(files - {''}))})" if files - {""} else ""
                sentences.append(f"{has:,} {what} in {split}{of}{named}, published are {published}")
    labels = {entry.label for entry in found.entries}
    if part.classes is not None and len(labels) != part.classes:
        sentences.append(f"{len(labels)} classes{of}, published are {part.classes}")
    repeated = len(found.duplicated) + len(found.in_two_splits)
    if sentences and repeated:
        some = [*found.duplicated, *found.in_two_splits][:5]
        sentences.append(f"{repeated} clips stand there twice{of}: {', '.join(some)}")
    return sentences


def _report(
    data_set: Dataset,
    annotations: Annotations,
    part: Part,
    found: Settled,
    files: Found | None,
    depth: Depth,
) -> dict[str, Any]:
    by_split: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in found.entries:
        by_split[entry.split or "none"].update(clips=1, captions=len(entry.captions))
    tested = alike(found.entries, "test" if any(e.split == "test" for e in found.entries) else None)
    return {
        "data_set": data_set.name,
        "title": data_set.title,
        "license": data_set.license,
        "page": data_set.page,
        "annotations": annotations.checksums(),
        "notes": list(annotations.notes),
        "splits": {split: dict(counts) for split, counts in by_split.items()},
        "classes": len({entry.label for entry in found.entries if entry.label is not None}),
        "missing": [found.entries[i].video_id for i in files.missing] if files else None,
        "extra": [str(path) for path in files.extra] if files else None,
        "ambiguous": files.ambiguous if files else None,
        "duplicated": found.duplicated,
        "conflicting": found.conflicting,
        "in_two_splits": found.in_two_splits,
        "captions": {
            "tested": tested.total,
            "distinct": tested.distinct,
            "same": [list(row) for row in tested.same],
            "near": [list(row) for row in tested.near],
            "in_training": [list(row) for row in tested.trained],
        },
        "leaks": {"sources": _shared_sources(found.entries)} | _leaks(found, files, depth),
    }


def _shared_sources(entries: Sequence[Entry]) -> list[str]:
    """Longer videos of which one part is trained on and another one tested."""
    splits: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.source and entry.split:
            splits[entry.source][entry.split].append(entry.video_id)
    return [
        f"{source}: " + "; ".join(f"{split} {', '.join(ids)}" for split, ids in found.items())
        for source, found in splits.items()
        if len(found) > 1
    ]


def _leaks(found: Settled, files: Found | None, depth: Depth) -> dict[str, Any]:
    """The same video in several places, by bytes and by pictures; None: was not looked at."""
    result: dict[str, Any] = {"bytes": None, "pictures": None, "not_compared": None}
    if files is None or depth == "ids":
        return result
    missing = set(files.missing)
    videos = [
        Video(entry.video_id, entry.split, path)
        for index, (entry, path) in enumerate(zip(found.entries, files.paths, strict=True))
        if index not in missing
    ]
    result["bytes"] = [
        [{"video_id": v.video_id, "split": v.split} for v in group] for group in same_bytes(videos)
    ]
    if depth == "pictures":
        pairs, silent = same_pictures(videos)
        result["pictures"] = [
            [first.video_id, first.split, second.video_id, second.split, round(likeness, 4)]
            for first, second, likeness in pairs
        ]
        result["not_compared"] = silent
    return result
