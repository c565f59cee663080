"""`videoclip evaluate retrieval`: a trained model on a manifest; a table, and every rank."""

import csv
import dataclasses
import json
from collections.abc import Container, Sequence
from math import isnan
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import tyro

from videoclip.checkpoints.video_layouts import Variant
from videoclip.checkpoints.weights import load
from videoclip.distributed import device, main_process, on_main, start
from videoclip.errors import VideoclipError
from videoclip.evaluation.evaluate import Embedded, FrameOrder, embedded, scored
from videoclip.evaluation.measure import rank_table
from videoclip.evaluation.opt_ins import (
    Result,
    dual_softmax_result,
    query_bank_result,
    require_pair_scorer,
    require_query_bank,
    reranked_results,
)
from videoclip.features.fingerprint import fingerprint
from videoclip.figures.metrics import TIE_RULE, reference_metrics, tie_note
from videoclip.frames.store import FrameStore
from videoclip.layers import Activation
from videoclip.manifest import Clip, manifest_hash, read_manifest, require_captions, with_splits
from videoclip.model import VideoCLIP
from videoclip.reports.class_report import ends
from videoclip.tasks.protocols import Protocol, protocol_named
from videoclip.tokenizer import Tokenizer

Rescoring = Literal["dsl", "qb-norm"]
SHOWN = 10
"""How many missing videos are printed; all of them are written."""
COUNTS = {"frames": "frame", "words": "token", "rerank": "candidate", "batch_size": "clip"}
"""Options that must be positive, and what they count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluates a trained model on text-video retrieval and prints R@1, R@5, R@10, MdR and MnR.

    Every clip of the split is scored once. Clips whose file is missing or cannot be read are listed
    and counted as misses. Under torchrun the processes share the work; the result is the same.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder that compare or save_pretrained wrote, such as
    runs/moving_shapes/cells/..., a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: Path
    """The manifest, .jsonl or .parquet."""
    protocol: str | None = None
    """Checks that the test split is what published figures are measured on: msrvtt-1k-a,
    msrvtt-7k, msrvtt-full, msvd, lsmdc, activitynet, didemo or vatex (docs/protocols.md)."""
    exclude_missing: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leaves out what is missing instead of counting it as misses; the result says so, and how many
    videos are left."""
    split: str = "test"
    """Which of its clips; "all" is every clip."""
    frames: int | None = None
    """Frames per clip. Default: what the weights were trained with where they say so, else those of
    the protocol's recipe, else 8."""
    sampling: Literal["segments", "seconds"] | None = None
    """segments: the middle frames of equal parts of the clip. seconds: one frame a second, then
    evenly chosen, as CLIP4Clip has it. Default: seconds for a protocol, else segments."""
    words: Annotated[int | None, tyro.conf.arg(aliases=["--max-words"])] = None
    """Tokens per caption. Default: those of the protocol's recipe, else 32."""
    frame_order: FrameOrder = "normal"
    """What a model loses when frames are shuffled or reversed is what it knew from their order."""
    rescore: tuple[Rescoring, ...] = ()
    """Also gives labelled figures with other scores. dsl: dual softmax, uses all test queries.
    qb-norm: text to video only; uses the captions of the manifest's training split."""
    rerank: int | None = None
    """Scores only so many candidates of each query, the best by the loose score; for scorers such
    as tight, and labelled. Default: all pairs are scored."""
    batch_size: int = 32
    """Clips that are embedded in one go."""
    layout: str | None = None
    """Whose file the model is, such as clip4clip, where its keys do not tell."""
    head: str | None = None
    """Its head by that project's name, such as seqTransf, where its keys do not tell."""
    variant: Variant | None = None
    """Of a file of another video project. reference (the default): as its code computes; fixed:
    without that code's faults, for models that were trained here and written in its layout."""
    activation: Activation | None = None
    """Of a bare state dict of a CLIP, which does not tell."""
    output: Path | None = None
    """A folder for evaluation.json and ranks.parquet. Default: MODEL/evaluation-ORDER where
    MODEL is a folder, else runs/evaluation-ORDER; a protocol and what departs from the plain way
    are part of the name."""

    def __post_init__(self) -> None:
        """Raises VideoclipError for options that exclude each other."""
        if self.protocol and self.split != "test":
            raise VideoclipError(
                f"--protocol {self.protocol} is measured on the test split, but --split is "
                f"{self.split}; leave one of them out"
            )
        for name, what in COUNTS.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                option = f"--{name.replace('_', '-')}"
                raise VideoclipError(f"{option} is {value}; give at least 1 {what}")
        if self.rerank and self.rescore:
            raise VideoclipError(
                "--rescore needs the score of every pair, --rerank leaves most of them out; "
                "choose one"
            )


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, evaluates and prints."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate retrieval", description=Options.__doc__
    )
    start()
    protocol = protocol_named(options.protocol) if options.protocol else None
    clips, training, notes = _clips(options, protocol)
    model = load(
        options.model, activation=options.activation, layout=options.layout,
        variant=options.variant, head=options.head,
    ).to(device())  # fmt: skip
    words = options.words or (protocol.words if protocol else 32)
    tokenizer = model.tokenizer(words)
    _require(model, options, training)
    output = options.output or _beside(options) / _name(options)
    _make(output)
    store = FrameStore(
        (options.output or _beside(options)) / "frames",
        size=model.config.visual.image_size,
        frames=options.frames or model.config.frames or (protocol.frames if protocol else 8),
        fit=model.config.pixels.fit,
        rule=options.sampling or ("seconds" if protocol else "segments"),
    )
    store.unreadable |= on_main(_unreadable, store, clips, options.split)
    missing = {c.video_id: c for c in clips if c.video_id in store.unreadable}
    if options.exclude_missing:
        clips = [clip for clip in clips if clip.video_id not in missing]
        if not clips:
            raise VideoclipError(f"all {len(missing)} videos are missing: nothing is left")
    found = embedded(
        model, clips, store, tokenizer, order=options.frame_order, batch_size=options.batch_size
    )
    results = _results(model, found, options, training, tokenizer)
    notes += _cut(found.captions, tokenizer) + _without_scores(results[0], missing)
    if not main_process():
        return
    for old in output.glob("ranks*.parquet"):
        old.unlink()
    for result in results:
        table = rank_table({options.frame_order: result.found})
        table[table["direction"].isin(result.directions)].to_parquet(output / _file(result))
    counts = _counts(options, protocol, clips, missing)
    _write_missing(output, missing, store.unreadable)
    record = {
        "metrics": results[0].metrics,
        "intervals": _bounds(results[0]),
        "label": results[0].label,
        "beside": {
            one.name: {"label": one.label, "metrics": one.metrics, "intervals": _bounds(one)}
            for one in results[1:]
        },
        "counts": found.counts,
        "tie_rule": TIE_RULE,
        "tie_note": {d: tie_note(ranks) for d, ranks in results[0].found.ranks.items()},
        "counted_as_in_clip4clip": _counted_as_in_clip4clip(results[0]),
        "protocol": protocol._asdict() if protocol else None,
        "evaluated": counts,
        "excluded": sorted(missing) if options.exclude_missing else [],
        "unreadable": {name: store.unreadable[name] for name in missing},
        "notes": notes,
        "ms_per_clip": found.ms_per_clip,
        "manifest_hash": manifest_hash(options.data),
        "model_fingerprint": fingerprint(model),
        "options": dataclasses.asdict(options),
        "frames": store.frames,
        "sampling": store.rule,
        "words": tokenizer.context_length,
    }
    text = json.dumps(record, indent=1, default=str, allow_nan=False)
    (output / "evaluation.json").write_text(text + "\n")
    _print(results, record, output, missing)


