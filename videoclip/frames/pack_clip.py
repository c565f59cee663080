"""One video -> one piece of a store: the frames that are kept, as members of a tar.

`videoclip.frames.pack` runs this as a program and talks to it over pipes, as `check` does with the
gate, which every file must pass first. It imports next to nothing, so that starting it is cheap.
A piece depends on the bytes of the video and on the settings, and on nothing else.
"""

import hashlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from PIL import Image

from videoclip.errors import VideoclipError, VideoError
from videoclip.frames import tar
from videoclip.frames.decode import Video, open_video
from videoclip.frames.gate import PICTURES, Limits, confine, probe
from videoclip.frames.packed import CLOCK

Format = Literal["jpeg", "h264", "raw"]
VERSION = 1
"""Of the layout of a piece; another one makes other keys."""
QUALITY = {"jpeg": 90, "h264": 16, "raw": 0}
STEP = 2
"""By so much the quality of a JPEG is raised at a time."""
PIXELS = 256_000_000
"""So many bytes of frames are decoded at a time."""
NOW = 1e-4
"""Seconds by which a frame may be shown late and still count as shown: clocks of containers are
rounded."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What is kept of a video, and how."""

    short_side: int = 224
    """Pixels of the short side. Smaller videos keep theirs; nothing is enlarged."""
    rate: float | None = None
    """Frames a second: those being shown at 0, 1 / rate, 2 / rate ... seconds, each once."""
    frames: int | None = None
    """So many frames of each video, from the middles of equal parts, in place of a rate."""
    all: bool = False
    """Every frame, in place of a rate. With none of the three: 4 a second."""
    format: Format = "jpeg"
    """jpeg: a picture a frame. h264: a short video, a third of the size, whose frames cost more.
    raw: uint8, ten times the size, whose frames cost next to nothing."""
    quality: int | None = None
    """Of JPEG, 1 to 100 (None: 90), or the rate factor of H.264, 0 to 51, less is better (16)."""
    psnr: float = 38.0
    """Decibels that every JPEG keeps of its frame: where the quality does not reach them it is
    raised, for that frame. 0: never raised."""
    gop: int = 12
    """Frames from one key frame of H.264 to the next; 1 is quickest to read, and largest."""

    def __post_init__(self) -> None:
        """Raises VideoclipError for settings that keep nothing or contradict each other."""
        if (self.rate is not None) + (self.frames is not None) + self.all > 1:
            raise VideoclipError("give one of --rate, --frames and --all")
        highest = {"jpeg": (1, 100), "h264": (0, 51)}.get(self.format, (0, 100))
        for name, value, (low, high) in (
            ("short-side", self.short_side, (8, 8192)),
            ("rate", self.rate, (1e-3, 1e3)),
            ("frames", self.frames, (1, 1_000_000)),
            ("quality", self.quality, highest),
            ("psnr", self.psnr, (0, 60)),
            ("gop", self.gop, (1, 1000)),
        ):
            if value is not None and not low <= value <= high:
                raise VideoclipError(f"--{name} is {value}; give {low:g} to {high:g}")

    @property
    def record(self) -> dict[str, Any]:
        """What decides the bytes of a piece, and nothing that does not."""
        kept: dict[str, Any] = {"version": VERSION, "format": self.format}
        kept["short_side"] = self.short_side
        if self.frames is not None:
            kept["frames"] = self.frames
        elif not self.all:
            kept["rate"] = float(self.rate or 4)
        quality = QUALITY[self.format] if self.quality is None else self.quality
        of_format = {
            "jpeg": {"quality": quality, "psnr": float(self.psnr)},
            "h264": {"quality": quality, "gop": self.gop},
            "raw": {},
        }
        return kept | of_format[self.format]


