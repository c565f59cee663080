"""Picture files -> labelled pictures: what zero-shot classification and the probes are measured on.

A set is a folder of class folders, or one of torchvision's data sets that is on disk.
"""

import hashlib
import inspect
import json
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Subset

from videoclip.errors import ImageError, SplitError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
"""Files that are taken for pictures."""
SPLITS = ("train", "val", "test")
"""What the folders above the class folders may be called."""
TORCHVISION = "torchvision:"
DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's readers raise on damaged or hostile files."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N labelled pictures that are read one by one."""

    name: str
    """What tables call it."""
    classes: tuple[str, ...]
    """The names that prompts are made of."""
    labels: np.ndarray
    """(N,) int64, places in `classes`."""
    names: tuple[str, ...]
    """What messages call a picture: its path under the folder, or its number."""
    key: str
    """Changes when a file does, so that nothing kept for other pictures is used for these."""
    source: Any
    """The folder, or torchvision's data set."""
    split: str | None = None
    """Which part of the data this is; None where the data has no splits."""
    left_out: int = 0
    """Files that are no pictures, hidden, or pictures beside the class folders."""

    def __len__(self) -> int:
        return len(self.names)

    def places(self, names: Sequence[str]) -> list[int]:
        """Where pictures of these names stand in the set."""
        place = {name: index for index, name in enumerate(self.names)}
        return [place[str(name)] for name in names]

    def part(self, chosen: np.ndarray, split: str) -> "ImageSet":
        """Some of the pictures, by their places (M,), as a split of their own."""
        names = tuple(self.names[i] for i in chosen)
        own = isinstance(self.source, Path)
        return replace(
            self,
            name=f"{self.name} {split}",
            labels=self.labels[chosen],
            names=names,
            key=hashlib.sha256("\0".join([self.key, *names]).encode()).hexdigest(),
            source=self.source if own else Subset(self.source, chosen.tolist()),
            split=split,
        )

    def image(self, index: int) -> Image.Image:
        """One picture, as it is stored: not turned by its EXIF mark, as in torchvision.

        Raises ImageError that names it.
        """
        if isinstance(self.source, Path):
            return read_image(self.source / self.names[index])
        try:
            return self.source[index][0].convert("RGB")
        except DAMAGE as error:
            raise ImageError(f"{self.name}, picture {self.names[index]}: {error}") from error


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """A picture file in 8 bits a channel; turned as its EXIF mark says where `upright` is asked.

    Raises ImageError that names the file, what is wrong and what to do.
    """
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give the pictures in it, {path}/*")
    if path.is_file() and not path.stat().st_size:
        raise ImageError(f"{path} is empty; replace it")
    return open_image(path, str(path), upright=upright)


def open_image(file: str | Path | BinaryIO, name: str, *, upright: bool = False) -> Image.Image:
    """A picture from a path or an open file, as `read_image` does it; messages call it `name`."""
    try:
        with warnings.catch_warnings():
            # Between one and two times Pillow's limit it warns, beyond that it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened) if upright else opened.copy()
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; check the path") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {error}; scale it down first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture, whatever its name says") from error
    except DAMAGE as error:
        raise ImageError(f"{name} cannot be read as a picture: {error}; replace it") from error
    # Pillow would cut larger values off at 255; its older versions read 16 bits of a PNG into 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        if not 0 <= low <= high <= 255:
            raise ImageError(
                f"{name} holds values from {low:g} to {high:g} in 32 bits, whose range for black "
                "and white is unknown; convert it to 8 bits"
            )
    return image


def image_set(
    source: str | Path,
    *,
    split: str | None = None,
    classes: Path | None = None,
    download: bool = False,
) -> ImageSet:
    """The pictures of a folder, or of a torchvision data set: `torchvision:CIFAR10:/data`.

    A folder holds one folder per class, or `train`, `val`, `test` that do; `split` chooses among
    these, and a folder without splits is taken whole. Class names are the folders' names in sorted
    order, underscores read as spaces; `classes` is a file with other ones: JSON
    `{"folder": "name"}`, or one name a line in that order.

    Raises ImageError that names what is missing and what there is; SplitError for a split.
    """
    if str(source).startswith(TORCHVISION):
        found = _torchvision(str(source), split, download)
    else:
        found = _folder(Path(source), split)
    return found if classes is None else _renamed(found, classes)


def _folder(folder: Path, split: str | None) -> ImageSet:
    if not folder.is_dir():
        raise ImageError(
            f"{folder} is not a folder; give one with a folder of pictures per class, or "
            f"{TORCHVISION}NAME:ROOT"
        )
    title = folder.name
    splits = _splits(folder)
    if splits and split not in splits:
        if split is None:
            raise ImageError(f"{folder} holds the splits {', '.join(splits)}; choose with --split")
        raise SplitError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    if splits:
        folder, title = folder / split, f"{folder.name} {split}"
    names = _folders(folder)
    if not names:
        raise ImageError(f"{folder} holds no class folders; put the pictures into one per class")
    files, labels, digest = (
        [],
        [],
        hashlib.sha256("\0".join([str(folder.resolve()), *names]).encode()),
    )
    left_out = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir() if path.is_file())
    for label, name in enumerate(names):
        for path in sorted((folder / name).rglob("*")):
            if not path.is_file():
                continue
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.suffix.lower() not in SUFFIXES:
                left_out += 1
                continue
            status = path.stat()
            digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            files.append(str(relative))
            labels.append(label)
    if not files:
        raise ImageError(f"the class folders of {folder} hold no pictures ({', '.join(SUFFIXES)})")
    return ImageSet(
        name=title,
        classes=tuple(name.replace("_", " ") for name in names),
        labels=np.array(labels, dtype=np.int64),
        names=tuple(files),
        key=digest.hexdigest(),
        source=folder,
        split=split if splits else None,
        left_out=left_out,
    )


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are none."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _splits(folder: Path) -> list[str]:
    """Which of `SPLITS` a folder has, rather than classes of such a name (COCO has a train)."""
    inside = _folders(folder)
    splits = [name for name in SPLITS if name in inside]
    if len(splits) == len(inside):
        return splits
    # Beside other folders it takes two that hold class folders themselves.
    deep = [name for name in splits if _folders(folder / name)]
    return deep if len(deep) > 1 else []


def _torchvision(source: str, split: str | None, download: bool) -> ImageSet:
    from torchvision import datasets

    _, _, rest = source.partition(":")
    name, _, root = rest.partition(":")
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name, None)):
        raise ImageError(f"torchvision has no data set {name!r}; {nearest(name, datasets.__all__)}")
    kind = getattr(datasets, name)
    options = inspect.signature(kind.__init__).parameters
    chosen: dict[str, Any] = {"root": root or "."}
    if not {"train", "split"} & set(options):
        split = None
    elif "train" in options:
        split = split or "test"
        if split not in ("train", "test"):
            raise SplitError(f"{name} has the splits train and test, not {split!r}")
        chosen["train"] = split == "train"
    else:
        chosen["split"] = split = split or "test"
    if "download" in options:
        chosen["download"] = download
    try:
        found = kind(**chosen)
    except TypeError as error:
        raise ImageError(
            f"torchvision's {name} is no set of labelled pictures with a root and a split: {error}"
        ) from error
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        if "Unknown value" in str(error):  # torchvision's words, with the list of splits
            raise SplitError(f"torchvision's {name}: {error}") from error
        raise ImageError(
            f"torchvision's {name} cannot be opened in {chosen['root']}: {error}; nothing is "
            "downloaded unless asked for (--download)"
        ) from error
    labels = _labels(found, name)
    names = getattr(found, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    digest = hashlib.sha256(f"{name}\0{split}\0{Path(root).resolve()}\0{len(found)}".encode())
    digest.update(labels.tobytes())
    # Small sets are held in memory; the files of the others are as published.
    if isinstance(pixels := getattr(found, "data", None), np.ndarray | Tensor):
        digest.update(np.ascontiguousarray(pixels).data)
    return ImageSet(
        name=f"{name} {split}" if split else name,
        # ImageNet's classes are tuples of synonyms; the first is the one in use.
        classes=tuple(n if isinstance(n, str) else n[0] for n in names),
        labels=labels,
        names=tuple(str(i) for i in range(len(found))),
        key=digest.hexdigest(),
        source=found,
        split=split,
    )


def _labels(found: Any, name: str) -> np.ndarray:
    """The labels of torchvision's set, (N,) int64."""
    fields = (f for f in ("targets", "labels", "_labels") if _is_list(found, f))
    field = next(fields, None)
    try:
        kept = [found[i][1] for i in range(len(found))] if field is None else getattr(found, field)
        labels = np.asarray(kept, dtype=np.int64)
    except (TypeError, ValueError, *DAMAGE) as error:
        raise ImageError(f"torchvision's {name} has no class for every picture: {error}") from error
    if labels.shape != (len(found),) or not len(labels) or labels.min() < 0:
        raise ImageError(f"torchvision's {name} has no class for every picture of this split")
    return labels


def _is_list(found: Any, field: str) -> bool:
    return hasattr(found, field) and len(getattr(found, field)) == len(found)


def _renamed(images: ImageSet, path: Path) -> ImageSet:
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:  # of wrong bytes and of wrong JSON
        raise ImageError(f"the class names in {path} cannot be read: {error}") from error
    if isinstance(table, dict):
        spelled = {folder.replace("_", " "): name for folder, name in table.items()}
        missing = [name for name in images.classes if name not in spelled]
        if missing:
            raise ImageError(f"{path} has no name for the classes {', '.join(missing[:10])}")
        names = [spelled[name] for name in images.classes]
    elif isinstance(table, list):
        names = [n.strip() if isinstance(n, str) else n for n in table]
        names = [n for n in names if n != ""]
    else:
        raise ImageError(f'{path} holds neither {{"folder": "name"}} nor a list of names')
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ImageError(f"{path} names a class {json.dumps(wrong)}; give one text per class")
    if len(names) != len(images.classes):
        raise ImageError(
            f"{path} names {len(names)} classes, {images.name} has {len(images.classes)}: "
            f"{', '.join(images.classes[:10])}"
        )
    return replace(images, classes=tuple(names))
