"""A clip of a packed store -> uint8 frames: looked up, and nothing to decode but pictures.

A store is a folder made by `videoclip data pack`: tar shards, and `index.parquet`, which says where
in them each packed video stands. A packed video's path is `STORE/index.parquet/KEY`, and one that
could not be packed has `STORE/NAME.bad.jsonl/NUMBER`, the line that says why: so a manifest's paths
say all that there is to know, and `decode.open_video` opens them like files.
"""

import functools
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from videoclip.errors import VideoError
from videoclip.frames import tar
from videoclip.frames.whole import scaled

INDEX = "index.parquet"
BAD = ".bad.jsonl"
SHARDS = "shards"
CLOCK = 25
"""Frames a second of a packed H.264 clip, for its container; the true seconds are in the head."""
OPEN = 64
"""Shards that are kept open by a process; each takes a file descriptor."""


class Entry(NamedTuple):
    """Where a packed video stands."""

    shard: Path
    offset: int
    """Of its first member's header."""
    head: int
    """Of the content of its last member, KEY.json."""
    size: int
    """Bytes of KEY.json."""


def is_packed(path: Path) -> bool:
    """Whether a path names a packed video, or one that could not be packed."""
    return path.parent.name == INDEX or path.parent.name.endswith(BAD)


def shard_path(store: Path, number: int) -> Path:
    """Where a shard of a store is."""
    return store / SHARDS / f"{number:06d}.tar"


class Packed:
    """An open packed video, as `decode.Video`."""

    def __init__(self, path: Path) -> None:
        """Raises VideoError where it was not packed, or its store is damaged."""
        if path.parent.name.endswith(BAD):
            raise VideoError(_reason(path))
        self.path = path
        entry = _entry(path)
        self.offset, self.head_at = entry.offset, entry.head
        self.file = _open(entry.shard)
        try:
            self.head = json.loads(self._bytes(entry.head, entry.size))
            if self.head["key"] != path.name:
                raise ValueError(f"it holds {self.head['key']}")
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        self.timestamps = np.array(self.head["timestamps"])
        self.rate: float = self.head["rate"]

    @property
    def short_side(self) -> int:
        """Of the packed frames, in pixels."""
        return min(self.head["height"], self.head["width"])

    @property
    def source_short_side(self) -> int:
        """Of the file's frames."""
        return min(self.head["source"]["height"], self.head["source"]["width"])

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices, uint8 (len(indices), H, W, 3); scaled where asked for."""
        wanted = np.asarray(indices)
        if wanted.size and not -1 < wanted.min() <= wanted.max() < len(self.timestamps):
            raise IndexError(
                f"{self.path} has {len(self.timestamps)} frames, not {wanted.max()} or "
                f"{wanted.min()}"
            )
        shape = (len(wanted), self.head["height"], self.head["width"], 3)
        pixels = np.empty(shape, dtype=np.uint8)
        try:
            READERS[self.head["settings"]["format"]](self, wanted, pixels)
        except (RuntimeError, ValueError, KeyError, OSError) as error:  # and FFmpeg's are either
            raise self._damaged(error) from error
        return scaled(pixels, short_side)

    def _jpeg(self, wanted: np.ndarray, pixels: np.ndarray) -> None:
        decode = _jpeg_decoder()
        sizes = np.array(self.head["sizes"])
        blocks = tar.BLOCK + -(-sizes // tar.BLOCK) * tar.BLOCK
        starts = self.offset + tar.BLOCK + np.cumsum(blocks) - blocks
        for place, index in enumerate(wanted.tolist()):
            pixels[place] = decode(self._bytes(int(starts[index]), int(sizes[index])))

    def _h264(self, wanted: np.ndarray, pixels: np.ndarray) -> None:
        content = self._bytes(self.offset + tar.BLOCK, self.head["sizes"][0])
        gop = self.head["settings"]["gop"]
        height, width = pixels.shape[1:3]
        with av.open(io.BytesIO(content), format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            tick = stream.time_base * CLOCK
            position, frames = len(self.timestamps), None
            for index in np.unique(wanted).tolist():
                key = index // gop * gop
                if frames is None or position > index or position < key:
                    container.seek(round(key / tick), stream=stream)
                    frames = container.decode(stream)
                for frame in frames:
                    position = round(frame.pts * tick) + 1
                    if position > index:
                        break
                else:
                    raise ValueError(f"frame {index} is not in it")
                pixels[wanted == index] = frame.to_ndarray(format="rgb24")[:height, :width]

    def _raw(self, wanted: np.ndarray, pixels: np.ndarray) -> None:
        one = self.head["height"] * self.head["width"] * 3
        first = self.offset + tar.BLOCK + self.head["sizes"][0] - one * len(self.timestamps)
        for place, index in enumerate(wanted.tolist()):
            content = self._bytes(first + index * one, one)
            pixels[place] = np.frombuffer(content, dtype=np.uint8).reshape(pixels.shape[1:])

    def _bytes(self, offset: int, size: int) -> bytearray:
        content = bytearray(size)
        if os.preadv(self.file.number, [content], offset) != size:
            raise self._damaged("the shard is cut off")
        return content

    def _damaged(self, error: Exception | str) -> VideoError:
        return VideoError(
            f"the packed video {self.path} cannot be read from {self.file.path} ({error}); delete "
            "that shard and run videoclip data pack again"
        )


READERS = {"jpeg": Packed._jpeg, "h264": Packed._h264, "raw": Packed._raw}


@functools.cache
def _jpeg_decoder() -> Callable[[bytearray], np.ndarray]:
    """JPEG -> (H, W, 3): torchvision's operator, or Pillow, which takes half as long again.

    Both give the same pixels. The function around the operator warns that it will go.
    """
    import torch
    import torchvision.io  # brings the operator

    if not hasattr(torch.ops.image, "decode_jpeg"):
        return decode_with_pillow
    decode, rgb = torch.ops.image.decode_jpeg, torchvision.io.ImageReadMode.RGB.value

    def decoded(content: bytearray) -> np.ndarray:
        return decode(torch.frombuffer(content, dtype=torch.uint8), rgb).permute(1, 2, 0).numpy()

    return decoded


def decode_with_pillow(content: bytearray) -> np.ndarray:
    """JPEG -> (H, W, 3), without torch."""
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


class _Shard:
    """An open shard. Reading names the place, so that processes and threads share it."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, -1
        try:
            self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise VideoError(
                f"the shard {path} cannot be opened ({error.strerror}); run videoclip data pack "
                "again, which makes what is missing"
            ) from error

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(maxsize=OPEN)
def _open(path: Path) -> _Shard:
    return _Shard(path)


