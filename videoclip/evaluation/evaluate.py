"""A model and a manifest's clips -> scores, ranks and metrics; every clip is scored once.

Several processes share the work batch by batch: batch number b belongs to process b modulo their
number. The batches themselves do not depend on how many processes there are, so neither does any
score, to the last bit; none is padded with clips that others have, and all is put back by number.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.distributed import gather_objects, main_process, rank, world_size
from videoclip.errors import VideoclipError
from videoclip.features.store import Store
from videoclip.figures.metrics import (
    Ranks,
    check_counts,
    retrieval_metrics,
    text_to_video_ranks,
    video_to_text_ranks,
)
from videoclip.frames.loader import collate
from videoclip.frames.sampling import FrameOrder, frame_order
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tokenizer import Tokenizer
from videoclip.types import Embedding, joined, on_device

FRAME_ORDERS: tuple[FrameOrder, ...] = get_args(FrameOrder)
Direction = Literal["text_to_video", "video_to_text"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CAPTIONS_AT_ONCE = 256
"""Captions that are embedded in one batch."""
TEXTS_AT_ONCE = 128
"""Texts that are scored with all videos in one go: it bounds the memory."""
SLOW = 3
"""Seconds after which a progress bar appears."""
T = TypeVar("T")
R = TypeVar("R")


class Evaluation(NamedTuple):
    """What a model says about a split: all scores, and the ranks that follow from them."""

    clips: Sequence[Clip]
    """V clips, the readable and the unreadable."""
    captions: list[str]
    """Q captions."""
    video_of_caption: np.ndarray
    """(Q,) index into the clips."""
    scores: np.ndarray
    """(Q, V) float32 logits; nan in the columns of unreadable clips."""
    ranks: dict[Direction, Ranks]
    """Per direction, the rank of every query."""
    counts: str
    """The line 'expected = evaluated = unique', which was checked."""
    ms_per_clip: float
    """Median milliseconds to embed one clip, decoding excluded."""

    def metrics(self) -> dict[Direction, dict[str, float]]:
        """R@1, R@5, R@10, MdR and MnR per direction."""
        return {direction: retrieval_metrics(ranks) for direction, ranks in self.ranks.items()}


class Embedded(NamedTuple):
    """A split as its model sees it, before texts and videos meet; the same in every process."""

    clips: Sequence[Clip]
    """V clips, the readable and the unreadable."""
    captions: list[str]
    """Q captions."""
    video_of_caption: np.ndarray
    """(Q,) index into the clips."""
    text: Embedding
    """Of the U captions that differ in their tokens: equal ones must tie, to the last bit."""
    text_of_caption: np.ndarray
    """(Q,) index into them."""
    video: Embedding
    """Of the readable clips."""
    columns: list[int]
    """Which clips are readable."""
    counts: str
    """The line 'expected = evaluated = unique', which was checked."""
    ms_per_clip: float
    """Median milliseconds to embed one clip, decoding excluded."""


def evaluate(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: Store,
    tokenizer: Tokenizer,
    *,
    order: FrameOrder = "normal",
    batch_size: int = 32,
    takes: int = 1,
) -> Evaluation:
    """Scores every caption with every clip.

    A clip that could not be decoded (`store.unreadable`) stays in the count: its captions are
    misses, and it can be retrieved by none. With torch.distributed started, every process must call
    this; they share the work, and all get the result that one alone would get.
    """
    return scored(
        model,
        embedded(model, clips, store, tokenizer, order=order, batch_size=batch_size, takes=takes),
    )


@torch.no_grad()
def embedded(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: Store,
    tokenizer: Tokenizer,
    *,
    order: FrameOrder = "normal",
    batch_size: int = 32,
    takes: int = 1,
) -> Embedded:
    """Embeds every clip and every caption once. Raises VideoclipError where no clip is readable."""
    model.eval()
    for unreadable in gather_objects(store.unreadable):  # what one process cannot read, none can
        store.unreadable |= unreadable
    readable = [clip for clip in clips if clip.video_id not in store.unreadable]
    if not readable:
        raise VideoclipError(
            f"none of the {len(clips)} clips can be read; the first: "
            f"{next(iter(store.unreadable.values()), 'there are no clips')}"
        )
    captions = [caption for clip in clips for caption in clip.captions]
    texts, text_of_caption = distinct(captions, tokenizer)
    video, names, ms_per_clip = _embed_clips(model, readable, store, order, batch_size, takes)
    missed = [clip.video_id for clip in clips if clip.video_id in store.unreadable]
    return Embedded(
        clips=clips,
        captions=captions,
        video_of_caption=np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips]),
        text=embed_captions(model, texts, tokenizer),
        text_of_caption=text_of_caption,
        video=video,
        columns=[i for i, clip in enumerate(clips) if clip.video_id not in store.unreadable],
        counts=check_counts([clip.video_id for clip in clips], [*names, *missed]),
        ms_per_clip=ms_per_clip,
    )


def scored(model: VideoCLIP, found: Embedded) -> Evaluation:
    """Every text with every video: the ranks of all queries."""
    scores = of_all(all_scores(model, found.text, found.video), found)
    return evaluation(found, scores, scores)


def evaluation(found: Embedded, text_to_video: np.ndarray, video_to_text: np.ndarray) -> Evaluation:
    """The ranks by these scores (Q, V); the two directions may have scores of their own."""
    owners = found.video_of_caption
    return Evaluation(
        clips=found.clips,
        captions=found.captions,
        video_of_caption=owners,
        scores=text_to_video,
        ranks={
            "text_to_video": text_to_video_ranks(text_to_video, owners),
            "video_to_text": video_to_text_ranks(video_to_text, owners),
        },
        counts=found.counts,
        ms_per_clip=found.ms_per_clip,
    )


@torch.no_grad()
def all_scores(model: VideoCLIP, text: Embedding, video: Embedding) -> np.ndarray:
    """Embeddings of Q texts and V videos -> logits (Q, V) float32; processes share the texts."""

    def rows(chunk: Tensor) -> np.ndarray:
        return model.score(rows_of(text, chunk), video).float().cpu().numpy()

    chunks = torch.arange(len(text.vector)).split(TEXTS_AT_ONCE)
    return np.concatenate(shared(chunks, rows, "scoring"))


def distinct(captions: Sequence[str], tokenizer: Tokenizer) -> tuple[list[str], np.ndarray]:
    """The U captions that differ in their tokens, and which of them each caption (Q,) is."""
    keys = [row.tobytes() for row in tokenizer(list(captions)).numpy()]
    texts: dict[bytes, str] = {}
    for key, caption in zip(keys, captions, strict=True):
        texts.setdefault(key, caption)
    place = {key: number for number, key in enumerate(texts)}
    return list(texts.values()), np.array([place[key] for key in keys])


@torch.no_grad()
def embed_captions(model: VideoCLIP, captions: Sequence[str], tokenizer: Tokenizer) -> Embedding:
    """Embeds captions in the order of their lengths: a batch is cut after its longest."""
    ids = tokenizer(list(captions))
    order = ids.argmax(1).argsort(stable=True)
    batches = ids[order].split(CAPTIONS_AT_ONCE)

    def embed(batch: Tensor) -> Embedding:
        return _portable(model.embed_text(batch.to(model.device)))

    embedding = joined(shared(batches, embed, "embedding captions"))
    return rows_of(embedding, order.argsort(), model.device)


def _embed_clips(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: Store,
    order: FrameOrder,
    batch_size: int,
    takes: int,
) -> tuple[Embedding, list[str], float]:
    """Embeds clips batch by batch; also the ids in the order in which they went in."""

    def embed(chosen: Sequence[Clip]) -> tuple[Embedding, list[str], float]:
        pixels = [store.read(clip, takes) for clip in chosen]
        frames = collate(
            [
                clip[frame_order(len(clip), order, sample=row.video_id)]
                for clip, row in zip(pixels, chosen, strict=True)
            ]
        )
        began = time.perf_counter()
        embedding = model.embed_video(on_device(frames, model.device))
        embedding.vector.sum().item()  # waits for the device
        milliseconds = 1000 * (time.perf_counter() - began) / len(chosen)
        if not reads_tokens(model):  # keep and send no more than the vectors
            embedding = Embedding(embedding.vector, embedding.vector[:, None], frames.mask[:, :1])
        return _portable(embedding), [clip.video_id for clip in chosen], milliseconds

    batches = [clips[i : i + batch_size] for i in range(0, len(clips), batch_size)]
    parts, names, milliseconds = zip(*shared(batches, embed, "embedding clips"), strict=True)
    # The first batch of every process also pays for warming up.
    warm = milliseconds[world_size() :] or milliseconds
    video = Embedding(*(part.to(model.device) for part in joined(parts)))
    return video, [name for batch in names for name in batch], median(warm)


def of_all(scores: np.ndarray, found: Embedded) -> np.ndarray:
    """Scores (U, readable) of different captions and readable clips -> (Q, V), nan elsewhere."""
    whole = np.full((len(found.captions), len(found.clips)), np.nan, dtype=scores.dtype)
    whole[:, found.columns] = scores[found.text_of_caption]
    return whole


def rows_of(embedding: Embedding, rows: Tensor, device: torch.device | None = None) -> Embedding:
    """Some rows of an embedding, on this device or where it is."""
    return Embedding(*(part[rows.to(part.device)].to(device) for part in embedding))


def reads_tokens(model: VideoCLIP) -> bool:
    """Whether the scorer reads frames, which no cosine of two vectors does."""
    return getattr(model.scorer, "reads_tokens", True)


def _portable(embedding: Embedding) -> Embedding:
    """An embedding that can be sent to other processes, if there are any."""
    return embedding if world_size() == 1 else Embedding(*(part.cpu() for part in embedding))


def shared(parts: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """What `work` makes of every part, in order and in every process.

    Process r works on the parts r, r + world size, ... alone.
    """
    numbers = range(rank(), len(parts), world_size())
    bar = tqdm(numbers, label, unit="part", delay=SLOW, disable=not main_process())
    done = {number: work(parts[number]) for number in bar}
    for one in gather_objects(done):
        done |= one
    return [done[number] for number in range(len(parts))]
