"""The manifest: one row per clip, Parquet or JSONL, the same schema for every data set."""

import difflib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videoclip.errors import ManifestError

SPLITS = ("train", "val", "test")
SHARES = {"val": 0.15, "test": 0.15}
CHECKED = (
    "status", "detail", "bytes", "container", "codec", "pixel_format", "width", "height", "rate",
    "frames", "decoded", "seconds", "rotation", "variable_rate", "non_square", "video_streams",
    "audio_streams",
)  # fmt: skip
"""Columns that `videoclip data check` adds for people and tables; reading passes them by."""
SHOWN = 20
"""So many faults are listed; the rest is counted."""


class Clip(NamedTuple):
    """One row of a manifest."""

    video_id: str
    """Unique in the manifest."""
    path: Path
    """The file, absolute; in the manifest it may be relative to the manifest's folder."""
    captions: tuple[str, ...] = ()
    """What the clip shows; in the file a list of strings or one string."""
    label: str | None = None
    """The action, for recognition."""
    split: str | None = None
    """train, val or test."""
    start: float | None = None
    """Seconds from the video's first frame; None is the beginning."""
    end: float | None = None
    """Seconds; None is the end."""
    group: str | None = None
    """A word by which results are also broken down."""
    source: str | None = None
    """What the clip was cut from, such as a film or a camera. Clips of one source are alike: they
    are dealt into one split, and intervals draw them together. None: its file."""


def read_manifest(path: Path) -> list[Clip]:
    """Reads a .jsonl or .parquet manifest.

    Raises ManifestError that lists the rows that are wrong, and for an empty or missing file.
    """
    rows = _rows(Path(path))
    faults: list[str] = []
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        clip, wrong = _clip(row, Path(path).absolute().parent)
        if clip and clip.video_id in seen:
            wrong.append(f"video_id {clip.video_id!r} stands in row {seen[clip.video_id]} already")
        faults += [f"  row {number}: {fault}" for fault in wrong]
        if clip and not wrong:
            seen[clip.video_id] = number
            clips.append(clip)
    _raise_all(path, faults)
    if not clips:
        raise ManifestError(f"{path} is empty; a manifest has one row per clip")
    return clips


