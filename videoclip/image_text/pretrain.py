"""Pictures with captions -> a CLIP: image-text pre-training that a kill does not set back.

The run folder holds run.json (the settings), metrics.jsonl and tensorboard/ (the numbers as they
come), states/ (where to go on) and in the end model/ (what `videoclip.load` opens), bad.jsonl (the
pairs that could not be used), curve.png and results.json, which is written last.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from videoclip.checkpoints.weights import load
from videoclip.config import to_json
from videoclip.distributed import alike, device, on_main
from videoclip.errors import VideoclipError
from videoclip.experiment import Pretraining, deciding
from videoclip.frames.loader import number_of_batches
from videoclip.image_text.images import ImageSet
from videoclip.image_text.pairs import PairLoader, Pairs, open_pairs
from videoclip.image_text.zero_shot import ZeroShot, zero_shot
from videoclip.model import VideoCLIP
from videoclip.prompts import PLAIN
from videoclip.record import differences, environment
from videoclip.tokenizer import Tokenizer
from videoclip.training.engines import engine_of
from videoclip.training.logbook import curve
from videoclip.training.loop import Evaluated, Plan, Trained, train_through
from videoclip.training.pictures import score_map
from videoclip.training.states import STATES, Position
from videoclip.training.train import captions_of
from videoclip.types import Batch

RUN, RESULTS, MODEL, BAD = "run.json", "results.json", "model", "bad.jsonl"
WORST = 10
"""How many of the pictures that went worst are shown."""
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0
"""Where the sigmoid loss starts (Zhai et al. 2023, section 3.2)."""


class Watched(NamedTuple):
    """Labelled pictures on which zero-shot accuracy is measured while a model trains."""

    images: ImageSet
    templates: Sequence[str] = (PLAIN,)

    def metrics(self, model: VideoCLIP) -> dict[str, float]:
        """Top-1 and the others, in percent."""
        return self._found(model).result.metrics()

    def evaluated(self, model: VideoCLIP) -> Evaluated:
        """What the loop is told."""
        found = self._found(model)
        result, labels = found.result, found.result.labels
        lines = ["| rank | picture | its class | what came first |", "|--:|---|---|---|"]
        for item in np.argsort(-result.ranks.rank, kind="stable")[:WORST]:
            own, first = result.classes[labels[item]], result.predicted[item]
            answer = result.classes[first] if first >= 0 else "nothing: it cannot be read"
            place = f"{result.ranks.rank[item]:g}"
            lines.append(f"| {place} | {self.images.names[item]} | {own} | {answer} |")
        picture = score_map(found.logits[np.argsort(labels, kind="stable")], "classes")
        values = {"zero_shot": result.metrics()["top-1"]}
        return Evaluated(values, None, picture, "\n".join(lines))

    def _found(self, model: VideoCLIP) -> ZeroShot:
        return zero_shot(model, self.images, self.templates, progress=False)


def pretrain(
    settings: Pretraining,
    folder: Path,
    *,
    checkpoint: str | None = None,
    watched: Watched | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains a CLIP into a run folder, or goes on where an earlier call was stopped.

    Returns the content of results.json. How a run is stopped and goes on: `train_through`. Where
    processes have been started to share the batches (`distributed.start`), all must call it.

    Raises VideoclipError where the folder holds a run with other settings and where no pair can be
    read.
    """
    if not settings.optim.epochs or settings.data.source is None:
        raise VideoclipError("there is nothing to train on: give --data and at least one epoch")
    pairs = on_main(open_pairs, settings.data.source)
    model = start(settings, checkpoint).to(device())
    optim = settings.optim
    settings = replace(settings, model=model.config)
    decides = {"settings": to_json(settings), "checkpoint": checkpoint, "pairs": _key(pairs)}
    on_main(record_run, folder, settings, decides, command)
    if there := on_main(_results, folder):
        return there
    per_epoch = number_of_batches(len(pairs), optim.batch_size)
    engine = engine_of(model, optim, settings.run, steps=per_epoch * optim.epochs)

    def evaluate(model: VideoCLIP, at: Position) -> Evaluated:
        check_counts(pairs, at)
        return on_main(watched.evaluated, model) if watched else Evaluated({})

    tokenizer = tokenizer_of(model, settings)
    plan = Plan(
        folder=folder, run=settings.run, epochs=optim.epochs, per_epoch=per_epoch,
        draw=batches_of(pairs, model, settings), evaluate=evaluate,
        decides=_of_result(decides), unreadable=pairs.bad, unit="pairs", label="pre-training",
        captions=lambda batch: captions_of(batch, tokenizer),
    )  # fmt: skip
    trained = train_through(engine, plan)
    return on_main(finish, folder, settings, trained, pairs, watched, per_epoch)


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


