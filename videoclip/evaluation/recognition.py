"""Clips and class names -> class probabilities: recognition by sentences about the classes.

ActionCLIP's rule (Wang et al. 2021, and its released test): every template is filled with every
class; a softmax over the classes makes each template's scores probabilities, and these are averaged
over the templates, then over the views of a clip. CLIP's rule averages the sentences of a class
before they are compared.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.distributed import gather_objects, main_process, rank, world_size
from videoclip.errors import VideoclipError
from videoclip.evaluation.evaluate import SLOW, embed_captions
from videoclip.features.store import Store
from videoclip.figures.classification import Classification, classification
from videoclip.figures.metrics import check_counts
from videoclip.frames.loader import collate
from videoclip.frames.sampling import FrameOrder, frame_order
from videoclip.frames.views import Views
from videoclip.image_text.zero_shot import class_embeddings, require_numbers, say_what_is_cut
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.scorers import Cosine
from videoclip.tasks.action_protocols import Part
from videoclip.types import Embedding, Features, Frames, on_device

Ensemble = Literal["mean", "embeddings"]
Temperature = Literal["reference", "model"]
Probabilities = dict[str, np.ndarray]
"""By video id, those of C classes (C,) float32."""
REFERENCE = 100.0
"""What ActionCLIP's test multiplies cosines with, whatever exp(logit_scale) became in training."""


class Recognition(NamedTuple):
    """What a model says about clips: the probability of every class, and the figures."""

    result: Classification
    clips: tuple[Clip, ...]
    """N clips, the readable and the unreadable."""
    scores: np.ndarray
    """(N, C) float32 class probabilities; a row of NaN where a clip could not be read."""
    counts: str
    """The line 'expected = scored + bad', which was checked."""
    ms_per_clip: float
    """Median milliseconds to embed one clip, all its views, decoding excluded."""


def evaluate_actions(
    model: VideoCLIP,
    clips: Sequence[Clip],
    store: Store,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    names: Sequence[str] = (),
    views: Views | None = None,
    order: FrameOrder = "normal",
    probabilities: Ensemble = "mean",
    temperature: Temperature = "reference",
    batch_size: int = 32,
    takes: int = 1,
    tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
) -> Recognition:
    """Says of every clip which of the classes it shows, each clip once.

    Templates are filled with `names`, which spell the classes in their order, or with the classes
    themselves. probabilities: the mean over the templates, or those of one sentence a class whose
    embedding is the mean of all (CLIP's rule). temperature: cosines times 100 (ActionCLIP's test)
    or times the model's own exp(logit_scale), which differ in how sure the model looks and in how
    several templates or views weigh. Without `views` take 0 of the store is read. `batch_size`
    counts views. `tokenizer` may stand for the model's, such as one that gives the texts' features.

    A clip that could not be decoded (`store.unreadable`) stays in the count, as wrong. Where
    processes work together each embeds its share and all get the same result.

    Raises VideoclipError where no clip can be read or a label is none of the classes.
    """
    [found] = evaluate_parts(
        model, [Part("the clips", tuple(clips), tuple(classes))], store, templates,
        names=dict(zip(classes, names or classes, strict=True)), views=views, order=order,
        probabilities=probabilities, temperature=temperature, batch_size=batch_size, takes=takes,
        tokenizer=tokenizer,
    )  # fmt: skip
    return found


def evaluate_parts(
    model: VideoCLIP,
    parts: Sequence[Part],
    store: Store,
    templates: Sequence[str],
    *,
    names: Mapping[str, str],
    views: Views | None = None,
    order: FrameOrder = "normal",
    probabilities: Ensemble = "mean",
    temperature: Temperature = "reference",
    batch_size: int = 32,
    takes: int = 1,
    tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
) -> list[Recognition]:
    """The parts of a protocol, each as `evaluate_actions` scores it.

    A clip that is in several is embedded once; the softmax of each part is over its own classes.
    `names` spells every class.
    """
    for part in parts:
        _require_labels(part)
    found, ms = part_probabilities(
        model, parts, store, templates, names=names, views=views, order=order,
        probabilities=probabilities, temperature=temperature, batch_size=batch_size, takes=takes,
        tokenizer=tokenizer,
    )  # fmt: skip
    shown = zip(parts, found, strict=True)
    return [_recognition(part, shares, store.unreadable, ms) for part, shares in shown]


