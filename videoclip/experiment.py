"""An experiment as one tree of settings, and the recipes in `experiments/` that hold them."""

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from videoclip.config import SLOTS, ConfigError, kind, members, nearest
from videoclip.heads import Head
from videoclip.mixers import Mixer
from videoclip.model import Model
from videoclip.scorers import Scorer

Lock = Literal["none", "image", "text"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which clips, and how they become frames."""

    manifest: Path | None = None
    """The clips: a .jsonl or .parquet file. Without one, the recipe makes its own data."""
    images: Path | None = None
    """Image-text pairs to pre-train on; without one, single frames of the training clips."""
    frames: int = 8
    """Frames per clip; shorter clips give what they have."""
    words: int = 32
    """Tokens per caption, its start and end included; longer captions are cut."""
    takes: int = 4
    """How many random draws of frames per training clip are kept, decoded once."""
    crop: float = 0.8
    """In training, the smallest share of a frame's area that a random crop keeps; 1 is all."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights are trained: AdamW, warm-up, then a cosine down to zero."""

    epochs: int = 5
    """Passes over the training data; 0 leaves the weights as they are."""
    batch_size: int = 32
    """Clips or pictures per step; each is the others' negative."""
    tower_rate: float = 1e-5
    """Learning rate of CLIP's own weights."""
    module_rate: float = 1e-4
    """Learning rate of the weights that the temporal modules add."""
    weight_decay: float = 0.2
    """On matrices only: not on gains, biases, positions and the temperature."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    max_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    loss: Literal["clip", "siglip", "kl"] = "clip"
    """clip: symmetric cross-entropy over the batch. siglip: every pair is a yes or no. kl:
    ActionCLIP's, for batches that hold a class several times."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: float32 weights, bfloat16 arithmetic (autocast)."""
    chunk_size: int | None = None
    """Samples embedded at once, where a batch is larger than memory: the gradients stay those of
    the whole batch. None: all at once."""
    checkpointing: Literal["off", "blocks"] = "off"
    """blocks: activations of transformer blocks are computed again instead of kept; a third more
    work, and a seventh of the activations in memory."""
    lock: Lock = "none"
    """A tower that is not trained, its projection included (LiT); the temperature always is."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers with which nothing can be trained."""
        for name, smallest in (("epochs", 0), ("batch_size", 1), ("chunk_size", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"{name} is {value}; it must be at least {smallest}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is {self.warmup}; it is a share of the steps, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides a result besides the seed."""

    model: Model = field(default_factory=Model)
    """The towers and the three slots."""
    data: Data = field(default_factory=Data)
    """Clips and frames."""
    pretrain: Optim = field(default_factory=Optim)
    """Image-text pre-training of the towers; unused where a checkpoint is given."""
    finetune: Optim = field(default_factory=Optim)
    """Video-text training of one row."""


@dataclass(frozen=True, kw_only=True)
class ImageText:
    """Which pictures with captions, and how they become batches."""

    source: str | None = None
    """pairs.csv, pairs.parquet or tar shards, as in 'shards-{000..010}.tar'. Without one, the
    recipe makes its own."""
    words: int | None = None
    """Tokens per caption, its start and end included; longer ones are cut. None: the context."""
    crop: float = 0.9
    """The smallest share of a picture's area that a random crop keeps; 1 is all."""
    workers: int = 2
    """Who reads and decodes pictures ahead of the training; their number changes no result."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """All that decides the result of an image-text pre-training, besides a checkpoint."""

    model: Model = field(default_factory=Model)
    """The towers. The temporal slots are for clips: pictures are clips of one frame."""
    data: ImageText = field(default_factory=ImageText)
    """Pictures with captions."""
    # Radford et al. 2021, tables 18 and 19; they had 32,768 pairs in a batch.
    optim: Optim = field(
        default_factory=lambda: Optim(epochs=32, batch_size=256, tower_rate=5e-4, warmup=0.05)
    )
    """How weights are trained."""
    seed: int = 0
    """Of new weights, order and augmentation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a results table: what it puts into the three slots; None leaves the base's."""

    mixer: Mixer | None = None
    """Inside the tower."""
    head: Head | None = None
    """Over time."""
    scorer: Scorer | None = None
    """With the text."""

    def of(self, base: Experiment) -> Experiment:
        """The base experiment with this row's modules.

        Raises ConfigError where the base's tower has no place for one of them.
        """
        chosen = {slot: getattr(self, slot) for slot in SLOTS if getattr(self, slot) is not None}
        try:
            return replace(base, model=replace(base.model, **chosen))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def row_named(name: str, rows: dict[str, Row]) -> Row:
    """The row of a recipe, or one made of slot members: `lstm`, `shift+transformer`.

    Raises ConfigError for an unknown name (with the nearest known one) and for two members of one
    slot.
    """
    if name in rows:
        return rows[name]
    known = {k: (slot, m) for slot, base in SLOTS.items() for k, m in members(base).items()}
    chosen = {}
    for part in name.split("+"):
        if part not in known:
            raise ConfigError(f"no module is named {part!r}; {nearest(part, {*rows, *known})}")
        slot, member = known[part]
        if slot in chosen:
            raise ConfigError(
                f"{name!r} puts both {kind(type(chosen[slot]))!r} and {part!r} into the slot "
                f"{slot!r}; choose one"
            )
        chosen[slot] = member()
    return Row(**chosen)


def recipe_named(name: str) -> ModuleType:
    """The recipe `experiments/NAME.py`. Raises ConfigError with the nearest name."""
    import experiments

    known = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
    if name not in known:
        raise ConfigError(f"no recipe is named {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"experiments.{name}")
