"""Times CLIP here beside transformers and open_clip in one run, and how near to the peak each is.

Run: .venv/bin/python scripts/bench_clip.py --json bench.json --picture bench.png
"""

import copy
import dataclasses
import functools
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import open_clip
import torch
import torch.nn.functional as F
import tyro
from benchmark import PEAK, UNCOUNTED, digits, machine, markdown, sentences, versions
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoModel, CLIPConfig

from videoclip.checkpoints import hugging_face, layouts
from videoclip.checkpoints.named import architecture
from videoclip.layers import attention_heads
from videoclip.model import Model, VideoCLIP
from videoclip.towers import ViT
from videoclip.training.losses import contrastive
from videoclip.types import Frames

Type = Literal["float32", "bfloat16"]
Name = Literal["images", "texts", "texts, one long", "training", "training, one long"]
FORWARD: tuple[Name, ...] = ("images", "texts", "texts, one long")
TRAINING: tuple[Name, ...] = ("training", "training, one long")
OURS = "ours"
SAME = {"float32": 1e-5, "bfloat16": 0.05}
"""How far channels of unit-length features, and losses, may be apart."""
SHORTEST = 0.05
"""Seconds: a shorter call is repeated until a sample takes as long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times images/s, texts/s and training pairs/s of a CLIP here, in transformers and open_clip.

    All have the same random weights, and their outputs must agree before anything is timed. They
    take turns, call by call, so that whatever else the machine does slows all of them; the table
    shows medians over the rounds. Ratio: our rate divided by that of the faster of the other two.
    Of peak: the FLOP/s that a project reaches (of the matrix multiplications, convolutions and
    attention that it really computes, as torch counts them) divided by those of a large square
    matrix multiplication of the same type, which takes turns with them.

    Forward passes run in inference mode; bfloat16 means weights in bfloat16 there. A training step
    is the forward pass of images and texts, the project's own contrastive loss, the backward pass
    and a step of fused AdamW; bfloat16 means autocast over float32 weights there.

    Texts are prompts for ImageNet classes. The others compute all 77 tokens, as their users do;
    ours are cut after the longest of the batch. In the rows "one long" one caption is as long as
    the context, so that nothing can be cut.
    """

    models: tuple[str, ...] = ("ViT-B/32",)
    """OpenAI's names; transformers has no ResNet."""
    types: tuple[Type, ...] = ("float32", "bfloat16")
    """Number types."""
    tasks: tuple[Name, ...] = FORWARD + TRAINING
    """Rows of the table."""
    batch_size: int = 16
    """Images, texts or pairs a call; take hundreds on a GPU."""
    rounds: int = 7
    """Timed rounds, after one to warm up."""
    threads: int | None = None
    """CPU threads. Default: as many as torch takes."""
    device: str | None = None
    """cpu or cuda. Default: a GPU where there is one."""
    matrix: int | None = None
    """Rows of the square matrices of the peak. Default: 2048 on a CPU, 8192 elsewhere."""
    json: Path | None = None
    """Where to write every time that was measured."""
    picture: Path | None = None
    """Where to draw the rates."""


class Project(NamedTuple):
    """A model and how its users call it."""

    model: nn.Module
    image: Callable[[nn.Module, Tensor], Tensor]
    """Pixels (B, 3, H, W) -> features (B, D)."""
    text: Callable[[nn.Module, Tensor], Tensor]
    """Token ids (B, L) -> features (B, D)."""
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """Pixels and token ids of B pairs -> the contrastive loss."""


class Task(NamedTuple):
    """One thing that is timed, for every project."""

    name: Name
    type: Type
    calls: dict[str, Callable[[], Tensor]]
    """Per project; what is returned must agree."""


