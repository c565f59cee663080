"""The state of a run on disk, written so that a kill at any moment leaves one that loads.

A snapshot is a folder that gets its name last: its files are written under another name, synced to
the disk and listed with sizes and hashes in a manifest, and only then is the folder renamed. What
lacks its manifest, or does not agree with it, is skipped with a message.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from videoclip.errors import VideoclipError

MANIFEST = "manifest.json"
STATE = "state.pt"
PREFIX = "step-"
KEPT = 2
"""So many snapshots are kept: if the newest turns out to be damaged, there is another."""


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Keeps tensors and plain values as the state after `step`; `newest_state` reads them back."""
    return save(folder, step, lambda inside: torch.save(state, inside / STATE))


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole, its tensors on the CPU; None where there is none."""
    found = newest(folder)
    if found is None:
        return None
    return torch.load(found / STATE, map_location="cpu", weights_only=True)


def save(folder: Path, step: int, write: Callable[[Path], None], *, keep_last: int = KEPT) -> Path:
    """Makes the snapshot of `step` out of the files that `write` puts into a folder.

    Raises VideoclipError where the disk refuses; the older snapshots are then still there.
    """
    final = folder / f"{PREFIX}{step:09d}"
    partial = folder / f"{final.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{PREFIX}*.part"):
            shutil.rmtree(leftover)
        partial.mkdir()
        write(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        listed = {str(path.relative_to(partial)): _described(path) for path in files}
        (partial / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n")
        for path in (*files, partial / MANIFEST, partial):
            _sync(path)
        if final.exists():  # the same step again, after an older state was gone back to
            shutil.rmtree(final)
        partial.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise VideoclipError(
            f"the state after step {step} cannot be saved in {folder}: {error}; make room and run "
            "the same command again, it goes on from the state before"
        ) from error
    for old in _by_age(folder)[keep_last:]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest snapshot that is whole; damaged ones are named and passed over."""
    for path in _by_age(folder):
        fault = _fault(path)
        if fault is None:
            return path
        tqdm.write(f"{path} is passed over: {fault}")
    return None


def _by_age(folder: Path) -> list[Path]:
    """The snapshots, the newest first."""
    named = [path for path in folder.glob(f"{PREFIX}*") if path.suffix != ".part"]
    return sorted(named, reverse=True)


def _fault(snapshot: Path) -> str | None:
    """What is wrong with a snapshot."""
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
