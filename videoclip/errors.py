"""Errors meant for users: one message that names the thing and the next step, no traceback."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class VideoclipError(Exception):
    """Something that the user can put right; the command line prints the message alone."""


class VideoError(VideoclipError):
    """A video that cannot be read, or a part of it that holds no frames."""


class ImageError(VideoclipError):
    """A picture that cannot be read, or a set of pictures that cannot be used."""


class SplitError(ImageError):
    """A split that a set of pictures does not have; the message lists those it has."""


class VocabularyError(VideoclipError, ValueError):
    """Texts for weights whose vocabulary is not CLIP's: the ids would be wrong in silence."""


class WeightsError(VideoclipError):
    """Weights that cannot be had, read or written; the message lists every key that is wrong."""


class OtherProcessError(VideoclipError):
    """What another process of the same run has said already; it ends this one without a word."""


class Preempted(KeyboardInterrupt):
    """A scheduler has asked a run to end; what it has done is saved."""


class OutOfMemoryError(VideoclipError):
    """Memory ran out in a step of training, before it changed anything: the state can be saved."""


class ManifestError(VideoclipError):
    """A manifest that cannot be used; the message lists what is wrong, with line numbers."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


@contextlib.contextmanager
def explained(what: str, then: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes WeightsError: a stranger's file can raise anything."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        is_clear = isinstance(error, VideoclipError | ValueError | OSError)
        reason = str(error) if is_clear else f"{type(error).__name__}: {error}"
        raise WeightsError(f"{what}: {reason.partition(chr(10))[0]}; {then}") from error
