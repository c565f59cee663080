"""Pictures with captions -> Batch: what image-text pre-training reads.

A source is a table of paths and captions (CSV, TSV, Parquet), a manifest of pictures (.jsonl) or
tar shards. Order, caption and crop of a pair depend on (seed, epoch, name) and on nothing else.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from videoclip.distributed import share
from videoclip.errors import ImageError, VideoclipError
from videoclip.frames.ahead import STUCK, ReadAhead
from videoclip.frames.loader import batches_of_epoch
from videoclip.frames.transforms import random_resized_crop
from videoclip.image_text.images import open_image
from videoclip.image_text.shards import Index, find_shards, index
from videoclip.manifest import read_manifest
from videoclip.randomness import generator
from videoclip.tokenizer import Tokenizer
from videoclip.types import Bad, Batch, Frames, Keys

PATHS = ("filepath", "path", "image", "image_path", "filename", "file_name", "file")
"""What the column of paths may be called."""
TEXTS = ("caption", "captions", "text", "title", "sentence")
"""What the column of captions may be called."""


class Pairs:
    """N pictures with their captions, read one by one."""

    names: pa.Array
    """(N,) str, unique: what messages call a pair."""
    bad: dict[str, str]
    """Pairs that cannot be used, with the reason: found at opening, and added while reading."""
    notes: list[str]
    """What else there is to say about the source."""

    def __init__(self, names: pa.Array, bad: dict[str, str], notes: list[str]) -> None:
        self.names, self.bad, self.notes = names, bad, notes
        self.found = len(names) + len(bad)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> tuple[Image.Image, list[str]]:
        """A picture and its captions. Raises ImageError that names what is wrong."""
        raise NotImplementedError

    def counts(self) -> str:
        """What was found and what became of it; the parts add up."""
        return f"found {self.found} = usable {self.found - len(self.bad)} + {len(self.bad)} bad"


class TablePairs(Pairs):
    """Pairs of a table: picture files beside it, named as the table names them.

    So what is drawn for a pair does not depend on where the folder lies.
    """

    def __init__(
        self, folder: Path, paths: pa.Array, captions: pa.Array, bad: dict[str, str]
    ) -> None:
        super().__init__(paths, bad, [])
        self.folder, self.captions = folder, captions

    def read(self, number: int) -> tuple[Image.Image, list[str]]:
        """A picture and its captions. Raises ImageError that names what is wrong."""
        path = self.folder / self.names[number].as_py()
        return open_image(path, str(path)), self.captions[number].as_py()


class ShardPairs(Pairs):
    """Pairs of tar shards."""

    def __init__(self, found: Index) -> None:
        super().__init__(found.names, found.bad, found.notes)
        self.found_in = found

    def read(self, number: int) -> tuple[Image.Image, list[str]]:
        """A picture and its captions. Raises ImageError that names what is wrong."""
        at, name = self.found_in, self.names[number].as_py()
        with at.shards[at.shard[number]].open("rb") as file:
            picture, caption = (_part(file, *place[number]) for place in (at.image, at.caption))
        image = open_image(io.BytesIO(picture), name)
        try:
            text = caption.decode()
            texts = _captions(json.loads(text)) if at.is_json[number] else [text.strip()]
        except ValueError as error:  # not UTF-8, or not JSON
            raise ImageError(f"{name}: its caption cannot be read: {error}") from error
        if not any(texts):
            raise ImageError(f"{name}: its caption is empty")
        return image, [text for text in texts if text]


def open_pairs(source: str | Path) -> Pairs:
    """Opens pairs.csv, .tsv, .parquet, a .jsonl manifest of pictures, or tar shards.

    A table needs a column of paths (`filepath`, `path`, `image`, ...), relative to the table, and
    one of captions (`caption`, `text`, `title`, ...); several rows of one path are several
    captions. Shards are a folder, a glob or `shards-{000..010}.tar` in WebDataset's layout.

    Raises VideoclipError that says what is missing.
    """
    path = Path(source)
    if path.suffix in (".csv", ".tsv", ".parquet", ".jsonl") and not path.is_file():
        raise VideoclipError(f"{path} does not exist; check --data.source")
    if path.suffix == ".jsonl":
        clips = read_manifest(path)
        captions = pa.array([list(clip.captions) for clip in clips], pa.list_(pa.string()))
        return TablePairs(path.parent, pa.array([str(clip.path) for clip in clips]), captions, {})
    if path.suffix in (".csv", ".tsv", ".parquet"):
        return _table(path)
    return ShardPairs(index(find_shards(str(source))))


class PairLoader:
    """The batches of a training on pairs, read ahead by processes that stay from epoch to epoch.

    Batches are of nearly equal size rather than leaving a small one at the end; of each one the
    processes that share it take their parts. A pair that cannot be read is left out of its batch
    and added to `pairs.bad`; where none of a batch can be read it has no names. Pairs with the same
    caption match each other.
    """

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        size: int,
        crop: float,
        seed: int,
        workers: int,
        stuck_seconds: float = STUCK,
    ) -> None:
        """Without workers the calling process reads."""
        self.pairs = pairs
        self.reader = _Reader(pairs, tokenizer, batch_size, size, crop, seed)
        self.ahead = ReadAhead(self.reader, workers, stuck_seconds=stuck_seconds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; every pair once, with one caption.

        Raises VideoclipError where the processes that read die again and again.
        """
        parts = [share(range(len(rows))) for rows in self.reader.rows(epoch)]
        for batch in self.ahead((epoch, n, parts[n]) for n in range(start, len(parts))):
            self.pairs.bad |= {bad.name: bad.reason for bad in batch.bad}
            yield batch

    def close(self) -> None:
        """Ends the processes that read, as the end of the program does."""
        self.ahead.close()


