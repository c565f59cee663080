"""Videos -> a store: each is decoded once, apart, and what training reads of it is kept.

    STORE/shards/000000.tar   members KEY.000000.jpg ... KEY.json, as WebDataset has them
    STORE/index.parquet       where in them each KEY stands
    STORE/journal.sqlite      what became of every file
    STORE/NAME.jsonl          the manifest again, with the paths of what is packed

A KEY is a hash of a video's bytes and of the settings: several manifests of one store share what
they have in common. A video becomes a piece first, a file of its own; when all are there, pieces
become shards in the order of the manifest. So nothing depends on who packed what, or on how often
it was interrupted.
"""

import collections
import hashlib
import json
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from videoclip.errors import VideoclipError, VideoError
from videoclip.frames import pack_journal
from videoclip.frames.apart import Apart, run_module
from videoclip.frames.gate import Limits
from videoclip.frames.pack_clip import key_of
from videoclip.frames.pack_journal import Journal, Row, is_settled, name_of
from videoclip.frames.pack_shards import PIECES, assemble, piece_path, places
from videoclip.frames.packed import BAD, INDEX, Packed, is_packed
from videoclip.frames.sampling import frame_range
from videoclip.frames.tar import finished
from videoclip.manifest import Clip, write_manifest

PROGRAM = run_module("videoclip.frames.pack_clip")
SHARD_BYTES = 1_000_000_000


class Share(NamedTuple):
    """One machine's part of the files: every `of`-th, from number `number`, which counts from 1."""

    number: int = 1
    of: int = 1


WHOLE = Share()


class Found(NamedTuple):
    """What became of one clip of a manifest."""

    clip: Clip
    """As the store's manifest has it."""
    status: str
    """ok, or the class of what is wrong."""
    detail: str


def pack(
    clips: Sequence[Clip],
    settings: dict[str, Any],
    store: Path,
    limits: Limits,
    *,
    workers: int,
    share: Share = WHOLE,
    shard_bytes: int = SHARD_BYTES,
    program: Sequence[str] = PROGRAM,
    elsewhere: "Elsewhere | None" = None,
) -> dict[Path, Row]:
    """Packs what is missing and returns a row for every file of this share.

    `settings` is a Packing's record; `elsewhere` does the work in place of this machine. With the
    whole share the pieces, whoever made them, become shards. Raises VideoclipError where the store
    cannot be written.
    """
    packed = next((clip for clip in clips if is_packed(clip.path)), None)
    if packed:
        raise VideoclipError(
            f"{packed.video_id} is packed already ({packed.path}); give the manifest of the files"
        )
    (store / PIECES).mkdir(parents=True, exist_ok=True)
    files = list(dict.fromkeys(clip.path for clip in clips))[share.number - 1 :: share.of]
    alone = share.of == 1
    name = "journal.sqlite" if alone else f"journal-{share.number}-of-{share.of}.sqlite"
    with pack_journal.opened(store / name) as journal:
        if alone:
            for other in sorted(store.glob("journal-*.sqlite")):
                journal.take(other)
            _remove_parts(store)  # of a run that was killed
        packer = Packer(settings, store, limits, {row[0] for row in places(store)})
        rows = _Run(packer, journal).finish(files, workers, program, elsewhere)
        if alone:
            assemble(store, [row.key for row in rows.values() if row.status == "ok"], shard_bytes)
            _remove_parts(store)  # of machines that were lost
            with suppress(OSError):  # another manifest's pieces wait in it
                (store / PIECES).rmdir()
    return rows


def _remove_parts(store: Path) -> None:
    for part in (store / PIECES).glob("*.part"):
        part.unlink(missing_ok=True)


class Packer(NamedTuple):
    """What packs one file after the other, in whichever process on whichever machine."""

    settings: dict[str, Any]
    """A Packing's record."""
    store: Path
    limits: Limits
    known: set[str]
    """The keys that are in shards."""

    @property
    def texts(self) -> tuple[str, str]:
        """Settings and limits as rows have them."""
        return json.dumps(self.settings, sort_keys=True), json.dumps(self.limits)

    def lost(self, path: Path, detail: str) -> Row:
        """The row of a file whose process ended with all that it did."""
        (size, changed), (settings, limits) = _state(path), self.texts
        return Row(name_of(path), settings, size, changed, "", "", "crash", detail, limits)

    def has(self, key: str) -> bool:
        """Whether a video is packed, as a piece or in a shard."""
        return key in self.known or piece_path(self.store, key).is_file()

    def pack(self, path: Path, apart: Apart) -> Row | None:
        """Packs a file, where no file with its content is packed. None where the run stops.

        Two files with the same content may be decoded at the same time; they make the same piece.
        """
        size, changed = _state(path)
        sha256 = _digest(path)
        key = key_of(sha256, self.settings) if sha256 else ""
        answer: dict[str, Any] | None = {"status": "ok", "detail": ""}
        if not key or not self.has(key):
            piece = piece_path(self.store, key)
            answer = apart.ask([str(path), str(piece), sha256, self.settings])
        if answer is None:
            return None
        status, detail = answer["status"], answer["detail"]
        if status == "no space":
            raise VideoclipError(
                f"cannot write into {self.store} ({detail}); free some space and run the same "
                "command again, which does only the rest"
            )
        if status == "ok" and ((size, changed) != _state(path) or not key):
            status, detail = "changed", "it was changed while it was read: run again"
        name, (settings, limits) = name_of(path), self.texts
        return Row(name, settings, size, changed, sha256, key, status, detail, limits)


