"""File -> frames by other libraries, for the files of which they give exactly those asked for."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import decord
import numpy as np

from videoclip.errors import VideoclipError, VideoError
from videoclip.frames.container import Source
from videoclip.frames.plan import Plan
from videoclip.frames.whole import scaled

EXACT = ("yuv420p", "yuvj420p", "yuv444p")
"""Pixel formats that all turn into the same colors."""

decord.logging.set_level(decord.logging.QUIET)


def _is_plain(source: Source, found: Plan) -> bool:
    """Whether others give the frames of a full decode, as far as was seen.

    They count what an edit list hides, and some of their frames are others in open groups of
    pictures, in streams that are refreshed bit by bit, in interlaced ones, and with 10 bit.
    """
    context = source.stream.codec_context
    even = context.width % 2 == 0 == context.height % 2
    plain = context.pix_fmt in EXACT and even and context.field_order <= 1
    return plain and found.all_closed and len(found.shown) == len(found.stamps)


def decord_reader(source: Source, found: Plan) -> "Decord | None":
    """A reader of decord; None where it cannot open the file or gives other frames.

    decord finds a frame by its time stamp, without which (H.264 in AVI) it gives others than those
    asked for, without an error; so it does in some HEVC files. It opens only containers with a
    signature at the very start: a transport stream after a playlist's first line is a playlist to
    its older FFmpeg, which then opens the files that it names.
    """
    context = source.stream.codec_context
    # It refuses some frames narrower than 80 pixels, 16, 24, 48 and 72 for example.
    wide = min(context.width, context.height) >= 80
    readable = source.format in ("mov", "matroska") and source.codec == "h264" and wide
    if not (readable and _is_plain(source, found)):
        return None
    try:
        reader = decord.VideoReader(str(source.path.absolute()), num_threads=1)
        shown = reader.get_frame_timestamp(list(range(len(reader))))[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError):
        return None
    # A missing time stamp is a huge negative number here.
    usable = np.isfinite(shown).all() and shown[0] >= 0 and (np.diff(shown) > 0).all()
    return Decord(source, reader, shown) if usable and len(shown) == len(found.shown) else None


class Decord:
    """decord: https://github.com/dmlc/decord."""

    def __init__(self, source: Source, reader: decord.VideoReader, shown: np.ndarray) -> None:
        self.path, self.rate, self.reader = source.path, source.rate, reader
        self.timestamps = shown - shown[:1]

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices."""
        wanted = np.asarray(indices)
        try:
            return scaled(self.reader.get_batch(wanted).asnumpy(), short_side)
        except (decord.DECORDError, RuntimeError) as error:
            raise _damage(self.path, wanted, len(self.reader)) from error


def torchcodec_reader(source: Source, found: Plan) -> "TorchCodec | None":
    """A reader of torchcodec; None where it cannot open the file or gives other frames.

    Raises VideoclipError where torchcodec is not installed.
    """
    decoders = _torchcodec()
    # In a transport stream it misses the frames before the place where a search ends.
    if source.format not in ("mov", "matroska", "avi", "flv") or not _is_plain(source, found):
        return None
    try:
        reader = decoders.VideoDecoder(
            str(source.path.absolute()),
            stream_index=source.stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
        )
    except (RuntimeError, ValueError):
        return None
    seconds = found.stamps[found.shown] * float(source.stream.time_base)
    return TorchCodec(source, reader, seconds) if len(reader) == len(found.shown) else None


class TorchCodec:
    """torchcodec: https://github.com/pytorch/torchcodec."""

    def __init__(self, source: Source, reader: Any, shown: np.ndarray) -> None:
        self.path, self.rate, self.reader = source.path, source.rate, reader
        self.timestamps = shown - shown[:1]

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices."""
        wanted = np.asarray(indices)
        try:
            pixels = self.reader.get_frames_at(wanted.tolist()).data.numpy()
        except RuntimeError as error:
            raise _damage(self.path, wanted, len(self.reader)) from error
        return scaled(pixels, short_side)


def _torchcodec() -> ModuleType:
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:
        raise VideoclipError(
            "torchcodec cannot be imported "
            f"({str(error).strip().splitlines()[0]}); pip install 'videoclip[torchcodec]' and "
            "FFmpeg's shared libraries, or let the reader be auto"
        ) from error
    return decoders


def _damage(path: Path, wanted: np.ndarray, count: int) -> VideoError:
    return VideoError(
        f"{path} is damaged: frames {wanted.min()} to {wanted.max()} of {count} cannot be decoded; "
        "fetch it again or remove it"
    )
