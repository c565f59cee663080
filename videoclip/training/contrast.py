"""Embeddings -> scores -> loss of a batch, also of one that several processes share."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from videoclip import distributed
from videoclip.model import VideoCLIP
from videoclip.training.losses import Loss
from videoclip.types import Batch, Embedding, Keys, padded


def own_texts(batch: Batch) -> Batch:
    """Of texts that every process has, such as all classes, the ones that this one embeds."""
    if distributed.world_size() == 1:
        return batch
    assert batch.keys is not None, "processes that share a batch need its keys"
    assert torch.equal(batch.keys.matches(), batch.matches), "the keys say other matches"
    if not batch.keys.shared:
        return batch
    keys = batch.keys._replace(text=distributed.share(batch.keys.text), shared=False)
    return batch._replace(ids=distributed.share(batch.ids), matches=keys.matches(), keys=keys)


class Contrast:
    """The loss of a whole batch as a function of the embeddings that this process has made.

    What it returns is to be taken backward in every process; the mean over the processes is the
    loss of the batch, and so are its gradients (see `distributed`). Each process scores its own
    texts with all videos. With scores "whole" they gather these rows and compute the loss of all.
    With "own" none ever holds all scores: each also scores all texts with its own videos, and takes
    its rows and columns of the loss.
    """

    def __init__(
        self,
        model: VideoCLIP,
        batch: Batch,
        loss: Loss,
        *,
        scores: Literal["whole", "own"],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        """The batch is this process's part, of which `own_texts` are left."""
        self.model, self.loss, self.scores, self.autocast = model, loss, scores, autocast
        self.texts, self.videos = slice(0, len(batch.ids)), slice(0, len(batch.names))
        matches = batch.matches
        if distributed.world_size() > 1:
            parts = distributed.gather_objects(batch.keys)
            # A process without clips does not know of how many classes the others mixed theirs.
            with_clips = [keys for keys in parts if len(keys.clip)] or parts
            matches = Keys(
                torch.cat([keys.text for keys in parts]),
                torch.cat([keys.clip for keys in with_clips]),
                torch.cat([keys.weight for keys in with_clips]),
            ).matches()
            self.texts = _place([len(keys.text) for keys in parts])
            self.videos = _place([len(keys.clip) for keys in parts])
        self.matches = matches.to(model.device)
        """(Q, V) of the whole batch."""

    @property
    def samples(self) -> int:
        """The clips of the whole batch."""
        return self.matches.shape[1]

    def __call__(self, text: Embedding, video: Embedding) -> Tensor:
        """This process's embeddings of texts and videos -> a number.

        A process without texts or without videos embeds a blank one, so that it takes part; what
        comes of it is cut off.
        """
        count = distributed.world_size()
        texts, videos = self.texts.stop - self.texts.start, self.videos.stop - self.videos.start
        if self.scores == "whole" or count == 1:
            rows = self._score(text, self._all(video, videos))[:texts]
            return self.loss(distributed.gather(rows), self.matches)
        rows = columns = None
        if self.loss.by_text:
            scores = self._score(text, self._all(video, videos))[:texts]
            rows = scores, self.matches[self.texts]
        if self.loss.by_video:
            scores = self._score(self._all(text, texts), video)[:, :videos]
            columns = scores, self.matches[:, self.videos]
        return count * self.loss.part(rows, columns, self.matches.shape)

    def _score(self, text: Embedding, video: Embedding) -> Tensor:
        with self.autocast():
            scores = self.model.score(text, video)
        return scores.to(self.model.clip.logit_scale.dtype)

    def _all(self, own: Embedding, count: int) -> Embedding:
        """The first `count` embeddings of each process; tokens only where the scorer reads them."""
        own = Embedding(*(part[:count] for part in own))
        if distributed.world_size() == 1:
            return own
        vector = _gather(own.vector)
        if not getattr(self.model.scorer, "reads_tokens", True):
            return Embedding(vector, vector[:, None], vector.new_ones(len(vector), 1).bool())
        longest = distributed.largest(own.tokens.shape[1])
        mask = distributed.gather(padded(own.mask, longest))
        return Embedding(vector, _gather(padded(own.tokens, longest)), mask)


def _gather(x: Tensor) -> Tensor:
    """The rows of all processes. Their gradients are added up in float32 at least, not rounded."""
    return distributed.gather(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


def _place(counts: list[int]) -> slice:
    """Where this process's rows stand among those of all, of which each has so many."""
    ends = list(accumulate(counts))
    number = distributed.rank()
    return slice(ends[number] - counts[number], ends[number])
