"""Training and test videos -> those that are the same: by bytes, or by what the pictures show.

A benchmark figure is worth nothing where the test clips were trained on, and ids alone don't tell:
collections from the web hold the same video under several names, and re-encoded.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

ENDS = 1 << 16
"""Bytes at either end that are compared before whole files of equal size are."""
MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in a video its pictures are taken, as shares of its duration."""
GRID = 16
"""Pictures are compared at this many pixels a side."""
CONTRAST = 4.0
"""Standard deviation in gray levels below which a picture shows nothing to compare."""
SAME = 0.985
"""Correlation of pictures, mean over the moments, from which two videos are called the same."""
LEAST = 0.95
"""And what the most different pair of pictures must still have."""
CONTAINERS = "mov,matroska,avi,gif,mpeg,mpegts,mpegvideo,flv,ogg,asf"
"""What is opened; no playlists, which would make the decoder read other files."""
CODECS = {
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2",
    "msmpeg4v3", "h263", "mjpeg", "gif", "wmv1", "wmv2", "wmv3", "vc1", "flv1", "theora", "svq3",
    "cinepak", "indeo5", "dvvideo",
}  # fmt: skip
"""What is decoded; FFmpeg has some hundred decoders more, and each is a door."""
LARGEST = 8192 * 8192
"""Pixels of a frame above which a file is not decoded."""
ROWS = 2048
"""So many training videos are compared at once."""


class Video(NamedTuple):
    """A file with its id and split."""

    video_id: str
    split: str | None
    path: Path


def same_bytes(videos: Sequence[Video]) -> list[list[Video]]:
    """Groups of files with the same content (SHA-256 of files of equal size)."""
    by_size: dict[int, list[Video]] = defaultdict(list)
    for video in videos:
        if video.path.is_file() and (size := video.path.stat().st_size):
            by_size[size].append(video)
    by_ends: dict[tuple[int, bytes], list[Video]] = defaultdict(list)
    for size, group in by_size.items():
        if len({video.path for video in group}) > 1:
            for video in group:
                by_ends[size, _ends(video.path, size)].append(video)
    suspects = [group for group in by_ends.values() if len({v.path for v in group}) > 1]
    by_content: dict[bytes, list[Video]] = defaultdict(list)
    total = sum(map(len, suspects))
    for group in tqdm(suspects, total=len(suspects), desc="equal files", disable=total < 100):
        for video in group:
            with video.path.open("rb") as file:
                by_content[hashlib.file_digest(file, "sha256").digest()].append(video)
    return [group for group in by_content.values() if len({v.path for v in group}) > 1]


def same_pictures(videos: Sequence[Video]) -> tuple[list[tuple[Video, Video, float]], list[str]]:
    """Pairs from different splits whose pictures are the same, with their likeness (up to 1).

    Where there are no splits, all pairs are compared.

    The second list says which videos could not be compared: unreadable, or without contrast. A
    fixed camera gives different clips like pictures, so a pair is a suspicion to be looked at.
    """
    usable, signatures, silent = [], [], []
    for video in tqdm(videos, desc="pictures", unit="video", disable=len(videos) < 20):
        try:
            signature = signature_of(video.path)
        except (av.FFmpegError, OSError, ValueError) as error:
            silent.append(f"{video.video_id}: {error}")
            continue
        if signature is None:
            silent.append(f"{video.video_id}: its pictures have no contrast")
            continue
        usable.append(video)
        signatures.append(signature)
    pairs = []
    splits = sorted({video.split or "" for video in usable})
    for number, first in enumerate(splits):
        for second in splits[number + 1 :]:
            pairs += list(_alike(usable, signatures, first, second))
    if splits == [""]:  # they will be dealt out to splits
        pairs = list(_alike(usable, signatures, "", ""))
    return pairs, silent