def record_run(folder: Path, settings: Pretraining, decides: dict[str, Any], command: str) -> None:
    """Writes run.json, or makes sure that the run that is there is this one."""
    path = folder / RUN
    if path.is_file():
        try:
            there = {key: json.loads(path.read_text())[key] for key in decides}
            different = differences(_of_result(there), _of_result(decides))
        except (ValueError, KeyError, TypeError) as error:
            raise VideoclipError(
                f"{path} cannot be read ({error!r}); choose another --output"
            ) from error
        if different:
            raise VideoclipError(
                f"{folder} holds a run with other settings; choose another --output, or go on with "
                "it under its own:\n" + "\n".join(different)
            )
        return
    record = {"title": folder.name, **decides, "command": command, "environment": environment()}
    _write_json(path, record)


def _of_result(decides: dict[str, Any]) -> dict[str, Any]:
    """Without what changes no result, and may be other now."""
    settings = {key: value for key, value in decides["settings"].items() if key != "run"}
    data = {key: value for key, value in settings["data"].items() if key != "workers"}
    optim = deciding(settings["optim"], settings["model"]["visual"])
    return {**decides, "settings": {**settings, "data": data, "optim": optim}}


def _key(pairs: Pairs) -> str:
    """Changes when other pairs stand in the source, or in another order."""
    digest = hashlib.sha256()
    for buffer in pairs.names.buffers():
        digest.update(buffer or b"")
    return f"{pairs.found} pairs, {digest.hexdigest()[:16]}"


def batches_of(
    pairs: Pairs, model: VideoCLIP, settings: Pretraining
) -> Callable[[int, int], Iterator[Batch]]:
    """A function of (epoch, start): its batches from number `start` on."""
    data, tokenizer = settings.data, tokenizer_of(model, settings)

    return PairLoader(
        pairs, tokenizer,
        batch_size=settings.optim.batch_size, size=model.config.visual.image_size, crop=data.crop,
        seed=settings.seed, workers=data.workers, stuck_seconds=settings.run.stuck_seconds,
    ).epoch  # fmt: skip


def tokenizer_of(model: VideoCLIP, settings: Pretraining) -> Tokenizer:
    """Makes token ids of captions. Raises VideoclipError for more words than the model can read."""
    try:
        return model.tokenizer(settings.data.words)
    except ValueError as error:
        raise VideoclipError(str(error)) from error


def check_counts(pairs: Pairs, at: Position) -> None:
    """Makes sure at the end of an epoch that every pair was either drawn or named as bad.

    Raises VideoclipError where none could be read.
    """
    if not at.done:
        return
    if not at.drawn:
        name, reason = next(iter(pairs.bad.items()))
        raise alike(f"none of the {pairs.found} pairs can be read; {name}: {reason}")
    # A pair that could be read in one epoch only counts as bad, and was drawn in that one.
    assert pairs.found - len(pairs.bad) <= at.drawn <= len(pairs), (at, pairs.counts())


def finish(
    folder: Path,
    settings: Pretraining,
    trained: Trained,
    pairs: Pairs,
    watched: Watched | None,
    per_epoch: int,
) -> dict[str, Any]:
    """Writes the model, the bad pairs, the picture and the results; no state is needed any more."""
    model = trained.model
    model.save_pretrained(folder / MODEL)
    bad = [{"name": name, "reason": reason} for name, reason in pairs.bad.items()]
    (folder / BAD).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in bad))
    curve(folder, folder.name, per_epoch)
    results = {
        "counts": {"found": pairs.found, "trained": pairs.found - len(bad), "bad": len(bad)},
        "notes": pairs.notes,
        "epochs": settings.optim.epochs,
        "steps": per_epoch * settings.optim.epochs,
        "bad_steps": trained.at.bad,
        "loss": trained.history[-1].loss,
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
