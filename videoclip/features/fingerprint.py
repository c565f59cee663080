"""Weights -> a name: what kept features depend on."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videoclip.config import to_json
from videoclip.model import VideoCLIP

OF_NEITHER = ("logit_scale", "logit_bias")
"""Parameters of CLIP that belong to none of its towers."""


def fingerprint(model: VideoCLIP) -> str:
    """A hash of a model's weights and configuration."""
    return _hash(to_json(model.config), model.state_dict())


def visual_fingerprint(model: VideoCLIP) -> str:
    """A hash of all that features of single frames depend on: the vision tower and its pixels."""
    config = model.config
    settings = [to_json(part) for part in (config.visual, config.embedding, config.pixels)]
    return _hash(settings, model.clip.visual.state_dict())


def text_fingerprint(model: VideoCLIP) -> str:
    """A hash of all that features of texts depend on."""
    weights = {
        name: value
        for name, value in model.clip.state_dict().items()
        if not name.startswith("visual.") and name not in OF_NEITHER
    }
    return _hash([to_json(model.config.text), model.config.embedding], weights)


def _hash(settings: Any, weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(str(settings).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        # As bytes: numpy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
