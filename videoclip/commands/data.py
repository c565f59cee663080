"""`videoclip data TASK ...`: finds the task."""

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from videoclip.errors import VideoclipError, nearest

TASKS = {
    "sets": "the data sets that can be prepared, with licenses and download pages",
    "fetch": "download what a data set's publisher lets anybody have, and verify it",
    "unpack": "unpack an archive without trusting it",
    "prepare": "turn a data set's own annotation files into manifests, and report what is wrong",
    "check": "try every video of a manifest or folder in a process of its own, and classify it",
    "pack": "decode every video of a manifest once, into a store that all else reads",
}
HELP = "\n".join(
    [
        "usage: videoclip data TASK [OPTIONS]",
        "",
        *(f"  {task:<8} {what}" for task, what in TASKS.items()),
        "",
        "videoclip data TASK --help shows the options of a task; docs/data.md tells more.",
    ]
)


def main(arguments: Sequence[str]) -> None:
    """Runs the task that the first word names."""
    task, *rest = arguments or ["--help"]
    if task in ("-h", "--help"):
        print(HELP)
        return
    if task not in TASKS:
        raise VideoclipError(f"no task is named {task!r}; {nearest(task, TASKS)}")
    import_module(f"videoclip.commands.data_{task}").main(rest)


def require_above_zero(options: Any, names: Sequence[str]) -> None:
    """Raises VideoclipError that names the first of these options that is not above zero."""
    for name in names:
        if getattr(options, name) <= 0:
            raise VideoclipError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}; give more than 0"
            )


def part_of_parts(text: str) -> tuple[int, int]:
    """The two numbers of --shard i/n. Raises VideoclipError for any other text."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise VideoclipError(f"--shard is {text!r}; give i/n with i from 1 to n, such as 3/16")
    return int(found[1]), int(found[2])
