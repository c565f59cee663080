"""`videoclip evaluate [TASK] MODEL ...`: finds the task; without one it is retrieval."""

from collections.abc import Sequence
from importlib import import_module

from videoclip.errors import VideoclipError, nearest

TASKS = {
    "retrieval": "text-video retrieval on a manifest (also without a task's name)",
    "recognition": "say which action clips show, by the named protocols",
    "zero-shot": "classify labelled pictures by the names of their classes",
    "linear-probe": "fit a linear classifier on the features of labelled pictures",
    "few-shot": "the same with 1, 2, 4, 8, 16 pictures a class, and a figure",
}
HELP = "\n".join(
    [
        "usage: videoclip evaluate [TASK] MODEL [OPTIONS]",
        "",
        *(f"  {task:<13} {what}" for task, what in TASKS.items()),
        "",
        "videoclip evaluate TASK --help shows the options of a task.",
    ]
)


def main(arguments: Sequence[str]) -> None:
    """Runs the task that the first word names."""
    task, *rest = arguments or ["--help"]
    if task in ("-h", "--help"):
        print(HELP)
        return
    if task not in TASKS:
        if rest and not task.startswith("-") and not rest[0].startswith("-"):
            raise VideoclipError(f"no task is named {task!r}; {nearest(task, TASKS)}")
        task, rest = "retrieval", list(arguments)
    module = import_module(f"videoclip.commands.evaluate_{task.replace('-', '_')}")
    module.main(rest)
