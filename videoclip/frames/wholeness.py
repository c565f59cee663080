"""File -> is it as long as it says, and what does it begin with? Bytes are looked at, not decoded.

A download that broke off leaves a file that opens and plays for a while, or one that does not open
because its index, written last, is missing. Both are told apart from something else here.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

SIGNATURES = (b"RIFF", b"\x1aE\xdf\xa3", b"GIF8", b"FLV", b"OggS", b"\0\0\1\xba", b"0&\xb2u")
"""How the containers begin that are no .mp4."""
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""What an .mp4 or .mov may begin with."""


class RefusalError(Exception):
    """Why a file is not ok: its class and a sentence."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Name and end of the outer boxes of an .mp4, as they say it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + 8 <= size:
            file.seek(place)
            header = file.read(16)
            length, name = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack(">Q", header[8:])
            if length == 0:  # up to the end, wherever that is
                yield name, size
                return
            if length < 8:
                return
            place += length
            yield name, place


def has_index(path: Path) -> bool:
    """Whether an .mp4 has the box that says where its frames are."""
    return any(name == b"moov" for name, _ in boxes(path))


def promised(path: Path) -> int | None:
    """The size that a file says it has, where it is shorter; .mp4, .avi, .mkv and .ogv say so."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] in BOXES:
        end = max((end for _, end in boxes(path)), default=0)
        return end if end > size else None
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        end = 8 + struct.unpack("<I", start[4:8])[0]
        # Writers that were killed leave 0 or the largest number.
        return end if size < end < 0xFFFFFFF0 else None
    if start.startswith(b"\x1aE\xdf\xa3"):
        end = _end_of_segment(path)
        return end if end and end > size else None
    if start.startswith(b"OggS"):
        end = _end_of_pages(path)
        return end if end > size else None
    return None


def _end_of_segment(path: Path) -> int | None:
    """Where the segment of a Matroska file ends, which holds all but its header; None: unknown."""
    with path.open("rb") as file:
        start = file.read(4096)
    place = 4
    for name in (b"", b"\x18S\x80g"):
        if start[place : place + len(name)] != name or place + len(name) >= len(start):
            return None
        place += len(name)
        # The first bit that is set tells how many bytes the number has; all others 1: unknown.
        width = 9 - start[place].bit_length()
        length = int.from_bytes(start[place : place + width]) & ((1 << 7 * width) - 1)
        if width > 8 or length == (1 << 7 * width) - 1:
            return None
        place += width + length
    return place


def _end_of_pages(path: Path) -> int:
    """Where the last page of an Ogg file ends, as it says; it does not say how many there are."""
    with path.open("rb") as file:
        place = 0
        while header := file.read(27):
            if not header.startswith(b"OggS"[: len(header)]):
                break  # no page: noise, which is the decoder's business
            place += 27 if len(header) < 27 else 27 + header[26] + sum(file.read(header[26]))
            file.seek(place)
    return place


def beginning(path: Path) -> str:
    """The first words of a file that is text: a failed download often leaves a web page."""
    with path.open("rb") as file:
        text = file.read(40).decode("ascii", errors="replace")
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return f"; it begins with {text!r}" if readable and "\ufffd" not in text else ""


def unopened(path: Path, error: Exception) -> RefusalError:
    """Why a file cannot be opened: it is something else, or a part of a video."""
    with path.open("rb") as file:
        start = file.read(16)
    if size := promised(path):
        return RefusalError("truncated", f"it has {path.stat().st_size:,} bytes of {size:,}")
    if start[4:8] in BOXES and not has_index(path):
        return RefusalError("truncated", "its index is missing, which is written last")
    if start[4:8] in BOXES or start.startswith(SIGNATURES):
        return RefusalError("decode error", f"it is damaged ({reason(error)})")
    return RefusalError("not video", f"{reason(error)}{beginning(path)}")


def damage(path: Path, detail: str, kind: str = "decode error") -> RefusalError:
    """Whatever is wrong with a file that is shorter than it says: it was cut."""
    if size := promised(path):
        return RefusalError(
            "truncated", f"it has {path.stat().st_size:,} bytes of {size:,}; {detail}"
        )
    return RefusalError(kind, detail)


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, in one line."""
    return (str(getattr(error, "strerror", None) or error).splitlines() or ["no reason given"])[0]
