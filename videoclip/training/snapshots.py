"""The state of a run on disk, written so that a kill at any moment leaves one that loads.

A snapshot is a folder that gets its name last: its files are written under another name and synced
to the disk, a manifest with their sizes and hashes follows, then the folder is renamed, and only
then does the file `latest` name it. What lacks its manifest, or does not agree with it, is skipped
with a message.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from videoclip.errors import VideoclipError

MANIFEST = "manifest.json"
LATEST = "latest"
PREFIX = "step-"
PART = ".part"
"""The end of a folder that is not complete yet, or is being deleted."""
KEPT = 2
"""So many snapshots are kept: if the newest turns out to be damaged, there is another."""


def save(folder: Path, step: int, write: Callable[[Path], None], *, keep_last: int = KEPT) -> Path:
    """Makes the snapshot of `step` out of the files that `write` puts into a folder.

    Where there is a whole one of this step it stays: a run has one state after a step. What is
    newer goes: a run that is here now has passed it over. Of the older ones so many are left that
    there are `keep_last` in all.

    Raises VideoclipError where the disk refuses; the older snapshots are then still there.
    """
    final = folder / f"{PREFIX}{step:09d}"
    partial = folder / (final.name + PART)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{PREFIX}*{PART}"):
            shutil.rmtree(leftover)
        if not (final.is_dir() and fault(final) is None):
            partial.mkdir()
            write(partial)
            _seal(partial)
            _delete(final)
            partial.rename(final)
            _sync(folder)
        _name_latest(final)
    except (OSError, RuntimeError, VideoclipError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise VideoclipError(
            f"the state after step {step} cannot be saved in {folder}: {_first_cause(error)}; make "
            "room and run the same command again, it goes on from the state before"
        ) from error
    others = [path for path in _by_age(folder) if path != final]
    newer = [path for path in others if path.name > final.name]
    for old in newer + [path for path in others if path not in newer][keep_last - 1 :]:
        _delete(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest snapshot that is whole; None where there is none at all.

    Damaged ones are named and passed over. Raises VideoclipError where all are damaged.
    """
    found = _by_age(folder)
    latest = folder / LATEST
    if latest.is_file() and (name := latest.read_text().strip()) not in {p.name for p in found}:
        _tell(f"{folder / name}, the latest state, is gone")
    for path in found:
        wrong = fault(path)
        if wrong is None:
            return path
        _tell(f"{path} is passed over: {wrong}")
    if found:
        raise VideoclipError(
            f"none of the states in {folder} is whole; put one back, or start anew with "
            "--run.resume never, which deletes them"
        )
    return None


def fault(snapshot: Path) -> str | None:
    """What is wrong with a snapshot; None where it is whole."""
    try:
        listed = json.loads((snapshot / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    for name, described in listed.items():
        path = snapshot / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != described["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {described['bytes']}"
        if _described(path) != described:
            return f"{name} has other bytes than were written"
    return None


def _first_cause(error: BaseException) -> BaseException:
    """What the disk said: torch and safetensors raise errors of their own about it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found
        found = found.__cause__ or found.__context__
    return error


def _by_age(folder: Path) -> list[Path]:
    """The snapshots, the newest first."""
    named = [path for path in folder.glob(f"{PREFIX}*") if path.suffix != PART]
    return sorted(named, reverse=True)


def _seal(partial: Path) -> None:
    """Waits until all files are on the disk, then lists them, which makes the folder whole."""
    inside = sorted(partial.rglob("*"))
    files = [path for path in inside if path.is_file()]
    for path in files:
        _sync(path)
    listed = {str(path.relative_to(partial)): _described(path) for path in files}
    (partial / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n")
    folders = [path for path in inside if path.is_dir()]
    for path in (partial / MANIFEST, *folders, partial):
        _sync(path)


def _name_latest(final: Path) -> None:
    """Says in a file which snapshot is the newest."""
    partial = final.with_name(LATEST + PART)
    partial.write_text(final.name + "\n")
    _sync(partial)
    partial.replace(final.with_name(LATEST))
    _sync(final.parent)


def _delete(snapshot: Path) -> None:
    """Takes a snapshot away, so that a kill meanwhile leaves no half of it under its name."""
    if snapshot.is_dir():
        leftover = snapshot.with_name(f"{snapshot.name}.old{PART}")
        shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(snapshot.rename(leftover))


def _described(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Waits until a file, or the list of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