class Row(NamedTuple):
    """What was measured for one task: a row of the table."""

    model: str
    task: Name
    type: Type
    units: int
    """Images, texts or pairs a call."""
    flops: dict[str, int]
    """FLOPs of a call, per project and way of multiplying."""
    seconds: dict[str, list[float]]
    """Seconds of a call in each round, likewise."""
    difference: float
    """The largest difference between our output and another's."""

    @property
    def projects(self) -> list[str]:
        """Those that were timed, ours first."""
        return [name for name in self.seconds if name not in PEAK]

    def rate(self, name: str) -> float:
        """Units a second: those of a call divided by the median of its seconds."""
        return self.units / median(self.seconds[name])

    @property
    def ratio(self) -> float:
        """Our rate divided by that of the faster of the others."""
        return self.rate(OURS) / max(self.rate(name) for name in self.projects if name != OURS)

    def speed(self, name: str) -> float:
        """FLOP/s: those of a call divided by the median of its seconds."""
        return self.flops[name] / median(self.seconds[name])

    def of_peak(self, name: str) -> float:
        """FLOP/s divided by those of the faster way of multiplying large matrices."""
        return self.speed(name) / max(self.speed(way) for way in PEAK)


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures, prints the table, writes what was asked for."""
    options = tyro.cli(Options, args=arguments, description=inspect.getdoc(Options))
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure({name: architecture(name) for name in options.models}, options, device)
    conditions = describe(options, device)
    print(f"{conditions}\n\n{table(rows)}\n\n{remarks(rows)}")
    if options.json:
        found = [row._asdict() | {"ratio": row.ratio} for row in rows]
        written = json.dumps({"conditions": conditions, "rows": found}, indent=1)
        options.json.write_text(written + "\n")
    if options.picture:
        draw(rows, conditions, options.picture)


def measure(models: Mapping[str, Model], options: Options, device: str) -> list[Row]:
    """Times every task of every model. Raises SystemExit where outputs disagree."""
    rows = []
    total = len(models) * len(options.tasks) * len(options.types) * (options.rounds + 1)
    with tqdm(total=total, unit="round") as bar:
        for name, config in models.items():
            for task in tasks(config, options, device):
                bar.set_description(f"{name}, {task.name}, {task.type}")
                rows.append(timed(name, task, options, device, bar.update))
    # They were timed type by type; in the table a task's types stand below each other.
    order = FORWARD + TRAINING
    return sorted(rows, key=lambda row: ([*models].index(row.model), order.index(row.task)))


def timed(
    model: str, task: Task, options: Options, device: str, after: Callable[[], object]
) -> Row:
    """Compares what the projects compute for one task, counts their FLOPs and times them."""
    flops, outputs = {}, {}
    for name, call in task.calls.items():
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            outputs[name] = call().detach().float()
        flops[name] = counter.get_total_flops()
    differences = {k: (found - outputs[OURS]).abs().max().item() for k, found in outputs.items()}
    for name, difference in differences.items():
        if not difference <= SAME[task.type]:
            raise SystemExit(
                f"{model}, {task.name} in {task.type}: {name} computes something else than we do, "
                f"{difference:.1e} apart, more than {SAME[task.type]:.0e}; nothing was timed"
            )
    side = options.matrix or (2048 if device == "cpu" else 8192)
    square = torch.randn(side, side, device=device, dtype=getattr(torch, task.type))
    flops |= dict.fromkeys(PEAK, 2 * side**3)
    calls = task.calls | {k: functools.partial(way, square, square) for k, way in PEAK.items()}
    wait = getattr(torch, torch.device(device).type).synchronize
    seconds = interleaved(calls, options.rounds, wait, after)
    found = max(differences.values())
    return Row(model, task.name, task.type, options.batch_size, flops, seconds, found)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    wait: Callable[[], object],
    after: Callable[[], object],
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one to warm up; they take turns in going first.

    `wait` waits for the device; `after` is called after each round.
    """
    names = list(calls)
    repeats = dict.fromkeys(names, 1)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            wait()
            began = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            wait()
            took = (time.perf_counter() - began) / repeats[name]
            if turn:
                seconds[name].append(took)
            else:
                repeats[name] = 1 + int(SHORTEST / took)
        after()
    return seconds


def tasks(config: Model, options: Options, device: str) -> Iterator[Task]:
    """What is timed of a model: inference first, for training changes the weights."""
    torch.manual_seed(0)
    projects = build(config)
    for project in projects.values():
        project.model.to(device)
    size = config.visual.image_size
    pixels = torch.randn(options.batch_size, 3, size, size, device=device)
    short, long = sentences(options.batch_size, config.text.context_length)
    short, long = short.to(device), long.to(device)
    for type_ in options.types:
        dtype = getattr(torch, type_)
        cast = {  # a copy, for in place the float32 weights would be rounded
            name: project._replace(model=copy.deepcopy(project.model).to(dtype).eval())
            for name, project in projects.items()
        }
        for name, inputs in zip(FORWARD, (pixels.to(dtype), short, long), strict=True):
            if name in options.tasks:
                calls = {k: functools.partial(encode, p, name, inputs) for k, p in cast.items()}
                yield Task(name, type_, calls)
        del cast
    for name, ids in zip(TRAINING, (short, long), strict=True):
        for type_ in options.types if name in options.tasks else ():
            calls = {k: step(project, pixels, ids, type_) for k, project in projects.items()}
            yield Task(name, type_, calls)


@torch.inference_mode()
def encode(project: Project, name: Name, inputs: Tensor) -> Tensor:
    """Images or texts -> features (B, D) of unit length."""
    encoder = project.image if name == "images" else project.text
    return F.normalize(encoder(project.model, inputs), dim=-1)


