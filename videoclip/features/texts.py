"""Token ids -> what a locked text tower makes of them: every text is read once."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.distributed import gather_objects, main_process, rank, world_size
from videoclip.features.fingerprint import text_fingerprint
from videoclip.features.shards import opened, shards_of, write_shard
from videoclip.layers import evaluating
from videoclip.model import VideoCLIP

AT_ONCE = 256
"""Texts that go through the tower together."""
SHARD = 100_000
"""Texts of one file."""


class TextFeatures:
    """Token ids (N, L) -> (N, D) float32 on the CPU, as the model's text tower makes them.

    It may be called in place of a tokenizer's result wherever `VideoCLIP.embed_text` takes ids.
    """

    def __init__(self, folder: Path, model: VideoCLIP) -> None:
        self.model = model
        self.folder = folder / f"texts-{text_fingerprint(model)[:32]}"
        self.known: dict[bytes, Tensor] = {}
        self._take(shards_of(self.folder))

    def __call__(self, ids: Tensor) -> Tensor:
        """What is not known yet is made now, and kept as long as this object lives."""
        keys = [_key(row) for row in ids.numpy()]
        new = {key: row for key, row in zip(keys, ids, strict=True) if key not in self.known}
        if new:
            self.known |= zip(new, self._made(list(new.values())), strict=True)
        if not keys:  # of a process that has no texts in a batch
            return torch.zeros(0, *next(iter(self.known.values())).shape)
        return torch.stack([self.known[key] for key in keys])

    def tokenizer(self, words: int | None = None) -> Callable[[str | Sequence[str]], Tensor]:
        """As `VideoCLIP.tokenizer`, but texts become their features (N, D) at once."""
        tokenizer = self.model.tokenizer(words)
        return lambda texts: self(tokenizer(texts))

    def fill(self, texts: Iterable[str], words: Iterable[int | None]) -> None:
        """Makes and keeps what is missing of these texts, cut to each of these lengths.

        Processes that call it together share the work.
        """
        texts, missing = list(dict.fromkeys(texts)), {}
        for length in words:
            ids = self.model.tokenizer(length)(texts)
            missing |= {_key(row): row for row in ids.numpy()}
        missing = {key: row for key, row in missing.items() if key not in self.known}
        # Neighbors are of one length: a batch is cut after its longest.
        order = sorted(missing.items(), key=lambda pair: len(pair[0]))
        own = order[rank() * len(order) // world_size() : (rank() + 1) * len(order) // world_size()]
        bar = tqdm(
            total=len(own), desc="embedding texts", unit="text",
            disable=not own or not main_process(),
        )  # fmt: skip
        written = []
        for first in range(0, len(own), SHARD):
            rows = [torch.from_numpy(row) for _, row in own[first : first + SHARD]]
            made = {"ids": _stacked(rows), "vectors": self._made(rows, bar)}
            written.append(write_shard(self.folder, made))
        bar.close()
        for paths in gather_objects(written):
            self._take(paths)

    def _made(self, rows: Sequence[Tensor], bar: tqdm | None = None) -> Tensor:
        """Ids of N texts -> (N, D)."""
        found = []
        with torch.no_grad(), evaluating(self.model):
            for first in range(0, len(rows), AT_ONCE):
                ids = _stacked(rows[first : first + AT_ONCE])
                found.append(self.model.encode_text(ids.to(self.model.device)).float().cpu())
                if bar:
                    bar.update(len(ids))
        return torch.cat(found)

    def _take(self, paths: Iterable[Path]) -> None:
        for path in paths:
            shard = opened(path)
            keys = [_key(row) for row in shard.get_tensor("ids").numpy()]
            self.known |= zip(keys, shard.get_tensor("vectors"), strict=True)


def _key(row: np.ndarray) -> bytes:
    """A text's tokens without the padding behind them."""
    return np.trim_zeros(row, "b").tobytes()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Ids of different lengths as one tensor, padded with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
