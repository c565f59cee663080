"""A model and the clips of a split -> the rank of every query: the figures of either task.

One line per query, whatever the task: a caption that looks for its clip, a clip that looks for its
caption, or a clip that looks for its class. Tables and intervals are made from these lines alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from videoclip.evaluation.evaluate import DIRECTIONS, Evaluation, FrameOrder, evaluate
from videoclip.evaluation.recognition import evaluate_actions
from videoclip.features.store import Store
from videoclip.features.texts import TextFeatures
from videoclip.figures.metrics import Ranks, tie_note
from videoclip.frames.views import Views
from videoclip.manifest import Clip, sources
from videoclip.model import VideoCLIP
from videoclip.prompts import templates_of
from videoclip.tasks import Recognition, Task
from videoclip.tasks.action_protocols import spelled

SHOWN = 3
"""Answers that a gallery shows for a query."""
WORST = 10
"""How many of the queries that went worst are shown."""


class Measured(NamedTuple):
    """What a model says about a split."""

    ranks: pd.DataFrame
    """One line per direction and query."""
    selection: float
    """What a model is chosen by on validation; higher is better."""
    counts: str
    """The line 'expected = ...', which was checked."""
    ms_per_clip: float
    """Median milliseconds to embed one clip, decoding excluded."""
    tie_notes: dict[str, str]
    """By direction, where ties matter."""
    gallery: dict[str, list[dict[str, Any]]]
    """Some queries that were right and some that were wrong."""
    worst: list[dict[str, Any]]
    """The queries whose answer came last, in the same form."""
    scores: np.ndarray
    """(Q, V) of the queries, in the order of their answers, with every answer."""


def measure(
    model: VideoCLIP,
    task: Task,
    clips: Sequence[Clip],
    store: Store,
    *,
    words: int,
    classes: Sequence[str],
    views: Views | None = None,
    order: FrameOrder = "normal",
    texts: TextFeatures | None = None,
) -> Measured:
    """Scores every clip of a split once and ranks the answers.

    Retrieval reads captions of up to `words` tokens; recognition chooses among `classes`, and
    averages the probabilities of `views` where they are given. With `texts` no text is read twice.
    """
    read = texts or model
    if isinstance(task, Recognition):
        return _actions(model, task, clips, store, classes, views, order, read.tokenizer())
    found = evaluate(model, clips, store, read.tokenizer(words), order=order)
    recalls = [
        value
        for metrics in found.metrics().values()
        for name, value in metrics.items()
        if name.startswith("R@")
    ]
    gallery = _retrieved(found)
    worst = gallery.pop("worst")
    return Measured(
        ranks=rank_table({order: found}),
        selection=float(np.mean(recalls)),
        counts=found.counts,
        ms_per_clip=found.ms_per_clip,
        tie_notes={d: note for d, ranks in found.ranks.items() if (note := tie_note(ranks))},
        gallery=gallery,
        worst=worst,
        scores=found.scores,
    )


def _actions(
    model: VideoCLIP,
    task: Recognition,
    clips: Sequence[Clip],
    store: Store,
    classes: Sequence[str],
    views: Views | None,
    order: FrameOrder,
    tokenizer: Callable[[Sequence[str]], Tensor],
) -> Measured:
    found = evaluate_actions(
        model, clips, store, classes, templates_of(task.templates),
        names=spelled(classes, task.names), views=views, order=order, tokenizer=tokenizer,
    )  # fmt: skip
    result = found.result
    [direction] = task.measure.directions
    note = tie_note(result.ranks)
    table = _lines(
        direction, order, [clip.video_id for clip in clips], np.arange(len(clips)), clips,
        result.ranks,
    )  # fmt: skip
    gallery = _recognized(found.scores, clips, classes, result.ranks)
    worst = gallery.pop("worst")
    return Measured(
        ranks=table.assign(label=[clip.label for clip in clips]),
        selection=result.metrics()["top-1"],
        counts=found.counts,
        ms_per_clip=found.ms_per_clip,
        tie_notes={direction: note} if note else {},
        gallery=gallery,
        worst=worst,
        scores=found.scores[np.argsort(result.labels, kind="stable")],
    )


def rank_table(found: Mapping[FrameOrder, Evaluation]) -> pd.DataFrame:
    """One line per frame order, direction and query: its rank and the clip that it is about."""
    parts = []
    for order, evaluation in found.items():
        for direction in DIRECTIONS:
            by_text = direction == "text_to_video"
            owners = evaluation.video_of_caption if by_text else np.arange(len(evaluation.clips))
            ids = [evaluation.clips[i].video_id for i in owners]
            queries = evaluation.captions if by_text else ids
            ranks = evaluation.ranks[direction]
            parts.append(_lines(direction, order, queries, owners, evaluation.clips, ranks))
    return pd.concat(parts, ignore_index=True)


def _lines(
    direction: str,
    order: FrameOrder,
    queries: Sequence[str],
    owners: np.ndarray,
    clips: Sequence[Clip],
    ranks: Ranks,
) -> pd.DataFrame:
    owned, drawn = [clips[i] for i in owners], sources(clips)
    return pd.DataFrame(
        {
            "frame_order": order,
            "direction": direction,
            "query": queries,
            "video": owners,
            "source": [drawn[i] for i in owners],
            "video_id": [clip.video_id for clip in owned],
            "group": [clip.group or "" for clip in owned],
            "rank": ranks.rank,
            "optimistic": ranks.optimistic,
            "pessimistic": ranks.pessimistic,
            "missing": ranks.missing,
            "candidates": ranks.candidates,
        }
    )


def _retrieved(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    def item(query: int) -> dict[str, Any]:
        scores = evaluation.scores[query]
        truth = int(evaluation.video_of_caption[query])
        return {
            "query": evaluation.captions[query],
            "truth": evaluation.clips[truth].video_id,
            "rank": float(evaluation.ranks["text_to_video"].rank[query]),
            "retrieved": [
                {
                    "video_id": evaluation.clips[v].video_id,
                    "score": round(float(scores[v]), 3),
                    "correct": bool(v == truth),
                }
                for v in _best(scores)
            ],
        }

    spread = _spread(evaluation.ranks["text_to_video"])
    return {name: [item(query) for query in chosen] for name, chosen in spread.items()}


def _recognized(
    scores: np.ndarray, clips: Sequence[Clip], classes: Sequence[str], ranks: Ranks
) -> dict[str, list[dict[str, Any]]]:
    def item(query: int) -> dict[str, Any]:
        clip = clips[query]
        return {
            "query": f"{clip.video_id}: {clip.label}",
            "truth": clip.video_id,
            "rank": float(ranks.rank[query]),
            "answers": [
                {
                    "label": classes[c],
                    "score": round(float(scores[query, c]), 3),
                    "correct": classes[c] == clip.label,
                }
                for c in _best(scores[query])
            ],
        }

    spread = _spread(ranks)
    return {name: [item(query) for query in chosen] for name, chosen in spread.items()}


def _best(scores: np.ndarray) -> list[int]:
    """The places of the highest scores; what has none (NaN) is no answer."""
    best = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:SHOWN]
    return [int(place) for place in best if not np.isnan(scores[place])]


def _spread(ranks: Ranks, count: int = 6) -> dict[str, list[int]]:
    """Some queries that were right, some that were wrong, and those that went worst.

    The first two are spread evenly over all of their kind.
    """
    right = (ranks.rank <= 1) & ~ranks.missing
    found = {}
    for name, chosen in (("right", np.flatnonzero(right)), ("wrong", np.flatnonzero(~right))):
        places = np.linspace(0, len(chosen) - 1, min(count, len(chosen)))
        found[name] = [int(q) for q in chosen[np.unique(places.astype(int))]] if len(chosen) else []
    last = np.argsort(-ranks.rank, kind="stable")[:WORST]
    found["worst"] = [int(query) for query in last if ranks.rank[query] > 1]
    return found
