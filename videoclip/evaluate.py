"""A model and a manifest's clips -> scores, ranks and metrics; every clip is scored once."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from videoclip.data import FrameStore, collate
from videoclip.errors import VideoclipError
from videoclip.manifest import Clip
from videoclip.metrics import (
    Ranks,
    check_counts,
    retrieval_metrics,
    text_to_video_ranks,
    video_to_text_ranks,
)
from videoclip.model import VideoCLIP
from videoclip.sampling import frame_order
from videoclip.tokenizer import Tokenizer
from videoclip.types import Embedding, Frames, joined

FrameOrder = Literal["normal", "reversed", "shuffled"]
FRAME_ORDERS: tuple[FrameOrder, ...] = get_args(FrameOrder)
Direction = Literal["text_to_video", "video_to_text"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


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


@torch.no_grad()
def evaluate(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: FrameStore,
    tokenizer: Tokenizer,
    *,
    order: FrameOrder = "normal",
    batch_size: int = 32,
    takes: int = 1,
) -> Evaluation:
    """Scores every caption with every clip.

    A clip that could not be decoded (`store.unreadable`) stays in the count: its captions are
    misses, and it can be retrieved by none.
    """
    model.eval()
    readable = [clip for clip in clips if clip.video_id not in store.unreadable]
    if not readable:
        raise VideoclipError(
            f"none of the {len(clips)} clips can be read; the first: "
            f"{next(iter(store.unreadable.values()), 'there are no clips')}"
        )
    captions = [caption for clip in clips for caption in clip.captions]
    owners = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    video, scored, ms_per_clip = _embed_clips(model, readable, store, order, batch_size, takes)
    text = _embed_captions(model, captions, tokenizer)
    scores = np.full((len(captions), len(clips)), np.nan, dtype=np.float32)
    columns = [index for index, clip in enumerate(clips) if clip.video_id not in store.unreadable]
    scores[:, columns] = model.score(text, video).float().cpu().numpy()
    missed = [clip.video_id for clip in clips if clip.video_id in store.unreadable]
    return Evaluation(
        clips=clips,
        captions=captions,
        video_of_caption=owners,
        scores=scores,
        ranks={
            "text_to_video": text_to_video_ranks(scores, owners),
            "video_to_text": video_to_text_ranks(scores, owners),
        },
        counts=check_counts([clip.video_id for clip in clips], [*scored, *missed]),
        ms_per_clip=ms_per_clip,
    )


def _embed_clips(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: FrameStore,
    order: FrameOrder,
    batch_size: int,
    takes: int,
) -> tuple[Embedding, list[str], float]:
    """Embeds clips batch by batch; also the ids in the order in which they went in."""
    parts: list[Embedding] = []
    names: list[str] = []
    milliseconds: list[float] = []
    for start in range(0, len(clips), batch_size):
        chosen = clips[start : start + batch_size]
        pixels = [store.read(clip, takes) for clip in chosen]
        frames = collate(
            [
                clip[frame_order(len(clip), order, sample=row.video_id)]
                for clip, row in zip(pixels, chosen, strict=True)
            ]
        )
        began = time.perf_counter()
        embedding = model.embed_video(Frames(*(part.to(model.device) for part in frames)))
        embedding.vector.sum().item()  # waits for the device
        milliseconds.append(1000 * (time.perf_counter() - began) / len(chosen))
        parts.append(embedding)
        names += [clip.video_id for clip in chosen]
    # The first batch also pays for warming up.
    return joined(parts), names, median(milliseconds[1:] or milliseconds)


def _embed_captions(model: VideoCLIP, captions: Sequence[str], tokenizer: Tokenizer) -> Embedding:
    """Embeds captions in the order of their lengths: a batch is cut after its longest."""
    ids = tokenizer(list(captions)).to(model.device)
    order = ids.argmax(1).argsort(stable=True)
    embedding = joined([model.embed_text(part) for part in ids[order].split(256)])
    return Embedding(*(part[order.argsort()] for part in embedding))
