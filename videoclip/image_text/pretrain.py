"""Pictures with captions -> a CLIP: image-text pre-training that a kill does not set back.

The run folder holds run.json (the settings), metrics.jsonl and tensorboard/ (the numbers as they
come), states/ (where to go on) and in the end model/ (what `videoclip.load` opens), bad.jsonl (the
pairs that could not be used), curve.png and results.json, which is written last.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from videoclip.checkpoints.weights import load
from videoclip.config import to_json
from videoclip.distributed import agree, alike, device, gather_objects, main_process, on_main
from videoclip.errors import VideoclipError
from videoclip.experiment import Pretraining
from videoclip.frames.loader import number_of_batches
from videoclip.image_text.images import ImageSet
from videoclip.image_text.pairs import PairLoader, Pairs, open_pairs
from videoclip.image_text.zero_shot import zero_shot
from videoclip.model import VideoCLIP
from videoclip.prompts import PLAIN
from videoclip.record import environment
from videoclip.training.engine import Engine
from videoclip.training.engines import engine_of
from videoclip.training.interruption import Interruption
from videoclip.training.logbook import Logbook, curve, read_metrics
from videoclip.training.snapshots import newest_state, save_state
from videoclip.training.train import Trained, steps
from videoclip.types import Batch

RUN, RESULTS, MODEL, STATES, BAD = "run.json", "results.json", "model", "states", "bad.jsonl"
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0
"""Where the sigmoid loss starts (Zhai et al. 2023, section 3.2)."""


class Watched(NamedTuple):
    """Labelled pictures on which zero-shot accuracy is measured while a model trains."""

    images: ImageSet
    templates: Sequence[str] = (PLAIN,)

    def metrics(self, model: VideoCLIP) -> dict[str, float]:
        """Top-1 and the others, in percent."""
        return zero_shot(model, self.images, self.templates, progress=False).result.metrics()


class Progress(NamedTuple):
    """Where a run stands; saved with its state."""

    done: int = 0
    """Batches behind it, over all epochs."""
    steps: int = 0
    """Of these in the present epoch, the ones that held a readable pair."""
    loss: float = 0.0
    """Their sum."""
    trained: int = 0
    """Their pairs."""

    def add(self, batch: Trained) -> "Progress":
        """One batch further."""
        steps, loss = (1, batch.step.loss) if batch.step else (0, 0.0)
        return Progress(
            batch.done, self.steps + steps, self.loss + loss, self.trained + _samples(batch)
        )


def _samples(batch: Trained) -> int:
    """Pairs of a batch, over all processes."""
    return batch.step.samples if batch.step else 0


class Pace(NamedTuple):
    """How fast training has been since the last line of the logbook."""

    pairs: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, batch: Trained) -> "Pace":
        """One batch further."""
        pairs = self.pairs + _samples(batch)
        return Pace(pairs, self.seconds + batch.seconds, self.waited + batch.waited)

    def values(self) -> dict[str, float]:
        """Pairs per second, and the share of the time in which there was no batch to train on."""
        return {
            "pairs_per_second": self.pairs / self.seconds,
            "waiting_for_data": self.waited / self.seconds,
        }


def pretrain(
    settings: Pretraining,
    folder: Path,
    *,
    checkpoint: str | None = None,
    watched: Watched | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains a CLIP into a run folder, or goes on where an earlier call was stopped.

    Returns the content of results.json. SIGINT and SIGTERM end it after the present step with a
    saved state and KeyboardInterrupt; where the process is killed outright, at most the last
    `settings.run.save_minutes` are trained again, to the same weights. Where processes have been
    started to share the batches (`distributed.start`), all must call it.

    Raises VideoclipError where the folder holds a run with other settings, where no pair can be
    read, and where loss or gradient is not finite.
    """
    if not settings.optim.epochs or settings.data.source is None:
        raise VideoclipError("there is nothing to train on: give --data and at least one epoch")
    pairs = on_main(open_pairs, settings.data.source)
    model = start(settings, checkpoint).to(device())
    optim = settings.optim
    settings = replace(settings, model=model.config)
    on_main(record_run, folder, settings, pairs, checkpoint, command)
    if there := on_main(_results, folder):
        return there
    per_epoch = number_of_batches(len(pairs), optim.batch_size)
    engine = engine_of(model, optim, settings.run, steps=per_epoch * optim.epochs)
    at = resume(folder, engine, pairs)
    main, pace, saved = main_process(), Pace(), time.monotonic()
    logbook = Logbook(folder, done=at.done) if main else None
    if watched and logbook and not at.done:
        logbook.write(0, 0, zero_shot=watched.metrics(model)["top-1"])
    draw = batches_of(pairs, model, settings)
    bar = tqdm(
        total=per_epoch * optim.epochs, initial=at.done, desc="pre-training", unit="step",
        disable=not main,
    )  # fmt: skip
    with Interruption() as interruption:
        for batch in steps(engine, draw, epochs=optim.epochs, per_epoch=per_epoch, done=at.done):
            at, pace = at.add(batch), pace.add(batch)
            bar.update()
            values: dict[str, float] = {}
            if batch.step and (at.done % settings.run.log_every == 0 or batch.ends_epoch):
                values = batch.step.values() | pace.values()
                bar.set_postfix_str(
                    "loss {loss:.3f}, {pairs_per_second:.0f} pairs/s, "
                    "{waiting_for_data:.0%} waiting".format(**values)
                )
                pace = Pace()
            if batch.ends_epoch:
                values |= end_of_epoch(at, pairs, engine.trained(), watched)
                at = Progress(at.done)
            if values and logbook:
                logbook.write(at.done, batch.epoch, **values)
            stop = agree(interruption.asked)
            if stop or agree(time.monotonic() - saved >= 60 * settings.run.save_minutes):
                gather_bad(pairs)
                on_main(keep, folder, engine, at, pairs)
                saved = time.monotonic()
            if stop:
                bar.close()
                tell(f"saved after step {at.done}; the same command goes on from there")
                raise KeyboardInterrupt
    bar.close()
    if logbook:
        logbook.close()
    return on_main(finish, folder, settings, engine.trained(), pairs, watched, per_epoch)


