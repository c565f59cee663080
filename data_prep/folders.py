"""Your own videos -> clips: a folder of class folders, or a table of paths and captions.

Make it: videoclip data prepare folders --videos FOLDER
         videoclip data prepare table --annotations captions.csv --videos FOLDER
"""

import math
from pathlib import Path, PurePosixPath

from data_prep.annotations import AnnotationError, fault, read_table, table_rows
from data_prep.entries import SPLITS, Annotations, Dataset, Entry, Part
from data_prep.videos import is_video, list_files

NAMES = {
    "path": ("path", "file", "filepath", "filename", "video", "video_path"),
    "caption": ("caption", "captions", "sentence", "text", "description", "title"),
    "label": ("label", "class", "action", "category"),
    "split": ("split", "subset"),
    "video_id": ("video_id", "id", "clip_id"),
    "start": ("start", "start_time", "begin"),
    "end": ("end", "end_time"),
    "group": ("group",),
    "source": ("source",),
}
"""What a column may be called, by what it holds."""
SPELLED = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""Spellings of the splits."""


def read_folders(annotations: Annotations) -> list[Part]:
    """CLASS/NAME.mp4, or SPLIT/CLASS/NAME.mp4 where the outer folders are called so."""
    folder = annotations.folder
    if not folder.is_dir():
        raise AnnotationError(f"{folder} is not a folder; give the one with the class folders")
    entries, loose = [], []
    for path in list_files(folder):
        if not is_video(path):
            continue
        split = SPELLED.get(path.parts[0].lower())
        inner = path.parts[1:] if split else path.parts
        if len(inner) < 2:
            loose.append(str(path))
            continue
        try:
            str(path).encode()
        except UnicodeEncodeError:
            annotations.note(f"{str(path)!a} is left out: its name is not UTF-8; rename it")
            continue
        name = str(path.with_suffix(""))
        entries.append(Entry(name, (str(path),), split, label=inner[0].strip()))
    if not entries:
        raise AnnotationError(
            f"{folder} has no videos in class folders; expected {folder}/CLASS/NAME.mp4 or "
            f"{folder}/train/CLASS/NAME.mp4"
        )
    if loose:
        shown = ", ".join(loose[:5])
        annotations.note(f"{len(loose)} videos are in no class folder and left out: {shown}")
    _check_splits(entries, folder)
    # Two files of one name with different endings are two clips.
    seen: dict[str, int] = {}
    for entry in entries:
        seen[entry.video_id] = seen.get(entry.video_id, 0) + 1
    unique = [e._replace(video_id=e.files[0]) if seen[e.video_id] > 1 else e for e in entries]
    return [Part("", unique, {})]


def read_captions(annotations: Annotations) -> list[Part]:
    """A CSV or tab-separated file with a header; several rows of a clip are several captions."""
    path = annotations.folder
    if path.is_dir():
        raise AnnotationError(f"{path} is a folder; give the table: --annotations captions.csv")
    if not path.is_file():
        raise AnnotationError(f"there is no table {path}")
    annotations.used.append(path)
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    _, header = next(table_rows(path, delimiter=delimiter))
    columns = _columns(path, header, annotations)
    clips: dict[str, Entry] = {}
    for row in read_table(path, tuple(columns.values()), delimiter=delimiter):
        value = dict(zip(columns, row.cells, strict=True))
        entry = _row(path, row.number, value)
        old = clips.setdefault(entry.video_id, entry)
        if old is entry:
            continue
        for name in ("files", "label", "split", "start", "end", "group", "source"):
            if getattr(old, name) != getattr(entry, name):
                raise fault(
                    path, row.number,
                    f"{entry.video_id} has {name} {getattr(entry, name)!r} here and "
                    f"{getattr(old, name)!r} above",
                )  # fmt: skip
        clips[entry.video_id] = old._replace(captions=old.captions + entry.captions)
    entries = list(clips.values())
    _check_splits(entries, path)
    return [Part("", entries, {})]


def _columns(path: Path, header: list[str], annotations: Annotations) -> dict[str, str]:
    """What each column holds -> its name. Raises AnnotationError without paths."""
    lower = {name.lower().strip(): name for name in header}
    columns = {}
    for what, names in NAMES.items():
        found = [lower[name] for name in names if name in lower]
        if len(found) > 1:
            raise fault(path, 1, f"the columns {' and '.join(found)} both hold the {what}")
        columns |= {what: found[0]} if found else {}
    if "path" not in columns and "video_id" in columns:
        columns["path"] = columns["video_id"]
    if "path" not in columns:
        raise fault(
            path, 1, f"there is no column 'path'; there are {', '.join(header)}. A table has a "
            "header with path and caption or label",
        )  # fmt: skip
    unread = [name for name in header if name not in columns.values()]
    if unread:
        annotations.note(f"the columns {', '.join(unread)} are not read")
    return columns


def _row(path: Path, line: int, value: dict[str, str]) -> Entry:
    if not value["path"]:
        raise fault(path, line, "the path is empty")
    split = value.get("split")
    if split and split.lower() not in SPELLED:
        raise fault(path, line, f"the split {split!r}; known: {', '.join(SPLITS)}")
    start, end = (_seconds(path, line, name, value.get(name)) for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise fault(path, line, f"the clip starts at {start or 0} s and ends at {end} s")
    name = str(PurePosixPath(value["path"]))
    is_part = start is not None or end is not None
    caption = value.get("caption")
    return Entry(
        value.get("video_id") or (f"{name}#{start or 0:g}-{end or 0:g}" if is_part else name),
        (name,),
        SPELLED[split.lower()] if split else None,
        (caption,) if caption else (),
        value.get("label") or None,
        start,
        end,
        source=value.get("source") or (name if is_part else None),
        group=value.get("group") or None,
    )


def _seconds(path: Path, line: int, name: str, text: str | None) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise fault(path, line, f"{name} is {text!r}; expected seconds")
    return seconds


def _check_splits(entries: list[Entry], path: Path) -> None:
    without = [entry.video_id for entry in entries if entry.split is None]
    if without and len(without) < len(entries):
        raise AnnotationError(
            f"{path}: {len(without)} of {len(entries)} clips have no split, such as "
            f"{', '.join(without[:5])}; give all clips a split, or none"
        )


OWN = {"license": "your own", "page": "docs/data.md"}
DATA_SETS = (
    Dataset(
        name="folders",
        title="your own videos in class folders",
        files="--videos FOLDER with CLASS/NAME.mp4 or train/CLASS/NAME.mp4",
        read=read_folders,
        **OWN,
    ),
    Dataset(
        name="table",
        title="your own videos and a table of paths with captions or labels",
        files="--annotations TABLE.csv with the columns path and caption or label; also split, "
        "video_id, start, end (seconds), group, source",
        read=read_captions,
        **OWN,
    ),
)