def signature_of(path: Path) -> np.ndarray | None:
    """Pictures of a video at fixed moments, small and gray: float32 (moments, GRID * GRID).

    Each has mean 0 and length 1, so that a product is a correlation. None where most of them show
    nothing. Raises av.FFmpegError or ValueError for what is no video.
    """
    if not path.is_file():  # a pipe would be waited for forever
        raise ValueError("it is no plain file")
    pictures = []
    for picture in _pictures(path):
        flat = picture.astype(np.float32).ravel()
        flat -= flat.mean()
        deviation = float(np.sqrt(np.mean(flat**2)))
        pictures.append(flat / np.linalg.norm(flat) if deviation > CONTRAST else 0 * flat)
    signature = np.stack(pictures)
    return signature if np.count_nonzero(signature.any(axis=1)) > len(MOMENTS) // 2 else None


def _pictures(path: Path) -> Iterator[np.ndarray]:
    """The frame shown at each moment, uint8 (GRID, GRID), black bars cut off."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with av.open(str(path.absolute()), options=options) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream")
        if stream.codec_context.width * stream.codec_context.height > LARGEST:
            raise ValueError("its frames are too large to be decoded here")
        if stream.codec_context.codec.canonical_name not in CODECS:
            raise ValueError(f"{stream.codec_context.codec.name} is not decoded here")
        stream.codec_context.thread_count = 1
        length = float(stream.duration * stream.time_base) if stream.duration else 0.0
        length = length or (container.duration or 0) / av.time_base
        begin = float((stream.start_time or 0) * stream.time_base)
        if not length:
            raise ValueError("its duration is unknown")
        for share in MOMENTS:
            moment = begin + share * length
            container.seek(int(moment / stream.time_base), stream=stream)
            shown = None
            for frame in container.decode(stream):
                if shown is not None and frame.time is not None and frame.time > moment:
                    break
                shown = frame
            if shown is None:
                raise ValueError(f"no frame is shown at {moment:.1f} s")
            gray = shown.reformat(format="gray").to_ndarray()
            yield _small(gray)


def _small(gray: np.ndarray) -> np.ndarray:
    """Cuts off black bars and averages over GRID x GRID cells."""
    lit = gray > 24
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if len(rows) >= GRID and len(columns) >= GRID:
        gray = gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    down = np.linspace(0, gray.shape[0], GRID + 1).round().astype(int)[:-1]
    across = np.linspace(0, gray.shape[1], GRID + 1).round().astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(gray.astype(np.float64), down, 0), across, 1)
    ones = np.ones_like(gray, dtype=np.float64)
    counts = np.add.reduceat(np.add.reduceat(ones, down, 0), across, 1)
    return sums / counts


def _alike(
    videos: Sequence[Video], signatures: Sequence[np.ndarray], first: str, second: str
) -> Iterator[tuple[Video, Video, float]]:
    left = [index for index, video in enumerate(videos) if (video.split or "") == first]
    right = [index for index, video in enumerate(videos) if (video.split or "") == second]
    if not left or not right:
        return
    others = np.stack([signatures[index] for index in right])  # (R, moments, pixels)
    for start in range(0, len(left), ROWS):
        chunk = left[start : start + ROWS]
        these = np.stack([signatures[index] for index in chunk])
        products = np.einsum("lmp,rmp->mlr", these, others, optimize=True)
        shown = np.einsum("lm,rm->mlr", these.any(axis=2) * 1.0, others.any(axis=2) * 1.0)
        # A moment that shows nothing in one of the two says nothing; most must say something.
        likeness = products.sum(0) / np.maximum(shown.sum(0), 1)
        worst = np.where(shown > 0, products, 1.0).min(0)
        enough = shown.sum(0) > len(MOMENTS) // 2
        for row, column in np.argwhere((likeness >= SAME) & (worst >= LEAST) & enough):
            if first != second or chunk[row] < right[column]:
                score = float(likeness[row, column])
                yield videos[chunk[row]], videos[right[column]], score


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(ENDS)
        if size > 2 * ENDS:
            file.seek(size - ENDS)
            data += file.read(ENDS)
    return hashlib.sha256(data).digest()
