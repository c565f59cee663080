"""Errors meant for users: one message that names the thing and the next step, no traceback."""

import contextlib
from collections.abc import Iterator


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


class ManifestError(VideoclipError):
    """A manifest that cannot be used; the message lists what is wrong, with line numbers."""


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
