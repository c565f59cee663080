"""Writes the tiny real videos that tests read: plain, turned, irregular, damaged or none."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

TICKS = 1000
"""Time stamps are written in milliseconds."""


def pattern(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Frames that no two are alike, and that no turn leaves as they are: uint8 (F, H, W, 3).

    The background brightens with time, a bright block in the upper left corner moves right.
    """
    pixels = np.empty((frames, height, width, 3), dtype=np.uint8)
    for number in range(frames):
        pixels[number] = 20 + 180 * number // max(frames, 2)
        left = 2 * number % (width // 2)
        pixels[number, : height // 4, left : left + width // 4] = (250, 60, 10)
    return pixels


def write_video(
    path: Path,
    pixels: np.ndarray,
    *,
    codec: str = "libx264",
    seconds: Sequence[float] | None = None,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encodes (F, H, W, 3) uint8 at 25 frames a second, or shown at these seconds."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pixel_format
        if seconds is not None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for number, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if seconds is not None:
                frame.time_base = Fraction(1, TICKS)
                frame.pts = round(seconds[number] * TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, cover: np.ndarray | None = None) -> Path:
    """Half a second of silence without a moving picture; a song may have a cover (H, W, 3)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        if cover is not None:
            still = container.add_stream("mjpeg", rate=1)
            still.height, still.width = cover.shape[:2]
            still.pix_fmt, still.disposition = "yuvj420p", Disposition.attached_pic
        for start in range(0, 8000, 1000):
            silence = np.zeros((1, 1000), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if cover is not None:
            container.mux(still.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            container.mux(still.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Makes an .mp4 say that it is to be shown turned clockwise, as a phone's camera does."""
    corner = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one, sixteenth = 1 << 16, 1 << 30
    a, b, c, d = (value * one for value in corner)
    data = bytearray(path.read_bytes())
    # In version 0 of a track header, 40 bytes lie between the version and the display matrix.
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, sixteenth)
    path.write_bytes(data)
    return path


def hide_start(path: Path, frames: int) -> Path:
    """Makes the edit list of an .mp4 begin so many frames later; they remain in the file."""
    data = bytearray(path.read_bytes())
    media_header = data.index(b"mdhd") + 4
    (ticks,) = struct.unpack_from(">I", data, media_header + 12)
    media_time = data.index(b"elst") + 4 + 12
    (old,) = struct.unpack_from(">i", data, media_time)
    struct.pack_into(">i", data, media_time, old + frames * ticks // 25)
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoil(path: Path, start: float, length: int = 64) -> Path:
    """Overwrites some bytes with noise, at this share of the file."""
    data = bytearray(path.read_bytes())
    place = int(len(data) * start)
    noise = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8)
    data[place : place + length] = noise.tobytes()
    path.write_bytes(data)
    return path


def decode(path: Path) -> np.ndarray:
    """Every frame in order, by the plainest use of PyAV and not turned: uint8 (F, H, W, 3)."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
