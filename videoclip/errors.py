"""Errors meant for users: one message that names the thing and the next step, no traceback."""


class VideoclipError(Exception):
    """Something that the user can put right; the command line prints the message alone."""


class VideoError(VideoclipError):
    """A video that cannot be read, or a part of it that holds no frames."""


class ImageError(VideoclipError):
    """A picture that cannot be read, or a set of pictures that cannot be used."""


class WeightsError(VideoclipError):
    """Weights that cannot be had, read or written; the message lists every key that is wrong."""


class ManifestError(VideoclipError):
    """A manifest that cannot be used; the message lists what is wrong, with line numbers."""
