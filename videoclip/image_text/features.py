"""Labelled pictures -> image features, computed once and kept: the base of zero-shot and probes."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.errors import ImageError, VideoclipError
from videoclip.features.fingerprint import fingerprint
from videoclip.image_text.images import ImageSet
from videoclip.layers import LayerNorm
from videoclip.model import VideoCLIP
from videoclip.types import Frames


class ImageFeatures(NamedTuple):
    """The features of the pictures that could be read, in the order of the set."""

    features: np.ndarray
    """(N, D) float32, not normalized."""
    labels: np.ndarray
    """(N,) int64."""
    names: np.ndarray
    """(N,) str."""
    unreadable: dict[str, str]
    """The other pictures of the set, each with the reason."""


def extract(
    model: VideoCLIP,
    images: ImageSet,
    *,
    store: Path | None,
    batch_size: int = 64,
    before_projection: bool = False,
    label: str = "pictures",
    progress: bool = True,
) -> ImageFeatures:
    """The features of all pictures of a set that can be read; the others are listed.

    With a `store`, a folder, they are computed once for these weights and these pictures.
    `before_projection` leaves a ViT's features in the tower's width, where the CLIP paper fits its
    linear probes (Radford et al. 2021, section 3.2); a ResNet has no such projection. Threads read
    the pictures ahead; how many there are changes nothing, the batch size only the rounding.

    Raises ImageError where no picture can be read.
    """
    if batch_size < 1:
        raise VideoclipError(f"the batch size is {batch_size}; give at least 1")
    before_projection = before_projection and hasattr(model.clip.visual, "proj")
    path = None
    if store is not None:
        kind = "tower" if before_projection else "joint"
        key = f"{fingerprint(model)}\0{images.key}\0{kind}"
        path = store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        if path.is_file() and (kept := _read(path)) is not None:
            return kept
    unreadable: dict[str, str] = {}
    rows, places = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        bar = tqdm(
            total=len(images), desc=f"encoding {label}", unit="picture", disable=not progress
        )
        for batch in _batches(model, images, batch_size):
            readable = [i for i, picture in batch if not isinstance(picture, str)]
            unreadable |= {images.names[i]: p for i, p in batch if isinstance(p, str)}
            if readable:
                pixels = torch.stack([p for _, p in batch if not isinstance(p, str)])
                rows.append(_encode(model, pixels.to(model.device), before_projection))
                places += readable
            bar.update(len(batch))
        bar.close()
    model.train(was_training)
    if not rows:
        name, reason = next(iter(unreadable.items()))
        raise ImageError(f"none of the {len(images)} pictures can be read; {name}: {reason}")
    found = ImageFeatures(
        torch.cat(rows).numpy(), images.labels[places], np.array(images.names)[places], unreadable
    )
    if path is not None:
        _write(path, found)
    return found


def _encode(model: VideoCLIP, pixels: Tensor, before_projection: bool) -> Tensor:
    """Pixels (B, 3, S, S) uint8 -> (B, D) float32 on the CPU."""
    if not before_projection:
        return model.encode_image(pixels).float().cpu()
    one = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
    visual = model.clip.visual
    after: LayerNorm = visual.ln_post
    tokens = visual(model.normalized(Frames(pixels[:, None], one)), one, model.mixers, 1).layers[-1]
    return after(tokens[:, 0, 0]).float().cpu()


def _batches(
    model: VideoCLIP, images: ImageSet, batch_size: int
) -> Iterator[list[tuple[int, Tensor | str]]]:
    """Batches of (index, pixels or the reason why there are none), read a few batches ahead."""

    def read(index: int) -> Tensor | str:
        try:
            return model.preprocess(images.image(index))
        except ImageError as error:
            return str(error)

    ahead = 4 * batch_size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(read, i) for i in range(min(ahead, len(images)))]
        batch: list[tuple[int, Tensor | str]] = []
        for index in range(len(images)):
            batch.append((index, waiting[index].result()))
            waiting[index] = None  # the pixels may go
            if index + ahead < len(images):
                waiting.append(pool.submit(read, index + ahead))
            if len(batch) == batch_size or index == len(images) - 1:
                yield batch
                batch = []


def _read(path: Path) -> ImageFeatures | None:
    """What is kept in a file; None where it is damaged, and then it is made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            bad = dict(zip(kept["bad"].tolist(), kept["reasons"].tolist(), strict=True))
            return ImageFeatures(kept["features"], kept["labels"], kept["names"], bad)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        tqdm.write(f"{path} is damaged ({error}); the features are computed again")
        return None


def _write(path: Path, found: ImageFeatures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez(
                file,
                features=found.features,
                labels=found.labels,
                names=found.names,
                bad=np.array(list(found.unreadable), dtype=str),
                reasons=np.array(list(found.unreadable.values()), dtype=str),
            )
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise VideoclipError(
            f"cannot keep features in {path.parent}: {error}; free some space or give --output"
        ) from error