Elsewhere = Callable[[Packer, Sequence[Path]], Iterator[tuple[Path, Row]]]
"""Packs files on other machines: a row for each, in any order."""


class _Run:
    """What the threads of one run share."""

    def __init__(self, packer: Packer, journal: Journal) -> None:
        self.packer, self.journal, self.texts = packer, journal, packer.texts
        self.lock, self.stop = threading.Lock(), threading.Event()

    def finish(
        self,
        files: Sequence[Path],
        workers: int,
        program: Sequence[str],
        elsewhere: Elsewhere | None,
    ) -> dict[Path, Row]:
        """Does what is left; a row for every file, in their order."""
        rows = {path: self._settled(path) for path in files}
        rest = collections.deque(path for path, row in rows.items() if row is None)
        done = len(files) - len(rest)
        bar = tqdm(desc="packing", total=len(files), initial=done, unit="file", delay=1)

        def keep(path: Path, row: Row) -> None:
            with self.lock:
                self.journal.keep(row)
                rows[path] = row
                bar.update()

        def work() -> None:
            limits = self.packer.limits
            with Apart(program, limits._asdict(), self.stop, timeout=limits.timeout) as apart:
                while not self.stop.is_set():
                    try:
                        path = rest.popleft()
                    except IndexError:
                        return
                    row = self.packer.pack(path, apart)
                    if row is None:
                        return
                    keep(path, row)

        with bar, ThreadPoolExecutor(workers) as pool:
            for path, row in elsewhere(self.packer, list(rest)) if elsewhere else ():
                keep(path, row)
            started = (
                [] if elsewhere else [pool.submit(work) for _ in range(min(workers, len(rest)))]
            )
            try:
                for future in as_completed(started):
                    future.result()
            except BaseException:
                self.stop.set()
                raise
        found = {path: row for path, row in rows.items() if row is not None}
        assert len(found) == len(files)
        return found

    def _settled(self, path: Path) -> Row | None:
        """What the journal says of a file, where that still holds."""
        size, changed = _state(path)
        row = self.journal.find(path, self.texts[0])
        if not is_settled(row, size, changed, self.texts[1]):
            return None
        return row if row.status != "ok" or self.packer.has(row.key) else None


def _state(path: Path) -> tuple[int, int]:
    """Size, and when a file or a folder's files were changed; zeros where there is none."""
    try:
        found = [path.stat(), *(one.stat() for one in _frames(path))]
    except (OSError, ValueError):
        return 0, 0
    return sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)


def _digest(path: Path) -> str:
    """The SHA-256 of a file, or of all in a folder of frames.

    Nothing where it cannot be read, which the gate then explains.
    """
    try:
        if path.is_dir():
            names = {one.name: _digest(one) for one in _frames(path)}
            return hashlib.sha256(json.dumps(names).encode()).hexdigest()
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for forever
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def _frames(path: Path) -> list[Path]:
    """What a folder of frames holds; nothing for a file."""
    return sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else []


def write_manifests(
    name: str, clips: Sequence[Clip], rows: dict[Path, Row], store: Path
) -> list[Found]:
    """Writes NAME (.jsonl or .parquet) and what is bad; returns what became of every clip.

    Bad clips stay in the manifest, under a path that gives the reason when it is opened: a test
    set keeps its size, and nobody opens in training what has crashed a decoder here.
    """
    bad_path = store / f"{Path(name).stem}{BAD}"
    found, bad = [], []
    for clip in _with_sources(clips):
        row = rows[clip.path]
        status, detail = row.status, row.detail
        packed = clip._replace(path=store / INDEX / row.key)
        if status == "ok":
            status, detail = _segment(packed)
        if status != "ok":
            about = {"video_id": clip.video_id, "path": str(clip.path)}
            bad.append(about | {"status": status, "detail": detail})
            packed = clip._replace(path=bad_path / str(len(bad)))
        found.append(Found(packed, status, detail))
    with finished(bad_path) as file:
        for line in bad:
            file.write(json.dumps(line).encode() + b"\n")
    write_manifest(store / name, [one.clip for one in found])
    return found


def _segment(clip: Clip) -> tuple[str, str]:
    """Whether a packed clip's segment holds a frame."""
    if clip.start is None and clip.end is None:
        return "ok", ""
    video = Packed(clip.path)
    try:
        frame_range(video.timestamps, clip.start, clip.end)
    except VideoError as error:
        source = video.head["source"]
        if clip.start is not None and clip.start > source["end"]:
            return "segment outside", str(error)
        return "segment between frames", "no kept frame is shown in it: pack with a higher --rate"
    return "ok", ""


def _with_sources(clips: Sequence[Clip]) -> list[Clip]:
    """Clips that share a file get its name as their source, by which they are dealt into splits.

    So the splits of a manifest without any are those of the files.
    """
    shared = collections.Counter(clip.path for clip in clips)
    names = collections.Counter(path.name for path in shared)
    return [
        clip._replace(source=clip.path.name if names[clip.path.name] == 1 else str(clip.path))
        if clip.source is None and shared[clip.path] > 1
        else clip
        for clip in clips
    ]
