"""videoclip: CLIP with a sense of time.

    model = videoclip.load("runs/moving_shapes/models/transformer-seed0")
    scores = model.similarity(videoclip.Tokenizer()(["a dog jumps"]), video, mask)

Everything is imported on first use, so that `videoclip --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoclip.checkpoints.weights import load
    from videoclip.evaluation.predict import classify_video
    from videoclip.experiment import Experiment
    from videoclip.model import Model, VideoCLIP
    from videoclip.tokenizer import Tokenizer

_HOME = {
    "Experiment": "videoclip.experiment",
    "Model": "videoclip.model",
    "Tokenizer": "videoclip.tokenizer",
    "VideoCLIP": "videoclip.model",
    "classify_video": "videoclip.evaluation.predict",
    "load": "videoclip.checkpoints.weights",
}

__all__ = ["Experiment", "Model", "Tokenizer", "VideoCLIP", "classify_video", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'videoclip' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
