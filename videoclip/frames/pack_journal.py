"""What became of every file that a store was asked to pack, in SQLite: a kill loses no row.

The journal also keeps two from writing one store at once: it is opened for one alone.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from videoclip.errors import VideoclipError
from videoclip.frames.apart import TRIES

TABLE = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT, settings TEXT, bytes INTEGER, changed INTEGER, sha256 TEXT, key TEXT,
    status TEXT, detail TEXT, limits TEXT, attempts INTEGER,
    PRIMARY KEY (path, settings)
) WITHOUT ROWID
"""


class Row(NamedTuple):
    """What is known of a file under some settings."""

    path: str
    settings: str
    """A JSON text."""
    bytes: int
    changed: int
    """When the file was changed, in nanoseconds."""
    sha256: str
    """Of the file."""
    key: str
    """Of the packed video."""
    status: str
    """ok, or the class of what is wrong."""
    detail: str
    limits: str
    """Under which it was found bad; others may find otherwise. A JSON text."""
    attempts: int = 1


class Journal:
    """The rows of one store, or of one machine's share of it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path

    def find(self, path: Path, settings: str) -> Row | None:
        """The row of a file under these settings."""
        found = self.connection.execute(
            "SELECT * FROM files WHERE path = ? AND settings = ?", (name_of(path), settings)
        ).fetchone()
        return Row(*found) if found else None

    def keep(self, row: Row) -> None:
        """Writes a row; counts how often the file was tried under these settings."""
        before = self.find(Path(row.path), row.settings)
        row = row._replace(attempts=before.attempts + 1 if before else 1)
        with explained(self.path):
            self.connection.execute(f"INSERT OR REPLACE INTO files VALUES ({_marks()})", row)

    def take(self, other: Path) -> None:
        """Adds what another machine's journal knows and this one does not."""
        with opened(other) as journal:
            rows = journal.connection.execute("SELECT * FROM files").fetchall()
        with explained(self.path):
            self.connection.execute("BEGIN")
            self.connection.executemany(f"INSERT OR IGNORE INTO files VALUES ({_marks()})", rows)
            self.connection.execute("COMMIT")


def name_of(path: Path) -> str:
    """A path as the journal has it: names of files may hold what no text does."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def is_settled(row: Row | None, size: int, changed: int, limits: str) -> bool:
    """Whether a row still says what is to be known of a file of this size and time."""
    if row is None or (row.bytes, row.changed) != (size, changed):
        return False
    return row.status == "ok" or (row.status not in TRIES and row.limits == limits)


def _marks() -> str:
    return ", ".join("?" * len(Row._fields))


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """The journal in this file. Raises VideoclipError where another process has it."""
    with explained(path):
        connection = sqlite3.connect(
            path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
    try:
        with explained(path):
            # Exclusive: nobody else writes, and no shared memory, which network disks lack.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(TABLE)
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        yield Journal(connection, path)
    finally:
        connection.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite says, as an error for users."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text:
            raise VideoclipError(
                f"{path} is in use: another process is packing into {path.parent}; wait for it"
            ) from error
        if "full" in text or "disk I/O" in text:
            raise VideoclipError(
                f"cannot write {path} ({text}); free some space and run the same command again, "
                "which does only the rest"
            ) from error
        raise VideoclipError(
            f"{path} cannot be used ({text}); delete it and run the same command again: what is "
            "packed is found again by its content"
        ) from error
