"""Times steps of training on clips: modules, engines, and the same step in plain transformers.

Run: .venv/bin/python scripts/bench_train.py --json bench.json
"""

import contextlib
import dataclasses
import inspect
import json
import math
import multiprocessing
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from benchmark import PEAK, UNCOUNTED, digits, machine, markdown, sentences, versions
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoModel, CLIPConfig

from videoclip.checkpoints import hugging_face, layouts
from videoclip.checkpoints.named import architecture
from videoclip.distributed import start
from videoclip.experiment import Optim, Run, row_named
from videoclip.frames.transforms import normalize
from videoclip.model import Model, VideoCLIP
from videoclip.training.engines import engine_of
from videoclip.types import Batch, Frames

Way = Literal["plain", "compile", "zero-0", "zero-1", "zero-2", "zero-3", "transformers"]
Step = Callable[[], float]
"""A step of training; the loss before it."""
SAME = {"fp32": 1e-4, "bf16": 0.05}
"""How far the first losses may be apart, as a share of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times whole steps of training on clips that lie in memory, so that nothing waits for data.

    Each engine trains in a process of its own; they take turns, step by step, so that whatever else
    the machine does slows all of them. The table shows medians over the rounds. Beside them stands
    what a user of transformers would write: CLIPModel on every frame, the mean of the normalized
    features, the symmetric contrastive loss, fused AdamW. Where there is no temporal module the
    first losses of all must agree before anything is timed; of engines always.

    Ratio: clips a second divided by those of transformers. Of peak: the FLOP/s of the matrix
    multiplications, convolutions and attention that the plain step really computes, divided by
    those of a large square matrix multiplication of the same type, which takes turns with them.
    Memory: the most that torch held of a GPU, or of a process as a whole without one.
    """

    models: tuple[str, ...] = ("ViT-B/32", "ViT-B/16")
    """OpenAI's names."""
    frames: tuple[int, ...] = (8, 16, 32)
    """Frames of a clip."""
    modules: tuple[str, ...] = ("mean", "lstm", "transformer", "tight", "shift", "joint")
    """Temporal modules, one of each slot joined by a plus."""
    engines: tuple[Way, ...] = ("plain", "compile", "zero-1", "transformers")
    """zero-1 is DeepSpeed with ZeRO's stage 1; plain is always there."""
    clips: int = 16
    """Clips with a caption each in a batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the arithmetic; weights are float32."""
    checkpointing: Literal["off", "blocks"] = "off"
    """blocks: activations are computed again instead of kept, in all but transformers."""
    rounds: int = 7
    """Timed rounds, after one to warm up."""
    threads: int | None = None
    """CPU threads of each process. Default: as many as torch takes."""
    clock: Literal["wall", "processor"] = "wall"
    """processor: seconds of work of all threads, which other work on the machine does not lengthen;
    without a GPU only."""
    matrix: int | None = None
    """Rows of the square matrices of the peak. Default: 2048 on a CPU, 8192 elsewhere."""
    json: Path | None = None
    """Where to write every time that was measured."""


class Row(NamedTuple):
    """What was measured of one model, number of frames and module."""

    model: str
    frames: int
    module: str
    clips: int
    flops: dict[str, int]
    """FLOPs of a step, per engine."""
    memory: dict[str, int]
    """Bytes, per engine."""
    seconds: dict[str, list[float]]
    """Seconds of a step in each round, per engine."""
    peak: float
    """FLOP/s."""

    def rate(self, way: str) -> float:
        """Clips a second."""
        return self.clips / median(self.seconds[way])

    def of_peak(self, way: str) -> float:
        """FLOP/s divided by those of large matrices."""
        return self.flops[way] / median(self.seconds[way]) / self.peak


