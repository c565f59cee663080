"""An experiment as one tree of settings, and the recipes in `experiments/` that hold them."""

import importlib
import math
import pkgutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from videoclip.config import SLOTS, ConfigError, kind, members
from videoclip.errors import nearest
from videoclip.frames.loader import BadSamples
from videoclip.frames.sampling import Rule
from videoclip.heads import Head
from videoclip.mixers import Mixer
from videoclip.model import Model
from videoclip.scorers import Scorer
from videoclip.tasks import Recognition, Retrieval, Task
from videoclip.towers import Labels, Language, Visual

Lock = Literal["none", "image", "text", "both"]


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
    sampling: Rule = "segments"
    """segments: from equal parts of the clip, at random in training. actionclip: the same, but
    clips with too few frames repeat some. seconds: one a second, then evenly chosen, as CLIP4Clip
    has it; the same in training."""
    takes: int = 4
    """How many random draws of frames per training clip are kept, decoded once."""
    augment: Literal["crop", "actionclip", "actionclip-randaugment"] = "crop"
    """What changes the frames of a training clip. crop: a random part of them. actionclip: its
    cuts, mirroring, colors and grays; with -randaugment as on Kinetics."""
    crop: float = 0.8
    """With augment crop, the smallest share of a frame's area that is kept; 1 is all. Where a
    locked vision tower is passed once, augmentations are drawn once per take, not every epoch."""
    features: Literal["float32", "float16"] = "float32"
    """How features of a locked vision tower are kept; float16 takes half of the space."""
    workers: int = 2
    """Who reads and changes frames ahead of the training; their number changes no result."""
    bad_samples: BadSamples = "skip"
    """What becomes of a training clip that could be read at first and no longer can, each counted
    and listed. skip: another one, drawn by (seed, epoch, clip), takes its place. zero: its batch
    goes without it, in rows and columns of the loss. fail: training ends."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights are trained; docs/precision.md has the published recipes."""

    epochs: int = 5
    """Passes over the training data; 0 leaves the weights as they are."""
    batch_size: int = 32
    """Clips or pictures per step; each is the others' negative."""
    tower_rate: float = 1e-5
    """Learning rate of CLIP's own weights."""
    module_rate: float = 1e-4
    """Learning rate of the weights that the temporal modules add."""
    visual_ratio: float = 1.0
    """The vision tower's learning rate is this many times tower_rate."""
    layer_decay: float = 1.0
    """Every block of a tower learns this many times as fast as the one above it, patches, words
    and positions slower still; 1 is all alike."""
    freeze_layers: int | None = None
    """So many first blocks of both towers, and all below them, are not trained (CLIP4Clip's
    freeze_layer_num). 0: only words, patches and positions are not. None or -1: all are trained."""
    optimizer: Literal["adamw", "bertadam", "sgd"] = "adamw"
    """bertadam: CLIP4Clip's, Adam without correction of the first steps. sgd: momentum 0.9."""
    epsilon: float | None = None
    """What Adam adds to the root of the second moment. None: CLIP's, 1e-6 for a ViT and 1e-8 for a
    ResNet; ActionCLIP has 1e-8."""
    weight_decay: float = 0.2
    """The share of a weight that a step takes away, times the learning rate."""
    decay: Literal["matrices", "weights", "all"] = "matrices"
    """What decays. matrices: not gains, biases, positions, embeddings and the temperature.
    weights: all but biases, as in CLIP4Clip. all: everything, as in ActionCLIP."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "clip4clip", "actionclip", "constant"] = "cosine"
    """After the warm-up: a cosine down to zero, or a constant. clip4clip: the cosine began with the
    warm-up, so it starts lower. actionclip: the rate changes every ten steps."""
    max_norm: float | None = 1.0
    """The gradient is scaled down to this norm; None: it stays as it is, as in ActionCLIP."""
    loss: Literal["clip", "siglip", "kl", "ce"] = "clip"
    """clip: symmetric cross-entropy over the batch. siglip: every pair is a yes or no. kl:
    ActionCLIP's, for batches that hold a class several times. ce: cross-entropy of every clip over
    the sentences of all classes."""
    precision: Literal["bf16", "fp16", "fp32", "reference-fp16"] = "bf16"
    """bf16: float32 weights, bfloat16 arithmetic; slow on most CPUs. fp16: float16 arithmetic, with
    a loss that is scaled; for GPUs without bfloat16. reference-fp16: CLIP's weights in half
    precision, as CLIP4Clip (bertadam) and ActionCLIP (adamw) train them."""
    chunk_size: int | None = None
    """Samples embedded at once, where a batch is larger than memory: the gradients stay those of
    the whole batch. None: all at once."""
    scores: Literal["whole", "own"] = "whole"
    """What each of several processes holds of the scores. whole: those of the batch, gathered.
    own: its rows and columns, with less memory for large batches. The gradients are the same."""
    checkpointing: Literal["off", "blocks"] = "off"
    """blocks: activations of transformer blocks are computed again instead of kept; a third more
    work, and a seventh of the activations in memory."""
    lock: Lock = "none"
    """A tower that is not trained, its projection included (LiT); the temperature always is. both:
    only heads, scorers and mixers learn."""
    stochastic_depth: float = 0.0
    """How often the last transformer block of a tower or head lets a sample pass by each of its
    halves in training; blocks below do so less often, in a straight line to zero below the first
    one (Huang et al. 2016)."""
    ema: float | None = None
    """The decay of a moving average of the weights, such as 0.999: the averages are validated and
    kept. None: the weights themselves are."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers with which nothing can be trained."""
        for name, smallest in (
            ("epochs", 0), ("batch_size", 1), ("chunk_size", 1), ("freeze_layers", -1)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"{name} is {value}; it must be at least {smallest}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is {self.warmup}; it is a share of the steps, 0 to 1")
        for name in ("tower_rate", "module_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("visual_ratio", "layer_decay", "epsilon", "max_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        for name in ("stochastic_depth", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 0 and below 1")
        if self.epsilon is not None and self.optimizer == "sgd":
            raise ConfigError(f"epsilon is {self.epsilon}, but optimizer 'sgd' reads none; drop it")


def deciding(optim: dict[str, Any], visual: dict[str, Any]) -> dict[str, Any]:
    """Of an `Optim` as JSON, what decides a result under this tower: not what only saves memory."""
    saves = {"checkpointing", "scores"}
    if visual["kind"] == "vit":  # the others have batch normalization, which sees one chunk
        saves.add("chunk_size")
    return {name: value for name, value in optim.items() if name not in saves}


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a training is carried out; nothing here decides its result."""

    features: Path | None = None
    """Where features of locked towers are kept; other runs, and videoclip embed, may share them.
    None: in the run folder."""
    save_minutes: float = 10.0
    """How much work a kill may cost."""
    keep_last: int = 2
    """How many states are kept; if the newest turns out to be damaged, there is another."""
    resume: Literal["auto", "never"] = "auto"
    """auto: a run goes on where its folder says that it stopped. never: its states are deleted, and
    it starts anew."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    stuck_seconds: float = 300.0
    """A process that reads one sample for so long is ended, and another one reads it again."""
    report: Literal["tensorboard", "wandb"] = "tensorboard"
    """Where the numbers go beside metrics.jsonl; wandb must be installed by you."""
    bad_steps: int = 10
    """After so many steps in a row whose loss or gradient is not finite, the run ends."""
    engine: Literal["plain", "deepspeed"] = "plain"
    """What trains: plain PyTorch, or DeepSpeed, which spreads what training keeps in memory."""
    zero: Literal[0, 1, 2, 3] = 1
    """ZeRO's stage under DeepSpeed. What is spread over the processes: 1 the optimizer's moments, 2
    the gradients too, 3 the weights too; 0 nothing."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in the memory of the processor: the moments and their step, from zero 1
    on, or with zero 3 all weights too."""
    deepspeed_config: Path | None = None
    """A JSON file of DeepSpeed's own. It may fine-tune what the settings leave open; where both say
    something they must agree, and "auto" takes the settings'."""
    compile: Literal["off", "blocks"] = "off"
    """blocks: torch.compile turns transformer blocks and heads into faster code. The first steps
    wait for it, it needs a C++ compiler on a processor, and last digits change."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers with which no run can be carried out."""
        for name in ("keep_last", "log_every", "bad_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.engine == "plain":
            for name, without in (("zero", 1), ("offload", "none"), ("deepspeed_config", None)):
                if getattr(self, name) != without:
                    raise ConfigError(
                        f"{name} is {getattr(self, name)!r}, but engine 'plain' has none; set "
                        "--run.engine deepspeed"
                    )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides a result besides the seed, and how it is carried out."""

    task: Task = field(default_factory=Retrieval)
    """What is trained for and measured: retrieval or recognition."""
    model: Model = field(default_factory=Model)
    """The towers and the three slots."""
    data: Data = field(default_factory=Data)
    """Clips and frames."""
    pretrain: Optim = field(default_factory=Optim)
    """Image-text pre-training of the towers; unused where a checkpoint is given."""
    finetune: Optim = field(default_factory=Optim)
    """Video-text training of one row."""
    selection: Literal["best", "last"] = "best"
    """Which weights are kept. best: of the epoch that is best on the validation split, never on the
    test split. last: of the last epoch, where a data set has no validation split."""
    run: Run = field(default_factory=Run)
    """How training is carried out."""


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
    run: Run = field(default_factory=Run)
    """How training is carried out."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a results table: what it changes in the base; None leaves the base's."""

    visual: Visual | None = None
    """The vision tower."""
    text: Language | None = None
    """The text side; a video network has labels."""
    mixer: Mixer | None = None
    """Inside the tower."""
    head: Head | None = None
    """Over time."""
    scorer: Scorer | None = None
    """With the text."""
    frames: int | None = None
    """Frames per clip."""
    published: str | None = None
    """What a paper reports for this line, and which one; shown beside our figure."""

    def of(self, base: Experiment) -> Experiment:
        """The base experiment with this row's changes.

        Raises ConfigError where the base's tower has no place for one of the modules.
        """
        names = ("visual", "text", *SLOTS)
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        data = replace(base.data, frames=self.frames) if self.frames else base.data
        try:
            model = replace(base.model, **chosen)
            if not isinstance(model.text, Labels):
                return replace(base, model=model, data=data)
            if not isinstance(base.task, Recognition):
                raise ConfigError("a model without a text tower can recognize, but not retrieve")
            # A class is its name there, not a sentence about it.
            return replace(base, model=model, data=data, task=replace(base.task, templates=("{}",)))
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