def _clips(options: Options, protocol: Protocol | None) -> tuple[list[Clip], list[Clip], list[str]]:
    """The clips to evaluate, those of the training split, and what a reader must know."""
    clips = read_manifest(options.data)
    training = [clip for clip in clips if clip.split == "train"]
    notes: list[str] = []
    if protocol:  # which has a test split: dealing one out would be another set
        clips = [clip for clip in clips if clip.split == "test"]
        protocol.check(clips, allow_fewer=options.exclude_missing)
        notes += [note for note in [protocol.training_note(training)] if note]
    elif options.split != "all":
        by_split, note = with_splits(clips, options.data, needed=(options.split,))
        notes += [note] if note else []
        clips = by_split[options.split]
    require_captions(clips, options.data)
    return clips, training, notes


def _beside(options: Options) -> Path:
    """Where results go by themselves, and the frames that several of them share."""
    return Path(options.model) if Path(options.model).is_dir() else Path("runs")


def _name(options: Options) -> str:
    """What a result is called: it says what departs from the plain way."""
    parts = ["evaluation", options.protocol, options.frame_order]
    parts += [f"reranked-top-{options.rerank}" if options.rerank else None]
    parts += ["missing-excluded" if options.exclude_missing else None]
    return "-".join(part for part in parts if part)


