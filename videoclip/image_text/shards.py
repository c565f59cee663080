"""Tar shards -> an index of their samples: random access without unpacking.

The layout is WebDataset's: the members of a sample follow each other and share a name up to its
first dot. Nothing in a shard is executed: pickles are never read, `pipe:` is refused.
"""

import glob
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.frames import tar

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
"""Of two captions the text counts."""


class Index(NamedTuple):
    """Where the samples of some shards stand; N of them can be used."""

    shards: list[Path]
    names: pa.Array
    """(N,) shard and name of a sample, as messages call it; Arrow keeps millions of them small."""
    shard: np.ndarray
    """(N,) int32, places in `shards`."""
    image: np.ndarray
    """(N, 2) int64: offset and size of the picture in its shard."""
    caption: np.ndarray
    """(N, 2) int64: the same of the caption."""
    is_json: np.ndarray
    """(N,) bool: the caption is a JSON object."""
    bad: dict[str, str]
    """The other samples, each with what is wrong."""
    notes: list[str]
    """What is wrong with a shard as a whole, and how many members were passed over."""


def find_shards(source: str) -> list[Path]:
    """The shards of a folder, a glob or a brace pattern, `shards-{000..010}.tar`, in order.

    Raises VideoclipError where there are none, one is missing or the source is a command.
    """
    if re.match(r"\s*(pipe|https?|s3|gs|hdfs):", source):
        raise VideoclipError(
            f"{source!r} is refused: shards are read from files alone, no command and no address "
            "is opened; download them first"
        )
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
    elif braces := re.search(r"\{(\d+)\.\.(\d+)\}", source):
        first, last = braces.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{number:0{len(first)}d}" for number in numbers]
        found = [Path(source[: braces.start()] + n + source[braces.end() :]) for n in names]
    else:
        found = [Path(path) for path in sorted(glob.glob(source))] or [Path(source)]  # noqa: PTH207
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise VideoclipError(
            f"{source}: {len(missing)} of {len(found)} shards are missing: "
            f"{', '.join(missing[:5]) or 'there is no .tar'}"
        )
    packed = [str(path) for path in found if path.suffix != ".tar"]
    if packed:
        raise VideoclipError(f"{packed[0]} is not a plain .tar; unpack it first (gunzip)")
    return found


def index(shards: Sequence[Path]) -> Index:
    """Reads the headers of all shards, once.

    Raises VideoclipError where no shard holds a sample that can be used.
    """
    names: list[str] = []
    places: list[tuple[int, ...]] = []
    bad: dict[str, str] = {}
    notes: list[str] = []
    for number, path in enumerate(tqdm(shards, "indexing", unit="shard", disable=len(shards) < 5)):
        members, wrong, passed_over, fault = _members(path)
        bad |= {f"{path.name}/{name}": reason for name, reason in wrong.items()}
        if fault:
            notes.append(f"{path}: {fault}")
        if passed_over:
            listed = ", ".join(f"{count} {what}" for what, count in sorted(passed_over.items()))
            notes.append(f"{path}: members that are neither picture nor caption: {listed}")
        for name, parts in members.items():
            image = next((parts[end] for end in IMAGES if end in parts), None)
            end = next((end for end in CAPTIONS if end in parts), None)
            if name in wrong:
                continue
            if image is None or end is None:
                missing = "picture" if image is None else "caption"
                cut = "; the shard is cut off" if fault else ""
                bad[f"{path.name}/{name}"] = f"it has no {missing}{cut}"
                continue
            names.append(f"{path.name}/{name}")
            places.append((number, *image, *parts[end], end == "json"))
    if not places:
        what = "; ".join([*notes, *(f"{n}: {r}" for n, r in list(bad.items())[:5])])
        raise VideoclipError(
            f"{shards[0]} and {len(shards) - 1} more shards hold no usable sample; {what}"
        )
    table = np.array(places, dtype=np.int64)
    return Index(
        list(shards), pa.array(names), table[:, 0].astype(np.int32), table[:, 1:3], table[:, 3:5],
        table[:, 5].astype(bool), bad, notes,
    )  # fmt: skip


def write_shards(
    samples: Sequence[tuple[str, Path, str]], folder: Path, *, per_shard: int = 10_000
) -> list[Path]:
    """Packs samples (name, picture file, caption) into `shards-000.tar`, ...; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, first in enumerate(range(0, len(samples), per_shard)):
        path = folder / f"shards-{number:03d}.tar"
        with tar.finished(path) as file:
            for name, picture, caption in samples[first : first + per_shard]:
                file.write(tar.member(name + picture.suffix.lower(), picture.read_bytes()))
                file.write(tar.member(f"{name}.txt", caption.encode()))
            file.write(tar.END)
        written.append(path)
    return written


def _members(
    path: Path,
) -> tuple[dict[str, dict[str, tuple[int, int]]], dict[str, str], Counter[str], str]:
    """Per sample its members; samples that are wrong; what was passed over; the shard's fault."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    wrong: dict[str, str] = {}
    passed_over: Counter[str] = Counter()
    fault, size, last = "", path.stat().st_size, ""
    try:
        with tarfile.open(path, "r:") as members:
            for member in members:
                if not member.isreg():
                    passed_over["folder" if member.isdir() else "link or device"] += 1
                    continue
                head, _, base = member.name.rpartition("/")
                stem, _, end = base.partition(".")
                name, end = f"{head}/{stem}".lstrip("/"), end.lower()
                if end not in (*IMAGES, *CAPTIONS):
                    passed_over[f".{end}"] += 1
                    continue
                if member.offset_data + member.size > size:
                    fault = f"it is cut off in {member.name}"
                    break
                if name in found and name != last:
                    wrong[name] = "its name stands in two places of the shard"
                elif end in found.get(name, {}):
                    wrong[name] = f"it has two members .{end}"
                found.setdefault(name, {})[end] = (member.offset_data, member.size)
                last = name
            ended = members.offset
    except tarfile.TarError as error:
        return found, wrong, passed_over, f"it is cut off or damaged ({error})"
    if not fault:
        with path.open("rb") as file:
            file.seek(ended)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                fault = "it has no end mark; it is cut off behind a member"
    return found, wrong, passed_over, fault