def main(arguments: list[str]) -> None:
    """Reads the command line, measures, prints the table and writes what was measured."""
    options = tyro.cli(Options, args=arguments, description=inspect.getdoc(Options))
    if options.clock == "processor" and torch.cuda.is_available():
        raise SystemExit("--clock processor does not see the work of a GPU; take wall")
    if options.threads:
        torch.set_num_threads(options.threads)
    conditions, rows = describe(options), []
    models = {name: architecture(name) for name in options.models}
    total = len(models) * len(options.frames) * len(options.modules)
    with tqdm(total=total, unit="row") as bar:
        for name, config in models.items():
            for frames in options.frames:
                for module in options.modules:
                    bar.set_description(f"{name}, {frames} frames, {module}")
                    rows.append(measure(name, config, frames, module, options))
                    bar.update()
                    if options.json:  # also what was measured before an interruption
                        found = {"conditions": conditions, "rows": [r._asdict() for r in rows]}
                        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{conditions}\n\n{table(rows)}")


def measure(name: str, config: Model, frames: int, module: str, options: Options) -> Row:
    """Times the engines on one model. Raises SystemExit where their first losses disagree."""
    row = row_named(module, {})
    slots = {k: v for k in ("mixer", "head", "scorer") if (v := getattr(row, k)) is not None}
    config = dataclasses.replace(config, **slots)
    ways = ["plain", *(way for way in options.engines if way != "plain")]
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(way, config, frames, options)) for way in ways}
        first = {way: worker.answer() for way, worker in workers.items()}
        same = [way for way in ways if way != "transformers" or module == "mean"]
        wanted = first["plain"]["loss"]
        for way in same:
            found = first[way]["loss"]
            if not abs(found - wanted) <= SAME[options.precision] * abs(wanted):
                raise SystemExit(
                    f"{name}, {frames} frames, {module}: the first loss is {found} with {way} and "
                    f"{wanted} with plain; nothing was timed"
                )
        seconds, peaks = interleaved(workers, options.rounds)
        memory = {way: worker.ask("memory") for way, worker in workers.items()}
    flops = {way: first[way if way == "transformers" else "plain"]["flops"] for way in ways}
    return Row(name, frames, module, options.clips, flops, memory, seconds, median(peaks))


