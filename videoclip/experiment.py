"""An experiment as one tree of settings, and the recipes in `experiments/` that hold them."""

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from videoclip.config import SLOTS, ConfigError, kind, members, nearest
from videoclip.heads import Head
from videoclip.mixers import Mixer
from videoclip.model import Model
from videoclip.scorers import Scorer


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
    """Passes over the training clips; 0 leaves the weights as they are."""
    batch_size: int = 32
    """Clips per step; each is the others' negative."""
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
class Row:
    """One line of a results table: what it puts into the three slots; None leaves the base's."""

    mixer: Mixer | None = None
    """Inside the tower."""
    head: Head | None = None
    """Over time."""
    scorer: Scorer | None = None
    """With the text."""

    def of(self, base: Experiment) -> Experiment:
        """The base experiment with this row's modules."""
        chosen = {slot: getattr(self, slot) for slot in SLOTS if getattr(self, slot) is not None}
        return replace(base, model=replace(base.model, **chosen))


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
