"""A folder of videos -> which file belongs to which entry, and which belongs to none."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from data_prep.entries import Entry

SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".3g2", ".gif", ".mts", ".m2ts", ".ts", ".ogv", ".asf", ".vob",
)  # fmt: skip
"""Endings of video files, the preferred one first where a clip is there twice."""
TIMES = re.compile(r"_\d{6}_\d{6}$")
"""What the usual downloaders of Kinetics and VATEX put behind a name: first and last second."""


class Found(NamedTuple):
    """Entries with their files."""

    paths: list[Path]
    """One per entry; where none was found, the place where it was expected."""
    missing: list[int]
    """Indices of the entries without a file."""
    extra: list[Path]
    """Video files that belong to no entry."""
    ambiguous: list[str]
    """Entries with several files, and which was taken."""


def find_videos(folder: Path, entries: Sequence[Entry]) -> Found:
    """The file of every entry: the exact name, else the same name with another ending.

    A name may lie in any subfolder; where the annotations name the subfolder, that one is taken
    first. Names that carry the seconds of the clip (NAME_000010_000020.mp4) are found, too.
    """
    folder = Path(folder)
    files = list_files(folder)
    exact = {str(path): path for path in files}
    by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
    by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
    by_time: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path in files:
        by_name[path.name].append(path)
        by_stem[stem_of(path.name)].append(path)
        if (bare := TIMES.sub("", stem_of(path.name))) != stem_of(path.name):
            by_time[bare].append(path)
    found = Found([], [], [], [])
    taken: set[PurePosixPath] = set()
    for index, entry in enumerate(tqdm(entries, "finding videos", unit="clip", delay=2)):
        names = [_relative(name, folder) for name in entry.files]
        candidates = _candidates(names, exact, by_name, by_stem, by_time)
        if not candidates:
            found.missing.append(index)
            found.paths.append(expected_path(folder, entry))
            continue
        best = min(candidates, key=lambda path: (_preference(path), str(path)))
        if len(candidates) > 1:
            found.ambiguous.append(
                f"{entry.video_id}: {', '.join(map(str, sorted(candidates)))}; {best} is taken"
            )
        taken.update(candidates)
        found.paths.append(folder / best)
    found.extra.extend(folder / path for path in files if path not in taken and is_video(path))
    return found


def expected_path(folder: Path, entry: Entry) -> Path:
    """Where the video of an entry belongs; inside the folder, whatever the annotations say."""
    name = PurePosixPath(entry.files[0])
    inside = PurePosixPath(*(part for part in name.parts if part not in ("/", "..")))
    return Path(folder) / (inside if is_video(inside) else f"{inside}.mp4")


def list_files(folder: Path) -> list[PurePosixPath]:
    """Every file below a folder, relative to it, sorted; hidden ones are left out."""
    found = []
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (place := (status.st_dev, status.st_ino)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = PurePosixPath(Path(root).relative_to(folder).as_posix())
        found += [base / name for name in names if not name.startswith(".")]
    return sorted(found)


def stem_of(name: str) -> str:
    """A name without the ending of a video file; other dots belong to it (LSMDC's times)."""
    start, dot, end = name.rpartition(".")
    return start if dot and (f".{end.lower()}" in SUFFIXES or not end) else name


def is_video(path: PurePosixPath) -> bool:
    """Whether a name ends as video files do."""
    return path.suffix.lower() in SUFFIXES


def _relative(name: str, folder: Path) -> str:
    """A name as it is called in the folder, where it leads there from the root."""
    inside = Path(name).is_absolute() and Path(name).is_relative_to(folder.absolute())
    return Path(name).relative_to(folder.absolute()).as_posix() if inside else name


def _candidates(
    names: Sequence[str],
    exact: dict[str, PurePosixPath],
    by_name: dict[str, list[PurePosixPath]],
    by_stem: dict[str, list[PurePosixPath]],
    by_time: dict[str, list[PurePosixPath]],
) -> list[PurePosixPath]:
    for name in names:
        if name in exact:
            return [exact[name]]
        # A table of one's own may name files anywhere; joined to the folder it stays what it is.
        if Path(name).is_absolute() and Path(name).is_file():
            return [PurePosixPath(name)]
    for name in names:
        bare = name.rsplit("/", 1)[-1]
        parent = name.rsplit("/", 2)[-2] if "/" in name else None
        # Also NAME.avi.mp4, where a tool has put its ending behind the one that was there.
        for index, key in (
            (by_name, bare), (by_stem, bare), (by_stem, stem_of(bare)), (by_time, stem_of(bare)),
        ):  # fmt: skip
            if found := index.get(key):
                near = [path for path in found if path.parent.name == parent]
                return near or found
    return []


def _preference(path: PurePosixPath) -> int:
    suffix = path.suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)