def interleaved(
    workers: Mapping[str, "Worker"], rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each one's step in each round, after one to warm up, and the peak in each."""
    names = list(workers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = workers[name].ask("step")
            if turn:
                seconds[name].append(took)
        peak = workers["plain"].ask("peak")
        if turn:
            peaks.append(peak)
    return seconds, peaks


class Worker:
    """A process that trains in one way, step by step, when it is asked to."""

    def __init__(self, way: Way, config: Model, frames: int, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.way = way
        self.process = context.Process(
            target=work, args=(theirs, way, config, frames, options), daemon=True
        )
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()  # which ends it
        self.process.join()

    def ask(self, what: Literal["step", "peak", "memory"]) -> Any:
        """What it answers."""
        self.pipe.send(what)
        return self.answer()

    def answer(self) -> Any:
        """What it says next. Raises SystemExit where that is an error."""
        try:
            found = self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.way} has died") from None
        if isinstance(found, str):
            raise SystemExit(f"{self.way} cannot be timed:\n{found}")
        return found


def work(pipe: Connection, way: Way, config: Model, frames: int, options: Options) -> None:
    """What a worker does until its pipe is closed."""
    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with contextlib.redirect_stdout(sys.stderr):
            step = step_of(way, config, frames, options, device)
            with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
                torch.manual_seed(1)
                loss = step()
        pipe.send({"loss": loss, "flops": counter.get_total_flops()})
        answers = {
            "step": lambda: timed(step, options, device),
            "peak": lambda: peak(options, device),
            "memory": lambda: memory(device),
        }
        while True:
            pipe.send(answers[pipe.recv()]())
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc())


def timed(call: Callable[[], object], options: Options, device: torch.device) -> float:
    """Seconds of a call."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = clock()
    call()
    wait()
    return clock() - began


def peak(options: Options, device: torch.device) -> float:
    """FLOP/s of the faster way of multiplying large matrices."""
    side = options.matrix or (2048 if device.type == "cpu" else 8192)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    square = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for way in PEAK.values():
        way(square, square)
        seconds.append(timed(lambda way=way: way(square, square), options, device))
    return 2 * side**3 / min(seconds)


def memory(device: torch.device) -> int:
    """The most bytes so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step_of(way: Way, config: Model, frames: int, options: Options, device: torch.device) -> Step:
    """A step of training on a batch that lies in memory; the same weights and clips in all ways."""
    torch.manual_seed(0)
    model = config.build()
    size = config.visual.image_size
    pixels = torch.randint(0, 256, (options.clips, frames, 3, size, size), dtype=torch.uint8)
    ids, _ = sentences(options.clips, config.text.context_length)
    model, pixels, ids = model.to(device), pixels.to(device), ids.to(device)
    if way == "transformers":
        return users_step(model, pixels, ids, options)
    run = Run(compile="blocks" if way == "compile" else "off")
    if way.startswith("zero"):
        run = dataclasses.replace(run, engine="deepspeed", zero=int(way[-1]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        start()
    # So low a rate leaves the weights the same for all rounds.
    optim = Optim(
        tower_rate=1e-9, module_rate=1e-9, warmup=0.0, schedule="constant",
        precision=options.precision, checkpointing=options.checkpointing,
    )  # fmt: skip
    engine = engine_of(model, optim, run, steps=10**6)
    engine.train()
    mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=device)
    matches = torch.eye(len(ids), dtype=torch.bool)
    batch = Batch(Frames(pixels, mask), ids, matches, tuple(map(str, range(len(ids)))))
    return lambda: engine.step(batch).loss


def users_step(model: VideoCLIP, pixels: Tensor, ids: Tensor, options: Options) -> Step:
    """The step as one writes it with transformers, from the same weights."""
    written = hugging_face.files(model.config)[hugging_face.CONFIG]
    theirs = AutoModel.from_config(CLIPConfig(**written), attn_implementation="sdpa")
    theirs.load_state_dict(layouts.to_file(model.clip.state_dict(), layouts.transformers))
    theirs = theirs.to(pixels.device).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-9, fused=True)
    pixels = normalize(pixels, model.pixel_mean, model.pixel_std)
    ids = ids[:, : int(ids.argmax(1).max()) + 1]  # as a processor pads, to the longest
    clips, target = len(pixels), torch.arange(len(ids), device=ids.device)

    def step() -> float:
        with torch.autocast(
            pixels.device.type, torch.bfloat16, enabled=options.precision == "bf16"
        ):
            frames = theirs.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output
            text = theirs.get_text_features(input_ids=ids).pooler_output
        each = F.normalize(frames.float(), dim=-1).unflatten(0, (clips, -1))
        video = F.normalize(each.mean(1), dim=-1)
        scores = theirs.logit_scale.exp() * F.normalize(text.float(), dim=-1) @ video.T
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def describe(options: Options) -> str:
    """The conditions of a measurement, in one line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = [f"batches of {options.clips} clips", options.precision, f"{options.rounds} rounds"]
    if options.checkpointing != "off":
        words.append("gradient checkpointing")
    if device == "cpu":
        words.append(f"{options.clock} clock")
    packages = versions("torch", "transformers", "deepspeed")
    return f"{machine(device)}; {', '.join(words)}; {packages}."


def table(rows: list[Row]) -> str:
    """Markdown: a line for each row and engine."""
    lines = [["", "frames", "module", "engine", "clips/s", "ratio", "of peak", "memory, GB"]]
    lines.append(["---", "---:", "---", "---", "---:", "---:", "---:", "---:"])
    for row in rows:
        for way in row.seconds:
            ratio = (
                row.rate(way) / row.rate("transformers")
                if "transformers" in row.seconds
                else math.nan
            )
            lines.append([
                row.model, str(row.frames), row.module, way, digits(row.rate(way)),
                "" if math.isnan(ratio) else f"{ratio:.2f}", f"{row.of_peak(way):.0%}",
                f"{row.memory[way] / 1e9:.2f}",
            ])  # fmt: skip
    return markdown(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
