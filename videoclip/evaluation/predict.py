"""Any clips and any labels -> probabilities: recognition without a manifest and without training.

    model = videoclip.load("ViT-B/32")
    videoclip.classify_video(model, "clip.mp4", ["juggling", "playing the piano"])

A clip is read and scored exactly as `videoclip evaluate recognition` does it.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from videoclip.errors import VideoclipError, VideoError
from videoclip.evaluation.recognition import Ensemble, Temperature, part_probabilities
from videoclip.frames.store import FrameStore
from videoclip.frames.views import views_named
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.prompts import templates_of
from videoclip.tasks.action_protocols import Part

ACTIONS = ("actionclip",)
"""The templates where the weights name none."""
FRAMES = 8
"""Frames a clip where the weights do not say."""


def classify_video(
    model: VideoCLIP,
    video: str | Path,
    labels: Sequence[str],
    *,
    templates: Sequence[str] = (),
    frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> dict[str, float]:
    """How probable each label is for a video file, or for its part of `start` to `end` seconds.

    The most probable first; they sum to 1 also where none fits. `templates` are sentences with {}
    or the name of a published set; where none are given those of the weights, else ActionCLIP's 16.
    `frames` are spread over the clip; where none are given as many as the weights were trained on.

    Raises VideoError where the file cannot be read.
    """
    path = Path(video)
    clip = Clip(str(path), path.absolute(), start=start, end=end)
    rows, unreadable = classify_clips(model, [clip], labels, templates=templates, frames=frames)
    if unreadable:
        raise VideoError(unreadable[clip.video_id])
    best = np.argsort(-rows[0], kind="stable")
    return {labels[place]: float(rows[0][place]) for place in best}


def classify_clips(
    model: VideoCLIP,
    clips: Sequence[Clip],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = (),
    frames: int | None = None,
    views: str = "none",
    probabilities: Ensemble = "mean",
    temperature: Temperature = "reference",
    batch_size: int = 32,
) -> tuple[np.ndarray, dict[str, str]]:
    """N clips and C labels -> probabilities (N, C), NaN where a clip cannot be read, and why.

    `views` are clips in time x crops in space whose probabilities are averaged, such as 4x3; the
    other settings are those of `videoclip.evaluation.recognition.evaluate_actions`.

    Raises VideoclipError where there is nothing to choose from.
    """
    if isinstance(labels, str) or not labels or len(set(labels)) < len(labels):
        raise VideoclipError(
            f"the labels are {labels!r}; give a list of different texts, such as "
            "['juggling', 'playing the piano']"
        )
    model.tokenizer()  # a vocabulary that is not CLIP's is refused before anything is decoded
    sentences = templates_of(templates or model.config.templates or ACTIONS)
    size = model.config.visual.image_size
    shown = None if views == "none" else views_named(views, size=size)
    scores = np.full((len(clips), len(labels)), np.nan, dtype=np.float32)
    with TemporaryDirectory(prefix="videoclip-") as folder:
        store = FrameStore(
            Path(folder),
            size=size,
            frames=frames or model.config.frames or FRAMES,
            fit=model.config.pixels.fit,
        )
        if shown:
            readable = store.fill_views(clips, shown, "clips")
        else:
            readable = store.fill(clips, 1, "clips")
        if readable:
            [found], _ = part_probabilities(
                model, [Part("the clips", tuple(readable), tuple(labels))], store, sentences,
                names={label: label for label in labels}, views=shown,
                probabilities=probabilities, temperature=temperature, batch_size=batch_size,
            )  # fmt: skip
            rows = {video_id: row for share in found for video_id, row in share.items()}
            for place, clip in enumerate(clips):
                scores[place] = rows.get(clip.video_id, np.nan)
    return scores, store.unreadable