def write_manifest(
    path: Path, clips: Iterable[Clip], columns: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Writes .jsonl or .parquet; a path inside the manifest's folder is written relative to it.

    `columns` are values of CHECKED for each clip.
    """
    path = Path(path)
    rows = []
    for clip, more in itertools.zip_longest(clips, columns, fillvalue={}):
        row = {k: v for k, v in clip._asdict().items() if v is not None}
        place, folder = clip.path.absolute(), path.absolute().parent
        row["path"] = str(place.relative_to(folder) if place.is_relative_to(folder) else place)
        rows.append(row | {"captions": list(clip.captions), **more})
    partial = path.with_name(path.name + ".part")
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # A file name that is not UTF-8 has surrogates in Python, and JSON has an escape for them.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    elif path.suffix == ".parquet":
        import pandas as pd

        try:
            pd.DataFrame(rows).to_parquet(partial)
        except UnicodeEncodeError as error:
            raise ManifestError(
                f"{path}: {error.object!r} is no name in UTF-8, which Parquet needs; write .jsonl"
            ) from error
    else:
        raise ManifestError(f"{path}: a manifest is .jsonl or .parquet, not {path.suffix!r}")
    partial.replace(path)


def manifest_hash(path: Path) -> str:
    """SHA-256 of a manifest's rows; the same for the same rows in Parquet and in JSONL.

    The absolute place of the manifest does not count.
    """
    digest = hashlib.sha256()
    for _, row in _rows(Path(path)):
        clip, _ = _clip(row, Path())
        digest.update(json.dumps(clip, default=str, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def require_captions(clips: Sequence[Clip], path: Path) -> None:
    """Raises ManifestError that names the clips without a caption."""
    without = [clip.video_id for clip in clips if not clip.captions]
    if without:
        raise ManifestError(
            f"{path}: {len(without)} of {len(clips)} clips have no caption, among them "
            f"{', '.join(without[:10])}; retrieval needs at least one each"
        )


def with_splits(
    clips: Sequence[Clip], path: Path, needed: Sequence[str] = SPLITS
) -> tuple[dict[str, list[Clip]], str | None]:
    """The clips by split, and a sentence that says what had to be decided, or None.

    Where no row has a split, clips are dealt out by the hash of their id, 70/15/15, or whole
    sources by theirs, so that no clip is trained on whose neighbor is tested; where only `val` is
    missing, 15 % of `train` becomes it. `test` is never used for anything else.

    Raises ManifestError where a needed split is missing or a row's split is unknown or absent.
    """
    named = {split: [c for c in clips if c.split == split] for split in SPLITS}
    unsplit = [clip for clip in clips if clip.split is None]
    if len(unsplit) == len(clips):
        rest, dealt = _by_hash(clips), {}
        what = "clips were dealt out by a hash of their id"
        if len(rest) < len(clips):
            what = "sources were dealt out by a hash of their name"
        if len(rest) < len(needed):
            raise ManifestError(
                f"{path} has no splits and only {len(rest)} sources of clips; {', '.join(needed)} "
                "need at least one each"
            )
        for split in ("val", "test"):
            size = max(1, round(SHARES[split] * len(clips))) if split in needed else 0
            dealt[split], rest = _deal(rest, size, keep=2 if split == "val" else 1)
        dealt["train"] = [clip for of_one in rest for clip in of_one]
        sizes = ", ".join(f"{len(dealt[s])} {s}" for s in SPLITS if s in needed)
        return _ordered(dealt, clips), f"The manifest has no splits; {what}: {sizes}."
    if unsplit:
        raise ManifestError(
            f"{path}: {len(unsplit)} of {len(clips)} clips have no split, among them "
            f"{', '.join(c.video_id for c in unsplit[:10])}; give all rows a split, or none"
        )
    present = sorted({clip.split for clip in clips if clip.split})
    missing = [split for split in needed if not named[split]]
    train = _by_hash(named["train"])
    if missing == ["val"] and len(train) > 1:
        total = len(named["train"])
        named["val"], rest = _deal(train, max(1, round(SHARES["val"] * total)), keep=1)
        named["train"] = [clip for of_one in rest for clip in of_one]
        return _ordered(named, clips), (
            f"The manifest has no split 'val'; {len(named['val'])} of {total} training clips "
            "became it."
        )
    if missing:
        raise ManifestError(
            f"{path} has the splits {', '.join(present)}; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} needed too. Leave the column out to have "
            "clips dealt out by a hash of their id"
        )
    return named, None


def sources(clips: Sequence[Clip]) -> list[int]:
    """For every clip the number of its source: equal where clips were cut from one thing."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(source_of(clip), len(numbers)) for clip in clips]


def source_of(clip: Clip) -> str:
    """What a clip was cut from: its source, or its file."""
    return f"file {clip.path}" if clip.source is None else clip.source


def _by_hash(clips: Sequence[Clip]) -> list[list[Clip]]:
    """The clips of every source, in the order of a hash: of the id where each has its own."""
    by_source: dict[str, list[Clip]] = {}
    for clip in clips:
        by_source.setdefault(source_of(clip), []).append(clip)

    def digest(name: str) -> str:
        first, *more = by_source[name]
        if first.source is None:  # wherever the files are
            name = first.path.name if more else first.video_id
        return hashlib.sha256(name.encode()).hexdigest()

    return [by_source[name] for name in sorted(by_source, key=digest)]


def _deal(waiting: list[list[Clip]], size: int, keep: int) -> tuple[list[Clip], list[list[Clip]]]:
    """Whole sources until there are `size` clips, but `keep` sources stay; and those that stay."""
    dealt: list[Clip] = []
    taken = 0
    while len(dealt) < size and len(waiting) - taken > keep:
        dealt += waiting[taken]
        taken += 1
    return dealt, waiting[taken:]


def _ordered(by_split: Mapping[str, list[Clip]], clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The splits with their clips in the manifest's order."""
    place = {clip.video_id: index for index, clip in enumerate(clips)}
    return {s: sorted(rows, key=lambda c: place[c.video_id]) for s, rows in by_split.items()}


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise ManifestError(f"there is no manifest {path}; give the path of a .jsonl or .parquet")
    if path.suffix == ".parquet":
        import pandas as pd

        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} is not a Parquet file: {error}") from error
        return list(enumerate(table.to_dict("records"), start=1))
    if path.suffix != ".jsonl":
        raise ManifestError(f"{path}: a manifest is .jsonl or .parquet, not {path.suffix!r}")
    rows, faults = [], []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not text in UTF-8: {error}; save it as UTF-8") from error
    # Not splitlines, which also splits at the line separators that captions from the web hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"  line {number} is not JSON: {error}")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            faults.append(f"  line {number} is {type(row).__name__}, expected an object")
    _raise_all(path, faults)
    return rows


def _raise_all(path: Path, faults: Sequence[str]) -> None:
    if faults:
        more = [f"  and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ManifestError("\n".join([f"{path} has faults:", *faults[:SHOWN], *more]))


def _clip(row: Mapping[str, Any], folder: Path) -> tuple[Clip | None, list[str]]:
    """A row as a clip, or the list of what is wrong with it."""
    wrong = []
    for name in row:
        if name not in Clip._fields and name not in CHECKED:
            close = difflib.get_close_matches(str(name), Clip._fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(Clip._fields)}"
            wrong.append(f"unknown column {name!r}; {hint}")
    value = {name: _plain(row.get(name)) for name in Clip._fields}
    for name in ("video_id", "path"):
        if not isinstance(value[name], str) or not value[name]:
            wrong.append(f"{name} is {value[name]!r}; expected text")
    if isinstance(value["path"], str) and not _is_path(value["path"]):
        wrong.append(f"path is {value['path']!r}; no file can be called so")
    for name in ("label", "split", "group", "source"):
        if value[name] is not None and not isinstance(value[name], str):
            wrong.append(f"{name} is {value[name]!r}; expected text")
    for name in ("start", "end"):
        number = value[name]
        if type(number) in (int, float) and math.isfinite(number):
            value[name] = float(number)  # so that 1 in JSON and 1.0 in Parquet hash alike
        elif number is not None:
            wrong.append(f"{name} is {number!r}; expected seconds")
    start, end = value["start"], value["end"]
    if not wrong and start is not None and end is not None and end <= start:
        wrong.append(f"the segment starts at {start} s and ends at {end} s; it must end later")
    if isinstance(value["split"], str) and value["split"] not in SPLITS:
        wrong.append(f"split is {value['split']!r}; known: {', '.join(SPLITS)}")
    captions = value["captions"]
    captions = [captions] if isinstance(captions, str) else [] if captions is None else captions
    if not isinstance(captions, list) or not all(
        isinstance(caption, str) and caption.strip() for caption in captions
    ):
        wrong.append(f"captions are {captions!r}; expected a list of texts that are not empty")
    if wrong:
        return None, wrong
    clip = Clip(**value)
    return clip._replace(path=folder / clip.path, captions=tuple(captions)), []


def _is_path(text: str) -> bool:
    """Whether a system can be asked for it: a NUL ends a name, and half a character is none."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _plain(value: Any) -> Any:
    """What Parquet gives for lists and for holes, as plain Python."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
