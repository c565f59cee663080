"""Class names -> sentences: the published prompt templates, one data file a data set.

Every file names its source. Beyond the CLIP paper's 27 there are `imagenet-7`, the few templates
that do as well as the 80, `actionclip`, which has templates only, and CLIP's 28 of Kinetics-700
with the class names of Kinetics-400 and -600.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from videoclip.errors import VideoclipError, nearest

FOLDER = Path(__file__).parent
PLAIN = "a photo of a {}."
"""What is used where nothing better is known (Radford et al. 2021, section 3.1.4)."""

Name = str | tuple[str, ...]
"""What prompts call a class: one name, or several that count equally."""


class Prompts(NamedTuple):
    """The prompts of a data set."""

    name: str
    source: str
    templates: tuple[str, ...]
    """Sentences with `{}` where the class name goes."""
    classes: tuple[Name, ...]
    """The class names in the order of the labels; empty where the source has none."""


@functools.cache
def names() -> tuple[str, ...]:
    """The sets that there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@functools.cache
def prompts(name: str) -> Prompts:
    """The prompts of one of `names()`. Raises VideoclipError with the nearest name."""
    if name.lower() not in names():
        raise VideoclipError(
            f"{name!r} is neither a file nor a published set of prompts; "
            f"{nearest(name.lower(), names())}"
        )
    held = json.loads((FOLDER / f"{name.lower()}.json").read_text(encoding="utf-8"))
    classes = tuple(c if isinstance(c, str) else tuple(c) for c in held.get("classes", ()))
    return Prompts(held["name"], held["source"], tuple(held["templates"]), classes)


def templates_of(given: Sequence[str]) -> tuple[str, ...]:
    """Templates as a user gives them: the name of a set, a text file, or the sentences themselves.

    Raises VideoclipError where one has no place for the class name.
    """
    found: list[str] = []
    for item in given:
        if "{" in item or (" " in item and not Path(item).is_file()):
            found.append(item)  # a sentence; without a place for the name it is refused below
        elif Path(item).is_file():
            found += lines_of(Path(item), "the templates")
        else:
            found += prompts(item).templates
    wrong = [template for template in found if template.count("{}") != 1]
    if wrong or not found:
        raise VideoclipError(
            f"a template needs one {{}} where the class name goes, as in {PLAIN!r}; "
            f"got {wrong[0] if wrong else 'none'!r}"
        )
    return tuple(found)


def lines_of(path: Path, what: str) -> list[str]:
    """The lines of a text file that say something. Raises VideoclipError that names `what`."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the beginning
    except (OSError, UnicodeDecodeError) as error:
        raise VideoclipError(
            f"{what} cannot be read: {path}: {error}; give a text file in UTF-8, one a line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
