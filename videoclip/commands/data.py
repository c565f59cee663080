"""`videoclip data TASK ...`: finds the task."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from videoclip.errors import VideoclipError

TASKS = {
    "sets": "the data sets that can be prepared, with licenses and download pages",
    "fetch": "download what a data set's publisher lets anybody have, and verify it",
    "unpack": "unpack an archive without trusting it",
    "prepare": "turn a data set's own annotation files into manifests, and report what is wrong",
    "check": "try every video of a manifest or folder in a process of its own, and classify it",
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
        close = get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(TASKS)}"
        raise VideoclipError(f"no task is named {task!r}; {hint}")
    import_module(f"videoclip.commands.data_{task}").main(rest)
