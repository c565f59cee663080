"""Class names -> classifier: prompts are averaged in the embedding space, then compared.

classifier = class_embeddings(model, ["cat", "dog"], ["a photo of a {}."])  # (C, D)
probabilities = class_probabilities(model, model.encode_image(pixels), classifier)
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections import Counter
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

from videoclip.errors import VideoclipError
from videoclip.features.fingerprint import fingerprint
from videoclip.figures.classification import Classification, classification
from videoclip.image_text.features import ImageFeatures, extract
from videoclip.image_text.images import ImageSet
from videoclip.model import VideoCLIP
from videoclip.prompts import Name
from videoclip.tokenizer import Tokenizer
from videoclip.towers.labels import LabelTokenizer


class ZeroShot(NamedTuple):
    """A set of pictures, classified by the names of its classes alone."""

    result: Classification
    images: ImageFeatures
    logits: np.ndarray
    """(N, C) float32; a row of NaN where a picture could not be read."""


@torch.no_grad()
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
    longest; one that is longer than the context loses its end, which is said. With a `store`, a
    folder, they are encoded once for these weights.

    Raises VideoclipError where the weights have another vocabulary than CLIP's, or give vectors
    that are not numbers.
    """
    named = [(name,) if isinstance(name, str) else tuple(name) for name in classes]
    if not named or not templates:
        raise VideoclipError(
            f"there are {len(named)} classes and {len(templates)} templates; give some of both"
        )
    try:
        tokenizer = model.tokenizer()
    except ValueError as error:
        raise VideoclipError(f"the class names cannot be encoded: {error}") from error
    path = None
    if store is not None:
        key = json.dumps([fingerprint(model), named, list(templates)])
        path = store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["classes"].to(model.device)
            except (SafetensorError, KeyError, OSError):
                tqdm.write(f"{path} is damaged; the classes are encoded again", file=sys.stderr)
    sentences = [
        (c, t.replace("{}", n)) for c, ns in enumerate(named) for n in ns for t in templates
    ]
    ids = tokenizer([sentence for _, sentence in sentences])
    lengths = ids.argmax(1) + 1  # the end token has the highest id
    say_what_is_cut(tokenizer, ids, [sentence for _, sentence in sentences])
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
    require_numbers(found, "classes")
    if path is not None:
        _keep(path, found)
    return found


@torch.inference_mode()
def class_logits(model: VideoCLIP, features: Tensor, classifier: Tensor) -> Tensor:
    """Image features (B, D) and a classifier (C, D) -> logits (B, C), scaled as in training.

    Raises VideoclipError where features are not numbers.
    """
    vectors = F.normalize(features.float().to(classifier.device), dim=-1)
    require_numbers(vectors, "pictures")
    logits = model.clip.logit_scale.exp().float() * vectors @ classifier.T
    return logits if model.clip.logit_bias is None else logits + model.clip.logit_bias.float()


def class_probabilities(model: VideoCLIP, features: Tensor, classifier: Tensor) -> Tensor:
    """Image features (B, D) and a classifier (C, D) -> probabilities (B, C), rows sum to 1."""
    return class_logits(model, features, classifier).softmax(dim=-1)


def class_matches(model: VideoCLIP, features: Tensor, classifier: Tensor) -> Tensor:
    """Image features (B, D) and a classifier (C, D) -> how probably each class fits by itself.

    (B, C), the sigmoid of the logits, rows of any sum: what SigLIP is trained for (Zhai et al.
    2023, section 3.2). Raises VideoclipError for a model without `logit_bias`: trained to tell the
    texts of a batch apart, it has no level above which one fits.
    """
    if model.clip.logit_bias is None:
        raise VideoclipError(
            "this model has no logit_bias, so it cannot say of a class by itself whether it fits; "
            "take class_probabilities, which compares the classes"
        )
    return class_logits(model, features, classifier).sigmoid()


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

    Raises ImageError where no picture can be read, VideoclipError where `classes` do not fit the
    set or the weights do not give numbers.
    """
    if batch_size < 1:
        raise VideoclipError(f"the batch size is {batch_size}; give at least 1")
    if classes:
        _require_order(images, classes)
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
    result = classification(logits, images.labels, _spelled(images, classes))
    assert result.ranks.missing.sum() == len(found.unreadable), result.counts()
    return ZeroShot(result, found, logits)


def say_what_is_cut(
    tokenizer: Tokenizer | LabelTokenizer, ids: Tensor, sentences: Sequence[str]
) -> None:
    """Names on stderr how many of the sentences are longer than the context, ids (N, L)."""
    if isinstance(tokenizer, LabelTokenizer):
        return
    context = tokenizer.context_length
    full = (ids.argmax(1) + 1 == ids.shape[1]).nonzero().flatten().tolist()
    if cut := [sentences[i] for i in full if len(tokenizer.encode(sentences[i])) + 2 > context]:
        tqdm.write(
            f"{len(cut)} of {len(sentences)} sentences are longer than the model's {context} "
            f"tokens and lose their end; the first: {cut[0]!r}",
            file=sys.stderr,
        )


def require_numbers(vectors: Tensor, what: str) -> None:
    """Raises VideoclipError where some of the vectors (N, D) of `what` are not numbers."""
    wrong = ~vectors.isfinite().all(dim=-1)
    if bool(wrong.any()):
        raise VideoclipError(
            f"the vectors of {int(wrong.sum())} of {len(vectors)} {what} are not numbers (NaN): "
            "the weights hold such values, or overflow in half precision; load other weights, or "
            "convert the model to float32"
        )


def _keep(path: Path, classifier: Tensor) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"classes": classifier.cpu()}, unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            unfinished.unlink()
        raise VideoclipError(
            f"cannot keep class embeddings in {path.parent}: {error}; free some space or give "
            "another folder"
        ) from error


def _require_order(images: ImageSet, classes: Sequence[Name]) -> None:
    """Refuses names that are too few or many, or of which some belong to another class."""
    if len(classes) != len(images.classes):
        raise VideoclipError(
            f"{len(classes)} class names are given, {images.name} has {len(images.classes)} "
            f"classes ({', '.join(images.classes[:5])}, ...); leave the names out or give a JSON "
            'file {"folder": "name"}'
        )
    own = [_letters(name) for name in images.classes]
    given = [[_letters(n) for n in ([name] if isinstance(name, str) else name)] for name in classes]
    times, owner = Counter(own), {n: i for i, names in enumerate(given) for n in names}
    for place, name in enumerate(own):
        if times[name] == 1 and name not in given[place] and name in owner:
            raise VideoclipError(
                f"the class names are in another order than the classes of {images.name}: its "
                f"class {place + 1} is {images.classes[place]!r}, which is the name of class "
                f'{owner[name] + 1}; give a JSON file {{"folder": "name"}}'
            )


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _spelled(images: ImageSet, classes: Sequence[Name]) -> tuple[str, ...]:
    """What tables call the classes: the prompts' first names; a name of two, with the folder's."""
    if not classes:
        return images.classes
    first = [name if isinstance(name, str) else name[0] for name in classes]
    times = Counter(first)
    both = zip(first, images.classes, strict=True)
    return tuple(f"{name} ({own})" if times[name] > 1 else name for name, own in both)