def key_of(sha256: str, settings: dict[str, Any]) -> str:
    """The name of a piece: a video's bytes and the settings (`Packing.record`) decide it."""
    text = json.dumps([sha256, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def chosen(timestamps: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Which frames are kept: int64, increasing, each once."""
    count = len(timestamps)
    if (wanted := settings.get("frames")) and wanted < count:
        # `sampling.uniform_indices`, in integers.
        return (2 * np.arange(wanted) * count + count - wanted) // (2 * wanted)
    if not (a_second := settings.get("rate")):
        return np.arange(count)
    moments = np.arange(np.floor((timestamps[-1] + NOW) * a_second) + 1) / a_second
    return np.unique(np.searchsorted(timestamps, moments + NOW, side="right") - 1)


def kept_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of what is kept, as torchvision's resize has them; never larger."""
    short, long = sorted((height, width))
    if short <= short_side:
        return height, width
    long = int(short_side * long / short)
    return (short_side, long) if height <= width else (long, short_side)


def pack_clip(
    path: Path,
    piece: Path,
    sha256: str,
    settings: dict[str, Any],
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Writes a piece; returns its head.

    The members are KEY.000000.jpg ..., or KEY.mp4 or KEY.npy, and last KEY.json, the head, which
    says when each frame is shown. Raises VideoError where the video cannot be read.
    """
    key = key_of(sha256, settings)
    with open_video(path) as video:
        indices = chosen(video.timestamps, settings)
        rate = video.rate
        if "frames" in settings:
            rate *= len(indices) / len(video.timestamps)
        head = {
            "key": key,
            "sha256": sha256,
            "settings": settings,
            "rate": min(rate, settings.get("rate", rate)),
            "timestamps": video.timestamps[indices].tolist(),
            "source": {"frames": len(video.timestamps), "rate": video.rate,
                       "end": float(video.timestamps[-1])},
        }  # fmt: skip
        frames = _scaled(video, indices, settings["short_side"], head, alive)
        part = piece.with_name(f"{piece.name}.{os.urandom(8).hex()}.part")
        with tar.finished(piece, part) as file:
            head |= WRITERS[settings["format"]](file, key, frames, len(indices), settings)
            file.write(tar.member(f"{key}.json", json.dumps(head).encode()))
    return head


def _scaled(
    video: Video,
    indices: np.ndarray,
    short_side: int,
    head: dict[str, Any],
    alive: Callable[[], None],
) -> Iterator[np.ndarray]:
    """The frames, (h, w, 3) uint8, decoded some at a time; tells the head their size."""
    place, many = 0, 1
    while place < len(indices):
        read = video.read(indices[place : place + many])
        place += many
        many = int(np.clip(PIXELS // max(1, read[0].size), 1, 256))
        height, width = kept_size(*read.shape[1:3], short_side)
        head |= {"height": height, "width": width}
        head["source"] |= {"height": read.shape[1], "width": read.shape[2]}
        for frame in read:
            if frame.shape[:2] != (height, width):
                picture = Image.fromarray(frame)
                frame = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
            yield frame
        alive()


def _write_jpeg(
    file: BinaryIO, key: str, frames: Iterator[np.ndarray], count: int, settings: dict[str, Any]
) -> dict[str, Any]:
    sizes, least = [], np.inf
    for number, frame in enumerate(frames):
        content, found = _jpeg(frame, settings["quality"], settings["psnr"])
        file.write(tar.member(f"{key}.{number:06d}.jpg", content))
        sizes.append(len(content))
        least = min(least, found)
    return {"sizes": sizes, "psnr": round(float(least), 2) if np.isfinite(least) else None}


def _jpeg(frame: np.ndarray, quality: int, wanted: float) -> tuple[bytes, float]:
    """A JPEG and its PSNR. First its colors get their full resolution, then the quality rises."""
    picture = Image.fromarray(frame)
    ways = [(quality, "4:2:0"), *((q, "4:4:4") for q in range(quality, 101, STEP)), (100, "4:4:4")]
    content, found = b"", 0.0
    for tried, colors in ways:
        made = io.BytesIO()
        picture.save(made, "JPEG", quality=tried, subsampling=colors)
        content = made.getvalue()
        with Image.open(made) as shown:
            found = psnr(frame, np.asarray(shown))
        if found >= wanted:
            break
    return content, found


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels, in decibels; infinite where they are equal."""
    error = np.subtract(one, other, dtype=np.float32).ravel()
    mean = float(error @ error) / error.size
    return 10 * float(np.log10(255**2 / mean)) if mean else float("inf")


def _write_h264(
    file: BinaryIO, key: str, frames: Iterator[np.ndarray], count: int, settings: dict[str, Any]
) -> dict[str, Any]:
    options = {
        "crf": str(settings["quality"]), "g": str(settings["gop"]), "bf": "0",
        "sc_threshold": "0", "threads": "1",
    }  # fmt: skip
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLOCK, options=options)
        for number, frame in enumerate(frames):
            # Its sides are even: the last row or column is repeated, and cut off when it is read.
            more = ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0))
            frame = np.pad(frame, more, mode="edge")
            if not number:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            made = av.VideoFrame.from_ndarray(frame, format="rgb24")
            made.pts, made.time_base = number, Fraction(1, CLOCK)
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    file.write(tar.member(f"{key}.mp4", content.getvalue()))
    return {"sizes": [len(content.getvalue())]}


def _write_raw(
    file: BinaryIO, key: str, frames: Iterator[np.ndarray], count: int, settings: dict[str, Any]
) -> dict[str, Any]:
    size, shape = 0, None
    for frame in frames:
        if shape is None:
            shape = io.BytesIO()
            about = {"descr": "|u1", "fortran_order": False, "shape": (count, *frame.shape)}
            np.lib.format.write_array_header_1_0(shape, about)
            size = len(shape.getvalue()) + count * frame.size
            if size > tar.LARGEST:
                raise VideoError(
                    f"its frames are {size:,} bytes; pack fewer of them (--rate), or as JPEG"
                )
            file.write(tar.header(f"{key}.npy", size) + shape.getvalue())
        file.write(frame.tobytes())
    file.write(tar.padding(size))
    return {"sizes": [size]}


WRITERS = {"jpeg": _write_jpeg, "h264": _write_h264, "raw": _write_raw}


def main() -> None:
    """Answers each [path, piece, sha256, settings], a line of JSON, with a line of JSON."""
    limits = Limits(**json.loads(sys.argv[1]))
    answers = confine(limits)

    def alive() -> None:
        # Where the one who asked is dead, the alarm ends this process, also inside a decoder, and
        # so does the pipe, which nobody reads.
        signal.alarm(int(limits.timeout) + 10)
        answers.write("{}\n")
        answers.flush()

    alive()
    for line in sys.stdin:
        signal.alarm(int(limits.timeout) + 10)
        path, piece, sha256, settings = json.loads(line)
        found = _probed(Path(path), limits)
        if found["kind"] == "ok" and sha256:
            found |= _packed(Path(path), Path(piece), sha256, settings, alive)
        signal.alarm(0)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _probed(path: Path, limits: Limits) -> dict[str, Any]:
    """What the gate says of a file, or of the pictures of a folder of frames."""
    if not path.is_dir():
        return probe(path, limits)
    for picture in sorted(path.iterdir()):
        if picture.suffix.lower() in PICTURES:
            found = probe(picture, limits)
            if found["kind"] != "ok":
                return found | {"detail": f"{picture.name}: {found['detail']}"}
    return {"kind": "ok", "detail": ""}


def _packed(
    path: Path, piece: Path, sha256: str, settings: dict[str, Any], alive: Callable[[], None]
) -> dict[str, Any]:
    try:
        pack_clip(path, piece, sha256, settings, alive)
        return {}
    except VideoError as error:
        return {"kind": "decode error", "detail": str(error)}
    except MemoryError:
        return {"kind": "too large", "detail": "decoding it needs more memory than allowed"}
    except BrokenPipeError:
        raise
    except OSError as error:  # of the store: what is wrong with the video is a VideoError
        return {"kind": "no space", "detail": f"{error.strerror or error}"}


if __name__ == "__main__":
    main()
