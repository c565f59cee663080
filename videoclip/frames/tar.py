"""Members of a plain tar: the same name and bytes, the same archive, whoever writes it and when."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
END = tarfile.NUL * (2 * BLOCK)
"""The mark at the end of an archive."""
LARGEST = 8**11 - 1
"""Bytes of a member whose size a plain header can name."""


def header(name: str, size: int) -> bytes:
    """What stands before a member: one block, where the name is short and the size is usual."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What stands behind a member, so that the next one begins with a block."""
    return tarfile.NUL * (-size % BLOCK)


def member(name: str, content: bytes) -> bytes:
    """A whole member."""
    return header(name, len(content)) + content + padding(len(content))


@contextmanager
def finished(path: Path, part: Path | None = None) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on the disk."""
    part = part or path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
