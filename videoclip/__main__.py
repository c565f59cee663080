"""The command line: `videoclip VERB ...`, also `python -m videoclip VERB ...`."""

import difflib
import sys
import time
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "pretrain": "train a CLIP on pictures with captions",
    "train": "train one row of a recipe for retrieval or recognition, and evaluate it",
    "compare": "train and evaluate one model per temporal module and seed; table, chart, page",
    "evaluate": "evaluate a model: retrieval, recognition, zero-shot, linear-probe, few-shot",
    "data": "prepare data sets, check and pack videos: sets, fetch, unpack, prepare, check, pack",
    "embed": "write the features of frames and the vectors of clips, for training and search",
    "convert": "write a model in the layout of CLIP4Clip, ActionCLIP, mmaction2 or OpenAI",
    "classify": "say which of some labels fits a picture, without training",
    "classify-video": "say which of some labels fits a video, without training",
}
PAUSE = 3.0
"""Seconds that a process waits for the one that says what went wrong."""
RESUME_ME = 75
"""The exit status of a run that a scheduler has ended: EX_TEMPFAIL of sysexits.h."""
HELP = "\n".join(
    [
        "usage: videoclip VERB [OPTIONS]",
        "",
        "CLIP with a sense of time: retrieval and recognition with swappable temporal modules.",
        "",
        *(f"  {verb:<15} {what}" for verb, what in VERBS.items()),
        "",
        "videoclip VERB --help shows the options of a verb.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status; errors meant for users are one clear message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # DeepSpeed's launcher tells every process its number, which stands in the environment as well.
    arguments = [word for word in arguments if not word.startswith("--local_rank=")]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(VERBS)}"
        print(f"videoclip: no verb is named {verb!r}; {hint}", file=sys.stderr)
        return 2
    from videoclip.errors import OtherProcessError, Preempted, VideoclipError

    try:
        import_module(f"videoclip.commands.{verb.replace('-', '_')}").main(rest)
    except OtherProcessError:
        time.sleep(PAUSE)  # a launcher ends all as soon as one ends, and the other has yet to speak
        return 1
    except VideoclipError as error:
        print(f"videoclip {verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"videoclip {verb}: {error.filename!r}: {error.strerror}", file=sys.stderr)
        return 1
    except Preempted:
        print(f"\nvideoclip {verb}: ended by a signal; start it again to go on", file=sys.stderr)
        return RESUME_ME
    except KeyboardInterrupt:
        print(f"\nvideoclip {verb}: interrupted; what is finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