class _Reader(NamedTuple):
    """Epoch, number of a batch and this process's places in it -> its part of the batch."""

    pairs: Pairs
    tokenizer: Tokenizer
    batch_size: int
    size: int
    crop: float
    seed: int

    def rows(self, epoch: int) -> list[np.ndarray]:
        """Which pairs each batch of an epoch has."""
        return batches_of_epoch(len(self.pairs), self.batch_size, self.seed, epoch)

    def read(
        self,
        number: tuple[int, int, range],
        tell: Callable[[str], None],
        refused: Mapping[str, str],
    ) -> Batch:
        """See ahead.Reader."""
        epoch, place, own = number
        pixels: list[Tensor] = []
        names, captions, bad = [], [], []
        for row in self.rows(epoch)[place][list(own)].tolist():
            name = self.pairs.names[row].as_py()
            tell(name)
            try:
                if name in refused:
                    raise ImageError(refused[name])
                image, texts = self.pairs.read(row)
                picture = random_resized_crop(
                    image, self.size, self.crop, seed=self.seed, epoch=epoch, sample=name
                )
            except ImageError as error:
                bad.append(Bad(name, str(error)))
                continue
            drawn = generator(self.seed, epoch, name, "caption").integers(len(texts))
            pixels.append(picture)
            names.append(name)
            captions.append(texts[drawn])
        empty = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        stacked = torch.stack(pixels) if pixels else empty
        mask = torch.ones(len(names), 1, dtype=torch.bool)
        frames, keys = Frames(stacked[:, None], mask), Keys.of(captions, captions)
        ids = self.tokenizer(captions)
        return Batch(frames, ids, keys.matches(), tuple(names), keys, tuple(bad))


def _part(file: Any, offset: int, size: int) -> bytes:
    file.seek(int(offset))
    return file.read(int(size))


def _captions(record: Any) -> list[str]:
    """The captions of a JSON record. Raises ValueError where it has none."""
    texts = next((record[k] for k in TEXTS if k in record), None) if type(record) is dict else None
    if not texts:
        raise ValueError(f"no {', '.join(TEXTS)} in it")
    return [str(text).strip() for text in ([texts] if isinstance(texts, str) else texts)]


def _table(path: Path) -> Pairs:
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with path.open(encoding="utf-8") as file:
                head = file.readline()
            table = pd.read_csv(
                path, sep="\t" if "\t" in head else ",", dtype=str, keep_default_na=False
            )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise VideoclipError(f"{path} cannot be read as a table: {error}") from error
    columns = {str(name).lower(): name for name in table.columns}
    wanted = [next((columns[n] for n in names if n in columns), None) for names in (PATHS, TEXTS)]
    for names, column in zip((PATHS, TEXTS), wanted, strict=True):
        if column is None:
            raise VideoclipError(
                f"{path} has the columns {', '.join(map(str, table.columns))}; it needs one of "
                f"{', '.join(names)}"
            )
    bad: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for row, (name, given) in enumerate(zip(*(table[c] for c in wanted), strict=True), start=1):
        texts = [given] if isinstance(given, str) else list(given) if given is not None else []
        texts = [str(text).strip() for text in texts if str(text).strip()]
        if not isinstance(name, str) or not name:
            bad[f"row {row}"] = "it has no path"
        elif "://" in name:
            bad[f"row {row}"] = f"{name} is an address; download the picture first"
        elif not texts:
            bad[f"row {row}"] = f"{name} has no caption"
        else:
            captions.setdefault(name, []).extend(texts)
    if not captions:
        raise VideoclipError(
            f"no row of {path} can be used; {next(iter(bad.items()), 'it is empty')}"
        )
    texts = pa.array(list(captions.values()), pa.list_(pa.string()))
    return TablePairs(path.parent, pa.array(list(captions)), texts, bad)