def tell(line: str) -> None:
    """Prints a line beside the progress bar; of several processes the main one does."""
    if main_process():
        tqdm.write(line)


def gather_bad(pairs: Pairs) -> None:
    """Every process knows then which pairs the others could not read."""
    for bad in gather_objects(pairs.bad):
        pairs.bad |= bad


def _results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that is finished."""
    path = folder / RESULTS
    return json.loads(path.read_text()) if path.is_file() else None


def start(settings: Pretraining, checkpoint: str | None) -> VideoCLIP:
    """The model before training: new, or a checkpoint in the sizes that it has.

    Where the SigLIP loss meets a model without a bias, temperature and bias start as in its paper.
    """
    torch.manual_seed(settings.seed)
    model = load(checkpoint) if checkpoint else settings.model.build()
    if settings.optim.loss == "clip" or (checkpoint and model.config.logit_bias is not None):
        return model
    if model.config.logit_bias is None:
        weights = model.state_dict() | {"clip.logit_bias": torch.tensor(SIGLIP_BIAS)}
        model = replace(model.config, logit_bias=SIGLIP_BIAS).build()
        model.load_state_dict(weights)
    with torch.no_grad():
        model.clip.logit_scale.fill_(math.log(SIGLIP_SCALE))
    return model


def record_run(
    folder: Path, settings: Pretraining, pairs: Pairs, checkpoint: str | None, command: str
) -> None:
    """Writes run.json, or makes sure that the run that is there is this one."""
    decides = {"settings": to_json(settings), "checkpoint": checkpoint, "pairs": _key(pairs)}
    path = folder / RUN
    if path.is_file():
        try:
            there = {key: json.loads(path.read_text())[key] for key in decides}
            # What changes no result may be other now.
            there["settings"]["data"]["workers"] = settings.data.workers
            there["settings"]["run"] = to_json(settings.run)
        except (ValueError, KeyError, TypeError) as error:
            raise VideoclipError(
                f"{path} cannot be read ({error!r}); choose another --output"
            ) from error
        if differences := list(_differences(there, decides)):
            raise VideoclipError(
                f"{folder} holds a run with other settings; choose another --output, or go on with "
                "it under its own:\n" + "\n".join(differences)
            )
        return
    record = {"title": folder.name, **decides, "command": command, "environment": environment()}
    _write_json(path, record)


def _key(pairs: Pairs) -> str:
    """Changes when other pairs stand in the source, or in another order."""
    digest = hashlib.sha256()
    for buffer in pairs.names.buffers():
        digest.update(buffer or b"")
    return f"{pairs.found} pairs, {digest.hexdigest()[:16]}"


def _differences(there: Any, here: Any, where: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in there | here:
            yield from _differences(there.get(key), here.get(key), f"{where}.{key}")
    elif there != here:
        name = where.removeprefix(".").removeprefix("settings.")
        yield f"  {name}: {there!r} there, {here!r} now"


def resume(folder: Path, engine: Engine, pairs: Pairs) -> Progress:
    """Takes an engine to the newest state of a run, if there is one."""
    state = newest_state(folder / STATES)
    if state is None:
        return Progress()
    engine.restore(state["engine"])
    pairs.bad.update(state["bad"])
    at = Progress(**state["progress"])
    tell(f"going on after step {at.done}")
    return at


def keep(folder: Path, engine: Engine, at: Progress, pairs: Pairs) -> None:
    """Saves all that the rest of the run depends on."""
    state = {"engine": engine.state(), "progress": at._asdict(), "bad": dict(pairs.bad)}
    save_state(folder / STATES, at.done, state)


def batches_of(
    pairs: Pairs, model: VideoCLIP, settings: Pretraining
) -> Callable[[int, int], Iterator[Batch]]:
    """A function of (epoch, start): its batches from number `start` on."""
    data = settings.data
    try:
        tokenizer = model.tokenizer(data.words)
    except ValueError as error:
        raise VideoclipError(str(error)) from error

    return PairLoader(
        pairs, tokenizer,
        batch_size=settings.optim.batch_size, size=model.config.visual.image_size, crop=data.crop,
        seed=settings.seed, workers=data.workers, stuck_seconds=settings.run.stuck_seconds,
    ).epoch  # fmt: skip


def end_of_epoch(
    at: Progress, pairs: Pairs, model: VideoCLIP, watched: Watched | None
) -> dict[str, float]:
    """Makes sure that every pair was either trained or named as bad; the epoch's numbers.

    Raises VideoclipError where none could be read.
    """
    gather_bad(pairs)
    if not at.trained:
        name, reason = next(iter(pairs.bad.items()))
        raise alike(f"none of the {pairs.found} pairs can be read; {name}: {reason}")
    # A pair that could be read in one epoch only counts as bad, and was trained in that one.
    assert pairs.found - len(pairs.bad) <= at.trained <= len(pairs), (at, pairs.counts())
    values = {"epoch_loss": at.loss / at.steps}
    if watched:
        values["zero_shot"] = on_main(watched.metrics, model)["top-1"]
    return values


def finish(
    folder: Path,
    settings: Pretraining,
    model: VideoCLIP,
    pairs: Pairs,
    watched: Watched | None,
    per_epoch: int,
) -> dict[str, Any]:
    """Writes the model, the bad pairs, the picture and the results; no state is needed any more."""
    model.eval()
    model.save_pretrained(folder / MODEL)
    bad = [{"name": name, "reason": reason} for name, reason in pairs.bad.items()]
    (folder / BAD).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad))
    curve(folder, folder.name, per_epoch)
    losses = [line["epoch_loss"] for line in read_metrics(folder) if "epoch_loss" in line]
    results = {
        "counts": {"found": pairs.found, "trained": pairs.found - len(bad), "bad": len(bad)},
        "notes": pairs.notes,
        "epochs": settings.optim.epochs,
        "steps": per_epoch * settings.optim.epochs,
        "loss": losses[-1],
        "zero_shot": watched.metrics(model) if watched else None,
        "zero_shot_on": watched.images.name if watched else None,
    }
    _write_json(folder / RESULTS, results)
    shutil.rmtree(folder / STATES, ignore_errors=True)
    return results


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
