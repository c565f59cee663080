"""Picture files -> labelled pictures: what zero-shot classification and the probes are measured on.

A set is a folder of class folders, or one of torchvision's data sets that is on disk.
"""

import hashlib
import inspect
import json
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from videoclip.config import nearest
from videoclip.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
"""Files that are taken for pictures."""
SPLITS = ("train", "val", "test")
"""What the folders above the class folders may be called."""
TORCHVISION = "torchvision:"


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
    left_out: int = 0
    """Files in the class folders that are no pictures."""

    def __len__(self) -> int:
        return len(self.names)

    def places(self, names: Sequence[str]) -> list[int]:
        """Where pictures of these names stand in the set."""
        place = {name: index for index, name in enumerate(self.names)}
        return [place[str(name)] for name in names]

    def image(self, index: int) -> Image.Image:
        """One picture, as it is stored: not turned by its EXIF mark, as in torchvision.

        Raises ImageError that names it.
        """
        if isinstance(self.source, Path):
            return read_image(self.source / self.names[index])
        try:
            return self.source[index][0].convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
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
    # Pillow's readers raise all of these on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error) as error:
        raise ImageError(f"{name} cannot be read as a picture: {error}; replace it") from error
    if image.mode.startswith("I;16"):  # Pillow would cut such values off at 255
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
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
    these. Class names are the folders' names in sorted order, underscores read as spaces;
    `classes` is a file with other ones: JSON `{"folder": "name"}`, or one name a line in that
    order.

    Raises ImageError that names what is missing and what there is.
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
    splits = [name for name in SPLITS if (folder / name).is_dir()]
    if split is not None and splits:
        if split not in splits:
            raise ImageError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
        folder, title = folder / split, f"{folder.name} {split}"
    elif splits and split is None:
        inside = [path.name for path in folder.iterdir() if path.is_dir()]
        if set(inside) <= set(SPLITS):
            raise ImageError(f"{folder} holds the splits {', '.join(splits)}; choose with --split")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise ImageError(f"{folder} holds no class folders; put the pictures into one per class")
    files, labels, left_out, digest = [], [], 0, hashlib.sha256()
    for label, name in enumerate(names):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                left_out += path.is_file()
                continue
            relative, status = str(path.relative_to(folder)), path.stat()
            digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            files.append(relative)
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
        left_out=left_out,
    )


def _torchvision(source: str, split: str | None, download: bool) -> ImageSet:
    from torchvision import datasets

    _, _, rest = source.partition(":")
    name, _, root = rest.partition(":")
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name, None)):
        raise ImageError(f"torchvision has no data set {name!r}; {nearest(name, datasets.__all__)}")
    kind = getattr(datasets, name)
    options = inspect.signature(kind.__init__).parameters
    split = split or "test"
    chosen: dict[str, Any] = {"root": root or "."}
    if "train" in options:
        if split not in ("train", "test"):
            raise ImageError(f"{name} has the splits train and test, not {split!r}")
        chosen["train"] = split == "train"
    elif "split" in options:
        chosen["split"] = split
    if "download" in options:
        chosen["download"] = download
    try:
        found = kind(**chosen)
    except (RuntimeError, OSError, ValueError) as error:
        raise ImageError(
            f"torchvision's {name} cannot be opened in {chosen['root']}: {error}; nothing is "
            "downloaded unless asked for (--download)"
        ) from error
    labels = next(
        (getattr(found, f) for f in ("targets", "labels", "_labels") if _is_list(found, f)),
        None,
    )
    labels = [found[i][1] for i in range(len(found))] if labels is None else labels
    labels = np.asarray(labels, dtype=np.int64)
    names = getattr(found, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    digest = hashlib.sha256(f"{name}\0{split}\0{Path(root).resolve()}\0{len(found)}".encode())
    digest.update(labels.tobytes())
    return ImageSet(
        name=f"{name} {split}",
        # ImageNet's classes are tuples of synonyms; the first is the one in use.
        classes=tuple(n if isinstance(n, str) else n[0] for n in names),
        labels=labels,
        names=tuple(str(i) for i in range(len(found))),
        key=digest.hexdigest(),
        source=found,
    )


def _is_list(found: Any, field: str) -> bool:
    return hasattr(found, field) and len(getattr(found, field)) == len(found)


def _renamed(images: ImageSet, path: Path) -> ImageSet:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"the class names in {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        table = json.loads(text)
        names = list(table) if isinstance(table, list) else [
            table.get(name, table.get(name.replace(" ", "_"))) for name in images.classes
        ]  # fmt: skip
        missing = [c for c, n in zip(images.classes, names, strict=False) if n is None]
        if missing:
            raise ImageError(f"{path} has no name for the classes {', '.join(missing[:10])}")
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != len(images.classes):
        raise ImageError(
            f"{path} names {len(names)} classes, {images.name} has {len(images.classes)}: "
            f"{', '.join(images.classes[:10])}"
        )
    return ImageSet(**{**vars(images), "classes": tuple(map(str, names))})