class Index(NamedTuple):
    """What `index.parquet` says, in the order of the keys."""

    keys: np.ndarray
    """(N,) 32 bytes each."""
    rows: np.ndarray
    """(N, 4) int64: shard, offset, head, size."""


def _entry(path: Path) -> Entry:
    """Where a packed video stands. Raises VideoError where that is not known."""
    index = path.parent
    try:
        status = index.stat()
    except OSError as error:
        raise VideoError(
            f"{index} is not there ({error.strerror}): the store was moved or is not complete; run "
            "videoclip data pack again"
        ) from error
    found = _index(index, status.st_mtime_ns, status.st_size)
    key = path.name.encode()
    place = int(np.searchsorted(found.keys, key))
    if place == len(found.keys) or found.keys[place] != key:
        raise VideoError(f"{index} knows no {path.name}; run videoclip data pack again")
    shard, offset, head, size = found.rows[place].tolist()
    return Entry(shard_path(index.parent, shard), offset, head, size)


@functools.lru_cache(maxsize=8)
def _index(path: Path, changed: int, size: int) -> Index:
    """The index as it is since then; a store that grows gets another one."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["key", "shard", "offset", "head", "size"])
    except (OSError, ValueError) as error:
        raise VideoError(
            f"{path} cannot be read ({error}); delete it and run videoclip data pack again"
        ) from error
    keys = np.array(table.column("key").to_pylist(), dtype="S32")
    order = np.argsort(keys)
    names = ("shard", "offset", "head", "size")
    rows = [table.column(name).to_numpy().astype(np.int64) for name in names]
    return Index(keys[order], np.stack(rows, axis=1)[order])


def _reason(path: Path) -> str:
    """Why a video was not packed."""
    try:
        line = path.parent.read_text(encoding="utf-8").splitlines()[int(path.name) - 1]
        row = json.loads(line)
        return (
            f"{row['path']} was not packed: {row['status']}: {row['detail']}; mend it and run "
            "videoclip data pack again"
        )
    except (OSError, ValueError, IndexError, KeyError):
        return f"{path}: this video was not packed; run videoclip data pack again"