def step(project: Project, pixels: Tensor, ids: Tensor, type_: Type) -> Callable[[], Tensor]:
    """A function that takes one step of training and returns the loss before it."""
    model = project.model.train()
    # So low a rate leaves the projects' weights the same for the tasks to come.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    def run() -> Tensor:
        half = type_ == "bfloat16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
            loss = project.loss(model, pixels, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return run


def build(config: Model) -> dict[str, Project]:
    """The same CLIP with the same random weights, in every project that has it; ours first."""
    ours = config.build()
    with torch.no_grad():
        for parameter in ours.parameters():  # away from gains of one and biases of zero
            parameter.add_(0.01 * torch.randn_like(parameter))
    weights = ours.clip.state_dict()
    projects = {OURS: Project(ours, VideoCLIP.encode_image, VideoCLIP.encode_text, our_loss)}
    if isinstance(config.visual, ViT):
        written = hugging_face.files(config)[hugging_face.CONFIG]
        theirs = AutoModel.from_config(CLIPConfig(**written), attn_implementation="sdpa")
        theirs.load_state_dict(layouts.to_file(weights, layouts.transformers))
        projects["transformers"] = Project(
            theirs,
            lambda model, pixels: model.get_image_features(pixel_values=pixels).pooler_output,
            lambda model, ids: model.get_text_features(input_ids=ids).pooler_output,
            lambda model, pixels, ids: model(ids, pixels, return_loss=True).loss,
        )
    theirs = open_clip.model.CLIP(**open_clip_sizes(config))
    theirs.load_state_dict(weights)
    projects["open_clip"] = Project(
        theirs,
        lambda model, pixels: model.encode_image(pixels),
        lambda model, ids: model.encode_text(ids),
        lambda model, pixels, ids: open_clip.ClipLoss()(*model(pixels, ids)),
    )
    return projects


def our_loss(model: VideoCLIP, pixels: Tensor, ids: Tensor) -> Tensor:
    """The loss of B pairs as this project trains."""
    frames = Frames(pixels[:, None], torch.ones_like(ids[:, :1], dtype=torch.bool))
    return contrastive(model(frames, ids), torch.eye(len(ids), device=ids.device).bool())


def open_clip_sizes(config: Model) -> dict[str, object]:
    """A configuration in open_clip's words."""
    visual, text = dataclasses.asdict(config.visual), dataclasses.asdict(config.text)
    sizes = ("width", "layers", "image_size", "patch_size", "context_length")
    more = {"heads": attention_heads(config.text.width), "vocab_size": config.text.vocabulary}
    return {
        "embed_dim": config.embedding,
        "quick_gelu": config.text.activation == "quick_gelu",
        "vision_cfg": {name: visual[name] for name in sizes if name in visual},
        "text_cfg": {name: text[name] for name in sizes if name in text} | more,
    }


def describe(options: Options, device: str) -> str:
    """The conditions of a measurement, in one line."""
    packages = versions("torch", "transformers", "open_clip_torch")
    return (
        f"{machine(device)}; batches of {options.batch_size}, {options.rounds} rounds; {packages}."
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: rates a second, their ratio, and which part of the peak each project reaches."""
    names = list(dict.fromkeys(name for row in rows for name in row.projects))
    lines = [["", "type", *(f"{name}/s" for name in names), "ratio"]]
    lines[0] += [f"{name}, of peak" for name in names]
    lines.append(["---", "---", *["---:"] * (2 * len(names) + 1)])
    for row in rows:
        rates = [digits(row.rate(name)) if name in row.seconds else "" for name in names]
        parts = [f"{row.of_peak(name):.0%}" if name in row.seconds else "" for name in names]
        lines.append([f"{row.model}, {row.task}", row.type, *rates, f"{row.ratio:.2f}", *parts])
    return markdown(lines)


def remarks(rows: Sequence[Row]) -> str:
    """What stands below the table: the peaks, and how near the outputs are."""
    lines = []
    for type_ in dict.fromkeys(row.type for row in rows):
        found = [row for row in rows if row.type == type_]
        own, other = (median(row.speed(way) for row in found) / 1e12 for way in PEAK)
        lines.append(
            f"{type_}: large matrices are multiplied with {own:.3g} TFLOP/s by torch.matmul, with "
            f"{other:.3g} by videoclip.layers.linear; outputs are at most "
            f"{max(row.difference for row in found):.0e} apart."
        )
    return "\n\n".join(lines)


def draw(rows: Sequence[Row], conditions: str, path: Path) -> None:
    """Draws every project's rate in units of that of the faster of the others."""
    names = list(dict.fromkeys(name for row in rows for name in row.projects))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.55 * len(rows)), layout="constrained")
    for index, name in enumerate(names):
        known = [(place, row) for place, row in enumerate(rows) if name in row.seconds]
        bars = axes.barh(
            [place + 0.27 * (index - (len(names) - 1) / 2) for place, _ in known],
            [row.ratio * row.rate(name) / row.rate(OURS) for _, row in known],
            height=0.25,
            label=name,
        )
        axes.bar_label(bars, [f"{digits(row.rate(name))}/s" for _, row in known], padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row.model}, {row.task}\n{row.type}" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("rate, in units of the faster of the other projects")
    axes.legend(loc="lower right")
    figure.suptitle(conditions, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
