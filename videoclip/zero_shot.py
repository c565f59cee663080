"""Class names -> classifier: prompts are averaged in the embedding space, then compared.

classifier = class_embeddings(model, ["cat", "dog"], ["a photo of a {}."])  # (C, D)
probabilities = class_probabilities(model, model.encode_image(pixels), classifier)
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from videoclip.classification import Classification, classification
from videoclip.features import ImageFeatures, extract, fingerprint
from videoclip.images import ImageSet
from videoclip.model import VideoCLIP
from videoclip.prompts import Name


class ZeroShot(NamedTuple):
    """A set of pictures, classified by the names of its classes alone."""

    result: Classification
    images: ImageFeatures
    logits: np.ndarray
    """(N, C) float32; a row of NaN where a picture could not be read."""


@torch.inference_mode()
def class_embeddings(
    model: VideoCLIP,
    classes: Sequence[Name],
    templates: Sequence[str],
    *,
    store: Path | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Class names and templates -> the classifier (C, D), rows of unit length, float32.

    Every sentence is encoded and normalized, the mean of a class is normalized again (Radford et
    al. 2021, section 3.1.4). A class with several names counts all their sentences equally.
    Sentences are encoded in the order of their length: the text tower cuts a batch after its
    longest. With a `store`, a folder, they are encoded once for these weights.

    Raises ValueError where the weights have another vocabulary than CLIP's.
    """
    named = [(name,) if isinstance(name, str) else tuple(name) for name in classes]
    if not named or not templates:
        raise ValueError(f"there are {len(named)} classes and {len(templates)} templates")
    tokenizer = model.tokenizer()
    path = None
    if store is not None:
        key = json.dumps([fingerprint(model), named, list(templates)])
        path = store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["classes"].to(model.device)
            except (SafetensorError, KeyError, OSError):
                tqdm.write(f"{path} is damaged; the classes are encoded again")
    sentences = [
        (c, t.replace("{}", n)) for c, ns in enumerate(named) for n in ns for t in templates
    ]
    ids = tokenizer([sentence for _, sentence in sentences])
    lengths = ids.argmax(1) + 1  # the end token has the highest id
    order = lengths.argsort()
    total = torch.zeros(len(named), model.config.embedding, device=model.device)
    owners = torch.tensor([owner for owner, _ in sentences])
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(order), desc="encoding classes", unit="text", disable=not progress)
    for part in order.split(batch_size):
        cut = int(lengths[part].max())
        vectors = model.encode_text(ids[part, :cut].to(model.device)).float()
        total.index_add_(0, owners[part].to(model.device), F.normalize(vectors, dim=-1))
        bar.update(len(part))
    bar.close()
    model.train(was_training)
    found = F.normalize(total, dim=-1)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        save_file({"classes": found.cpu()}, unfinished)
        unfinished.replace(path)
    return found


@torch.inference_mode()
def class_logits(model: VideoCLIP, features: Tensor, classifier: Tensor) -> Tensor:
    """Image features (B, D) and a classifier (C, D) -> logits (B, C), scaled as in training."""
    vectors = F.normalize(features.float().to(classifier.device), dim=-1)
    logits = model.clip.logit_scale.exp().float() * vectors @ classifier.T
    return logits if model.clip.logit_bias is None else logits + model.clip.logit_bias.float()


def class_probabilities(model: VideoCLIP, features: Tensor, classifier: Tensor) -> Tensor:
    """Image features (B, D) and a classifier (C, D) -> probabilities (B, C), rows sum to 1."""
    return class_logits(model, features, classifier).softmax(dim=-1)


def zero_shot(
    model: VideoCLIP,
    images: ImageSet,
    templates: Sequence[str],
    *,
    classes: Sequence[Name] = (),
    store: Path | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> ZeroShot:
    """Classifies every picture of a set by its class names, or by `classes` in their order.

    Raises ImageError where no picture can be read, ValueError for a wrong number of classes.
    """
    if classes and len(classes) != len(images.classes):
        raise ValueError(
            f"{len(classes)} class names are given, {images.name} has {len(images.classes)} classes"
        )
    classifier = class_embeddings(
        model, classes or images.classes, templates,
        store=store, progress=progress and len(images.classes) > 50,
    )  # fmt: skip
    found = extract(
        model, images, store=store, batch_size=batch_size, label=images.name, progress=progress
    )
    logits = np.full((len(images), len(images.classes)), np.nan, dtype=np.float32)
    rows = class_logits(model, torch.from_numpy(found.features), classifier)
    logits[images.places(found.names)] = rows.cpu().numpy()
    return ZeroShot(classification(logits, images.labels, images.classes), found, logits)
