"""A folder -> the pictures in it, in the order of the numbers in their names."""

import re
from pathlib import Path

from videoclip.errors import VideoError
from videoclip.frames.allowed import PICTURES

NUMBER = re.compile(r"\d+")
NAMED = 5
"""Missing numbers that an error names."""


def numbered(folder: Path) -> list[Path]:
    """The pictures of a folder by their last number.

    Raises VideoError where there is none, or where numbers are missing or occur twice.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES:
            continue
        numbers = NUMBER.findall(path.stem)
        if not numbers:
            raise VideoError(f"{path} has no number in its name; frames of a folder are numbered")
        other = found.setdefault(int(numbers[-1]), path)
        if other != path:
            raise VideoError(f"{path} and {other.name} have the same number; remove one of them")
    if not found:
        raise VideoError(
            f"{folder} is not a file, and a folder without pictures; correct the path in the "
            "manifest"
        )
    first, last = min(found), max(found)
    if len(found) <= last - first:
        missing = [n for n in range(first, last + 1) if n not in found] if last < 10**7 else []
        named = ", ".join(str(number) for number in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise VideoError(
            f"{folder} lacks the frames {named}{more} of {first} to {last}; extract them again"
        )
    return [found[number] for number in sorted(found)]