def _make(folder: Path) -> None:
    """Makes the folder, before anything is computed that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoclipError(f"cannot write to {folder}: {error}; choose another --output") from (
            error
        )


def _unreadable(store: FrameStore, clips: Sequence[Clip], label: str) -> dict[str, str]:
    store.fill(clips, 1, label)
    return store.unreadable


def _require(model: VideoCLIP, options: Options, training: Sequence[Clip]) -> None:
    """Raises VideoclipError, before anything is decoded, for opt-ins that cannot be had."""
    if options.rerank:
        require_pair_scorer(model)
    if "qb-norm" in options.rescore:
        require_query_bank(model, _captions(training))


def _captions(clips: Sequence[Clip]) -> list[str]:
    return [caption for clip in clips for caption in clip.captions]


def _results(
    model: VideoCLIP,
    found: Embedded,
    options: Options,
    training: Sequence[Clip],
    tokenizer: Tokenizer,
) -> list[Result]:
    """The plain or the re-ranked result, and what stands beside it."""
    if options.rerank:
        return reranked_results(model, found, options.rerank)
    plain = scored(model, found)
    results = [Result("", "", plain)]
    for name in dict.fromkeys(options.rescore):
        if name == "dsl":
            results.append(dual_softmax_result(found, plain))
        else:
            results.append(query_bank_result(model, found, _captions(training), tokenizer))
    return results


def _cut(captions: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """A sentence where captions are too long."""
    words = tokenizer.context_length
    cut = sum(len(tokenizer.encode(caption)) + 2 > words for caption in captions)
    if not cut:
        return []
    return [
        f"{cut:,} of {len(captions):,} captions are longer than {words} tokens, start and end "
        "included, and lose their end."
    ]


def _without_scores(result: Result, unreadable: Container[str]) -> list[str]:
    """A sentence where the model itself has no number for captions."""
    found = result.found
    owners = [found.clips[video].video_id for video in found.video_of_caption]
    missing = found.ranks["text_to_video"].missing
    lost = sum(m and name not in unreadable for m, name in zip(missing, owners, strict=True))
    if not lost:
        return []
    return [
        f"{lost:,} of {len(owners):,} captions count as misses although their video can be read: "
        "the model's scores are no numbers (nan). Are its weights whole?"
    ]


def _counted_as_in_clip4clip(result: Result) -> dict[str, dict[str, float]]:
    """By direction, what CLIP4Clip's code would print where it counts another number of queries."""
    several = len(result.found.captions) > len(result.found.clips)
    counted = {
        direction: reference_metrics(ranks)
        for direction, ranks in result.found.ranks.items()
        if direction == "video_to_text" or not several
    }
    return {
        direction: metrics
        for direction, metrics in counted.items()
        if metrics["queries"] != len(result.found.ranks[direction].rank)
    }


def _bounds(result: Result) -> dict[str, dict[str, tuple[float, float] | None]]:
    """The intervals as JSON has them; None where a single video leaves one undefined."""
    return {
        direction: {k: None if isnan(i.low) else (i.low, i.high) for k, i in found.items()}
        for direction, found in result.intervals.items()
    }


def _file(result: Result) -> str:
    """The file of a result's ranks."""
    return f"ranks-{result.name}.parquet" if result.name else "ranks.parquet"


def _counts(
    options: Options, protocol: Protocol | None, clips: Sequence[Clip], missing: dict[str, Clip]
) -> str:
    """What was evaluated, in one line."""
    captions = sum(len(clip.captions) for clip in clips)
    line = f"{protocol.name}: " if protocol else ""
    line += f"N = {len(clips):,} videos"
    if options.exclude_missing:
        all_ = protocol.videos if protocol else len(clips) + len(missing)
        line += f" of {all_:,} ({all_ - len(clips):,} excluded because they are missing)"
    line += f", {captions:,} captions"
    if missing and not options.exclude_missing:
        line += f"; {len(missing):,} videos are missing and count as misses"
    return line


def _write_missing(output: Path, missing: dict[str, Clip], reasons: dict[str, str]) -> None:
    """The list of all missing videos; none is left of an earlier run."""
    path = output / "missing.csv"
    path.unlink(missing_ok=True)
    if missing:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["video_id", "path", "reason"])
            rows.writerows([name, str(clip.path), reasons[name]] for name, clip in missing.items())


def _print(
    results: Sequence[Result], record: dict[str, Any], output: Path, missing: dict[str, Clip]
) -> None:
    lines = {
        f"{direction.replace('_', ' ')}{', ' if result.name else ''}{result.name}": {
            "R@1": values["R@1"],
            "95 % interval": ends(result.intervals[direction]["R@1"]),
            **values,
        }
        for result in results
        for direction, values in result.metrics.items()
    }
    table = pd.DataFrame(lines, dtype=object).T
    print(f"\n{table.to_markdown(floatfmt='.1f')}\n\n{record['evaluated']}")
    for result in results:
        if result.label:
            print(f"{result.name}: {result.label}")
    print(f"videos: {record['counts']}; {TIE_RULE}")
    for direction, note in record["tie_note"].items():
        if note:
            print(f"{direction.replace('_', ' ')}: {note}")
    for direction, counted in record["counted_as_in_clip4clip"].items():
        if record["protocol"]:  # else there is no figure of others to compare with
            print(
                f"{direction.replace('_', ' ')}: CLIP4Clip's code, which counts a tie several "
                "times and a query without a score not at all, would print R@1 "
                f"{counted.get('R@1', 0):.1f} of {counted['queries']:,} queries"
            )
    for note in record["notes"]:
        print(note)
    treatment = "excluded" if record["excluded"] else "counted as a miss"
    for name in list(missing)[:SHOWN]:
        print(f"unreadable, {treatment}: {name}: {record['unreadable'][name]}")
    if len(missing) > SHOWN:
        print(f"and {len(missing) - SHOWN:,} more, all of them in {output / 'missing.csv'}")
    print(
        f"manifest {record['manifest_hash'][:16]}, model {record['model_fingerprint'][:16]}, "
        f"{record['frames']} frames by {record['sampling']}, {record['words']} words"
    )
    print(f"every rank: {output / _file(results[0])}")
