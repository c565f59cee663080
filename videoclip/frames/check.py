"""Videos -> which can be used, and why not the others; what hangs or crashes costs one file.

Every file is opened and decoded by `videoclip.frames.gate`, in a process that is thrown away when
it does not answer. ok + bad = all, always.
"""

import collections
import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from videoclip.frames.apart import TRIES, Apart, run_module
from videoclip.frames.gate import Limits
from videoclip.manifest import CHECKED, Clip

PROGRAM = run_module("videoclip.frames.gate")


class Row(NamedTuple):
    """What was found of a clip."""

    clip: Clip
    found: dict[str, Any]
    """Values of CHECKED; `status` is ok or the reason against it."""

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return self.found["status"] == "ok"


def check(
    clips: Sequence[Clip],
    limits: Limits,
    *,
    workers: int,
    journal: Path | None = None,
    program: Sequence[str] = PROGRAM,
) -> list[Row]:
    """One row for every clip, in their order; a file of several clips is opened once.

    What stands in the journal for files that are still the same is not done again. Raises
    VideoclipError where the process that opens the files does not start.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    found = _known(journal, limits) if journal else {}
    keys = {path: _key(path, limits) for path in paths}
    results = {path: found[keys[path]] for path in paths if keys[path] in found}
    rest = collections.deque(path for path in paths if path not in results)
    lock, stop = threading.Lock(), threading.Event()
    bar = tqdm(desc="checking", total=len(paths), initial=len(results), unit="file", delay=1)

    def work() -> None:
        with Apart(program, limits._asdict(), stop, timeout=limits.timeout) as apart:
            while not stop.is_set():
                try:
                    path = rest.popleft()
                except IndexError:
                    return
                answer = apart.ask(str(path))
                if answer is None:
                    return
                with lock:
                    results[path] = answer
                    if journal:
                        with journal.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([keys[path], answer]) + "\n")
                    bar.update()

    with bar, ThreadPoolExecutor(workers) as pool:
        started = [pool.submit(work) for _ in range(min(workers, len(rest)))]
        try:
            for future in as_completed(started):
                future.result()
        except BaseException:
            stop.set()
            raise
    rows = [Row(clip, _of_clip(clip, results[clip.path])) for clip in clips]
    assert len(rows) == len(clips) == sum(row.ok for row in rows) + sum(not r.ok for r in rows)
    return rows


def remarks(row: Row) -> list[str]:
    """What a user should know of a clip that is ok."""
    found = row.found
    said = {
        "variable rate": found.get("variable_rate"),
        "rotated": found.get("rotation"),
        "non-square pixels": found.get("non_square"),
        "one frame": found.get("frames") == 1,
        "several video streams": (found.get("video_streams") or 0) > 1,
        "10 bit or more": "10" in (format := found.get("pixel_format") or "") or "12" in format,
    }
    return [name for name, holds in said.items() if holds]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts by class, and of remarks on what is ok; ok + bad = N."""
    kinds = Counter(row.found["status"] for row in rows)
    said = Counter(name for row in rows if row.ok for name in remarks(row))
    ok = kinds.pop("ok", 0)
    return {
        "files": len(rows),
        "ok": ok,
        "bad": sum(kinds.values()),
        "by_class": dict(kinds.most_common()),
        "remarks_on_ok": dict(said.most_common()),
    }


def _of_clip(clip: Clip, found: dict[str, Any]) -> dict[str, Any]:
    """What was found of a file, for one clip of it: its segment may lie behind the end."""
    seconds = found.get("seconds")
    if found["status"] == "ok" and clip.start is not None and seconds and clip.start >= seconds:
        detail = f"the clip begins at {clip.start:g} s, and the video ends at {seconds:.1f} s"
        return found | {"status": "segment outside", "detail": detail}
    return found


def _key(path: Path, limits: Limits) -> str:
    """Changes with the file and with what was asked for."""
    try:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
    except OSError:
        state = []
    return json.dumps([str(path), *state, list(limits)])


def _known(journal: Path, limits: Limits) -> dict[str, dict[str, Any]]:
    """What an earlier run has found; its last line may be cut off. Time is given another chance."""
    found = {}
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                key, answer = json.loads(line)
            except ValueError:
                continue
            if answer["status"] not in TRIES:
                found[key] = answer
    return found


def columns(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What is written beside each clip."""
    return [{name: row.found.get(name) for name in CHECKED} for row in rows]