@torch.no_grad()
def part_probabilities(
    model: VideoCLIP,
    parts: Sequence[Part],
    store: Store,
    templates: Sequence[str],
    *,
    names: Mapping[str, str],
    views: Views | None = None,
    order: FrameOrder = "normal",
    probabilities: Ensemble = "mean",
    temperature: Temperature = "reference",
    batch_size: int = 32,
    takes: int = 1,
    tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
) -> tuple[list[list[Probabilities]], float]:
    """The class probabilities of each part's readable clips, labelled or not, by their ids.

    One mapping per process that has scored some of them; also the median milliseconds a clip.
    """
    for unreadable in gather_objects(store.unreadable):  # what one process cannot read, none can
        store.unreadable |= unreadable
    clips = {clip.video_id: clip for part in parts for clip in part.clips}
    readable = [clip for clip in clips.values() if clip.video_id not in store.unreadable]
    if not readable:
        reason = next(iter(store.unreadable.values()), "there are no clips")
        raise VideoclipError(f"none of the {len(clips)} clips can be read; the first: {reason}")
    was_training = model.training
    model.eval()
    place = {name: number for number, name in enumerate(names)}
    texts = class_texts(model, tuple(names.values()), templates, probabilities, tokenizer)
    asked = [
        ({clip.video_id for clip in part.clips}, [place[name] for name in part.classes])
        for part in parts
    ]
    found: list[Probabilities] = [{} for _ in parts]
    milliseconds = []
    size = max(1, batch_size // (views.clips * views.crops if views else 1))
    batches = [readable[start : start + size] for start in range(0, len(readable), size)]
    # The batches are the same however many processes share them: so is every last bit.
    own = batches[rank() :: world_size()]
    bar = tqdm(own, "scoring", unit="batch", delay=SLOW, leave=False, disable=not main_process())
    for rows in bar:
        frames = _frames(rows, store, views, order, takes)
        began = time.perf_counter()
        video = model.embed_video(on_device(frames, model.device))
        require_numbers(video.vector, "views of clips")  # which also waits for the device
        milliseconds.append(1000 * (time.perf_counter() - began) / len(rows))
        logits = class_logits(model, texts, video, len(names), temperature)
        logits = logits.unflatten(0, (len(rows), -1)).cpu()
        for (ids, chosen), scores in zip(asked, found, strict=True):
            inside = [at for at, clip in enumerate(rows) if clip.video_id in ids]
            means = action_probabilities(logits[inside][..., chosen]).mean(1).numpy()
            scores.update(zip((rows[at].video_id for at in inside), means, strict=True))
    model.train(was_training)
    shares = gather_objects((found, milliseconds))
    # The first batch also pays for warming up.
    taken = [ms for _, timed in shares for ms in (timed[1:] or timed)]
    return [[scores[at] for scores, _ in shares] for at in range(len(parts))], median(taken)


def class_texts(
    model: VideoCLIP,
    names: Sequence[str],
    templates: Sequence[str],
    probabilities: Ensemble = "mean",
    tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
) -> Embedding:
    """C class names in K templates -> K * C texts, the first template's classes first.

    Averaged embeddings are C texts, of unit length. A sentence that is longer than the context
    loses its end, which is said.

    Raises VideoclipError where a scorer cannot compare averaged embeddings.
    """
    if probabilities == "embeddings":
        if not isinstance(model.config.scorer, Cosine):
            raise VideoclipError(
                f"this model compares with {type(model.config.scorer).__name__}, which takes "
                "sentences and not their average; average the probabilities instead"
            )
        vectors = class_embeddings(model, names, templates, progress=len(names) > 50)
        one = torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)
        return Embedding(vectors, vectors[:, None], one)
    ids = model.tokenizer()
    sentences = [template.replace("{}", name) for template in templates for name in names]
    say_what_is_cut(ids, ids(sentences), sentences)
    return embed_captions(model, sentences, tokenizer or ids)


def class_logits(
    model: VideoCLIP,
    texts: Embedding,
    video: Embedding,
    classes: int,
    temperature: Temperature = "reference",
) -> Tensor:
    """K * C texts as of `class_texts` and V clips -> (V, K, C) float32.

    `temperature` is for cosines; tight fusion has none, its logits are taken as they are.
    """
    if temperature == "reference" and isinstance(model.config.scorer, Cosine):
        scale = torch.tensor(REFERENCE, device=model.device).log()
        scores = model.scorer(texts, video, scale)
    else:
        scores = model.score(texts, video).float()
    return scores.T.unflatten(1, (-1, classes))


def action_probabilities(logits: Tensor) -> Tensor:
    """(..., K, C) -> (..., C): the softmax over the classes, averaged over the templates."""
    return logits.softmax(dim=-1).mean(dim=-2)


def _frames(
    clips: Sequence[Clip], store: Store, views: Views | None, order: FrameOrder, takes: int
) -> Frames | Features:
    """All views of the clips, those of a clip side by side: (B * views, T, ...)."""
    shown = []
    for clip in clips:
        every = store.read_views(clip, views) if views else store.read(clip, takes)[None]
        new_order = frame_order(every.shape[1], order, sample=clip.video_id)
        shown += list(every[:, new_order])
    return collate(shown)


def _recognition(
    part: Part, shares: Sequence[Probabilities], unreadable: Mapping[str, str], ms: float
) -> Recognition:
    """Puts together what the processes have found about a part, and counts."""
    ids = [clip.video_id for clip in part.clips]
    missed = [video_id for video_id in ids if video_id in unreadable]
    if len(missed) == len(ids):
        raise VideoclipError(f"none of the {len(ids)} clips of {part.name} can be read")
    check_counts(ids, [*(name for found in shares for name in found), *missed])
    scored = {name: row for found in shares for name, row in found.items()}
    nothing = np.full(len(part.classes), np.nan, dtype=np.float32)
    scores = np.stack([scored.get(video_id, nothing) for video_id in ids])
    place = {name: number for number, name in enumerate(part.classes)}
    labels = np.array([place[str(clip.label)] for clip in part.clips])
    result = classification(scores, labels, part.classes, probabilities=True)
    return Recognition(result, part.clips, scores, result.counts(), ms)


def _require_labels(part: Part) -> None:
    unknown = sorted({str(clip.label) for clip in part.clips} - set(part.classes))
    if unknown:
        raise VideoclipError(
            f"{len(unknown)} labels of {part.name} are none of its {len(part.classes)} classes, "
            f"such as {', '.join(unknown[:3])}; list all classes, spelled as the labels"
        )
