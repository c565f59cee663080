"""Pieces -> shards and their index: which piece stands where depends on their order alone."""

import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.frames import tar
from videoclip.frames.packed import INDEX, SHARDS, shard_path

PIECES = "pieces"
"""The folder of what is packed and stands in no shard yet."""
COLUMNS = pa.schema(
    {"key": pa.string(), "shard": pa.int32(), "offset": pa.int64(), "head": pa.int64(),
     "size": pa.int64()}
)  # fmt: skip
Place = tuple[str, int, int, int, int]
"""A row of the index: key, number of the shard, and in it where the piece begins, where the content
of its KEY.json does, and the size of that."""


def piece_path(store: Path, key: str) -> Path:
    """Where a piece waits for its shard."""
    return store / PIECES / f"{key}.tar"


def places(store: Path) -> list[Place]:
    """The rows of the index whose shards are there.

    A shard that is not named in the index was cut off by a kill before that, and is made again;
    where there is no index at all the shards themselves are asked.
    """
    path = store / INDEX
    if not path.is_file():
        return _asked(sorted((store / SHARDS).glob("*.tar")))
    try:
        table = pq.read_table(path)
        rows = list(zip(*(table.column(name).to_pylist() for name in COLUMNS.names), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise VideoclipError(
            f"{path} cannot be read ({error}); delete it and run the same command again: the "
            "shards say what they hold"
        ) from error
    ends: dict[int, int] = {}
    for _, shard, _, head, size in rows:
        ends[shard] = max(ends.get(shard, 0), head + size)
    sizes = {n: p.stat().st_size if (p := shard_path(store, n)).is_file() else 0 for n in ends}
    whole = {n for n, end in ends.items() if sizes[n] == end + -end % tar.BLOCK + len(tar.END)}
    return [row for row in rows if row[1] in whole]


def assemble(store: Path, keys: Iterable[str], shard_bytes: int) -> list[Place]:
    """Moves the pieces of these keys into shards, in their order; returns the whole index.

    What stands in a shard already stays there, and no shard is changed. Raises VideoclipError where
    the disk is full or a piece is damaged: then the store is as complete as it was.
    """
    rows = places(store)
    known = {row[0] for row in rows}
    waiting = [key for key in dict.fromkeys(keys) if key not in known]
    number = max((row[1] for row in rows), default=-1)
    bar = tqdm(desc="writing shards", total=len(waiting), unit="clip", delay=1)
    try:
        (store / SHARDS).mkdir(exist_ok=True)
        _write_index(store, rows)
        _clear(store, rows)  # a run was killed before it came to that
        while waiting:
            number += 1
            chosen = _fitting((piece_path(store, key) for key in waiting), shard_bytes)
            rows += _write_shard(store, number, waiting[: len(chosen)])
            _write_index(store, rows)
            for piece in chosen:
                piece.unlink()
            waiting = waiting[len(chosen) :]
            bar.update(len(chosen))
        _clear(store, rows)  # a worker may outlive a run that was killed
    except OSError as error:
        raise VideoclipError(
            f"cannot write into {store} ({error.strerror or error}); free some space, up to "
            f"{2 * shard_bytes:,} bytes, and run the same command again: nothing is lost"
        ) from error
    finally:
        bar.close()
    return rows


def _clear(store: Path, rows: Sequence[Place]) -> None:
    """Removes the pieces that stand in a shard."""
    known = {row[0] for row in rows}
    for piece in (store / PIECES).glob("*.tar"):
        if piece.stem in known:
            piece.unlink()


def _fitting(pieces: Iterable[Path], shard_bytes: int) -> list[Path]:
    """As many from the front as a shard holds, and at least one."""
    chosen, size = [], 0
    for piece in pieces:
        size += piece.stat().st_size
        if chosen and size > shard_bytes:
            break
        chosen.append(piece)
    return chosen


def _write_shard(store: Path, number: int, keys: Sequence[str]) -> list[Place]:
    rows: list[Place] = []
    with tar.finished(shard_path(store, number)) as file:
        for key in keys:
            piece, begin = piece_path(store, key), file.tell()
            found = _members(piece)
            if [row[0] for row in found] != [key]:
                piece.unlink()
                raise VideoclipError(
                    f"{piece} was damaged and is deleted; run the same command again, which "
                    "packs its video again"
                )
            rows.append((key, number, begin, begin + found[0][2], found[0][3]))
            with piece.open("rb") as content:
                shutil.copyfileobj(content, file, 1 << 20)
        file.write(tar.END)
    return rows


def _write_index(store: Path, rows: Sequence[Place]) -> None:
    """Always the same bytes for the same rows, whatever order they came in."""
    ordered = sorted(rows, key=lambda row: row[1:3])
    columns = dict(zip(COLUMNS.names, zip(*ordered, strict=True), strict=True)) if ordered else {}
    table = pa.table({name: columns.get(name, ()) for name in COLUMNS.names}, schema=COLUMNS)
    with tar.finished(store / INDEX) as file:
        pq.write_table(table, file)


def _members(path: Path) -> list[tuple[str, int, int, int]]:
    """The samples of a tar: key, begin, and place and size of the head. Without the damaged."""
    found: list[tuple[str, int, int, int]] = []
    begin, names = 0, set()
    try:
        with tarfile.open(path, "r:") as members:
            size = path.stat().st_size
            for member in members:
                key, _, end = member.name.partition(".")
                names.add(key)
                after = member.offset_data + member.size
                if end == "json" and names == {key} and after + -after % tar.BLOCK <= size:
                    found.append((key, begin, member.offset_data, member.size))
                    begin, names = after + -after % tar.BLOCK, set()
    except (tarfile.TarError, OSError):
        return found
    return found


def _asked(shards: Sequence[Path]) -> list[Place]:
    return [
        (key, int(shard.stem), begin, head, size)
        for shard in shards
        for key, begin, head, size in _members(shard)
    ]
