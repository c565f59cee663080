"""Archive -> files in a folder, and nothing else: no path outside, no link, no device, no bomb.

Data sets come as .zip and .tar files from servers that anybody may have changed. Python's own
`extractall` with its filter has been passed by before (CVE-2025-4517), so every member is looked at
here and written by ourselves.
"""

import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

LARGEST = 1 << 41
"""Bytes that an archive may unpack to."""
MEMBERS = 2_000_000
"""Files that it may hold."""
RATIO, SLACK = 20, 1 << 28
"""It may grow this many times, and by this many bytes more: videos hardly shrink when packed."""
CHUNK = 1 << 20


class ArchiveError(ValueError):
    """An archive that is refused, or damaged; the message says what it holds."""


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    """Bytes, as the archive says."""
    open: Callable[[], IO[bytes]]
    """Opens it for reading."""


def unpack(archive: Path, folder: Path, *, largest: int = LARGEST) -> list[Path]:
    """Unpacks a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz into a folder; returns the files.

    What is there with the right size is kept, so that a second call goes on where the first was
    stopped; a file gets its name when it is complete. Raises ArchiveError before anything is
    written for a member that points outside, a link, a device, two members of one name, and where
    all of it would be larger than `largest` or grow too much; while writing for a damaged member.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise ArchiveError(f"there is no archive {archive}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _write(archive, folder, list(_of_zip(archive, opened)), largest)
        with tarfile.open(archive) as opened:
            return _write(archive, folder, list(_of_tar(archive, opened, largest)), largest)
    except ArchiveError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError,
            NotImplementedError, ValueError, OSError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise ArchiveError(
            f"{archive} is no .zip or .tar that can be read, or it is damaged ({error}); get it "
            "again (a .rar needs a program of its own: unrar x)"
        ) from error


def _of_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            _inside(archive, info.filename)
            continue
        if kind not in (0, stat.S_IFREG):
            raise ArchiveError(
                f"{archive} is refused: {info.filename!r} is {_kind(kind)}, and a data set needs "
                "none; nothing was unpacked"
            )
        if info.flag_bits & 1:
            raise ArchiveError(f"{archive}: {info.filename!r} is encrypted; unpack it by hand")
        yield Member(info.filename, info.file_size, lambda info=info: opened.open(info))


def _of_tar(archive: Path, opened: tarfile.TarFile, largest: int) -> Iterator[Member]:
    total = 0
    limit = min(largest, RATIO * archive.stat().st_size + SLACK)
    for number, info in enumerate(opened, start=1):
        # Checked on the way: to reach the next member a packed archive is unpacked up to there.
        total += max(info.size, 0)
        if total > limit or number > MEMBERS:
            raise ArchiveError(_bomb(archive, total, number))
        if info.isdir():
            _inside(archive, info.name)
            continue
        if not info.isreg() or info.issparse():
            what = "a link" if info.issym() or info.islnk() else "no plain file"
            raise ArchiveError(
                f"{archive} is refused: {info.name!r} is {what}, and a data set needs none; "
                "nothing was unpacked"
            )
        yield Member(info.name, info.size, lambda info=info: opened.extractfile(info))


def _write(archive: Path, folder: Path, members: list[Member], largest: int) -> list[Path]:
    total = sum(member.size for member in members)
    packed = archive.stat().st_size
    if total > min(largest, RATIO * packed + SLACK) or len(members) > MEMBERS:
        raise ArchiveError(_bomb(archive, total, len(members)))
    places: dict[str, PurePosixPath] = {}
    for member in members:
        place = _inside(archive, member.name)
        if place == PurePosixPath(".") or _alike(place) in places:
            raise ArchiveError(
                f"{archive} is refused: {member.name!r} stands there twice; nothing was unpacked"
            )
        places[_alike(place)] = place
    for name in places:
        if f"{name}.part" in places:  # what is being written is called so
            raise ArchiveError(f"{archive} is refused: {name!r} stands there with .part, too")
        if any(str(parent) in places for parent in PurePosixPath(name).parents):
            raise ArchiveError(f"{archive} is refused: {name!r} lies in a file")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    written = [folder / place for place in places.values()]
    have = sum(m.size for m, p in zip(members, written, strict=True) if _is_there(p, m.size))
    if total - have > free:
        raise ArchiveError(
            f"{archive} unpacks to {total:,} bytes, of which {total - have:,} are missing, and "
            f"{folder} has room for {free:,}; choose another folder"
        )
    bar = tqdm(desc=f"unpacking {archive.name}", total=total, unit="B", unit_scale=True, delay=1)
    with bar:
        for member, path in zip(members, written, strict=True):
            if not _is_there(path, member.size):
                _make_folders(folder, path.parent)
                _copy(member, path)
            bar.update(member.size)
    return written


def _inside(archive: Path, name: str) -> PurePosixPath:
    """A member's place relative to the folder. Raises ArchiveError where it leads out of it."""
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    # Also what leads out on other systems only: C:x, and names that end in spaces.
    if (
        path.is_absolute()
        or "\\" in name
        or "\0" in name
        or any(part.strip() in ("..", ".", "") for part in parts)
        or any(part[1:2] == ":" for part in parts[:1])
    ):
        raise ArchiveError(
            f"{archive} is refused: {name!r} leads out of the folder; nothing was unpacked. Get it "
            "from its publisher"
        )
    return PurePosixPath(*parts)


def _alike(place: PurePosixPath) -> str:
    """Equal for names that are one file on some systems: A.mp4 and a.mp4, two forms of é."""
    return unicodedata.normalize("NFC", str(place)).casefold()


def _make_folders(folder: Path, wanted: Path) -> None:
    """Makes folders one by one. Raises ArchiveError for one that is a link: it may lead out."""
    for part in reversed([wanted, *wanted.parents]):
        if part != folder and part.is_relative_to(folder):
            if part.is_symlink():
                raise ArchiveError(f"{part} is a link and may lead out of {folder}; remove it")
            part.mkdir(exist_ok=True)


def _copy(member: Member, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # a link in its place would be followed
    if path.is_symlink():
        path.unlink()
    # Both libraries raise where a member ends too early, or is not what its checksum says.
    with member.open() as source, part.open("xb") as target:
        shutil.copyfileobj(source, target, CHUNK)
        target.flush()
        os.fsync(target.fileno())
    part.replace(path)


def _is_there(path: Path, size: int) -> bool:
    return not path.is_symlink() and path.is_file() and path.stat().st_size == size


def _kind(mode: int) -> str:
    return "a link" if mode == stat.S_IFLNK else "no plain file"


def _bomb(archive: Path, total: int, members: int) -> str:
    return (
        f"{archive} is refused: its {archive.stat().st_size:,} bytes unpack to {total:,} or more "
        f"in {members:,} files, which is no archive of videos; unpack it by hand if it is"
    )
