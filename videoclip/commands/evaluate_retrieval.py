"""`videoclip evaluate retrieval`: a trained model on a manifest; a table, and every rank."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import tyro

from videoclip.cells import device, rank_table
from videoclip.data import FrameStore
from videoclip.evaluate import FrameOrder, evaluate
from videoclip.manifest import manifest_hash, read_manifest, require_captions, with_splits
from videoclip.metrics import TIE_RULE, tie_note
from videoclip.weights import load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluates a trained model on text-video retrieval and prints R@1, R@5, R@10, MdR and MnR.

    Every clip of the split is scored once. Clips that cannot be read are listed and counted as
    misses.
    """

    model: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder that compare or save_pretrained wrote, such as
    runs/moving_shapes/cells/..., a file, ViT-B/32, or a name on the Hugging Face hub."""
    data: Path
    """The manifest, .jsonl or .parquet."""
    split: str = "test"
    """Which of its clips; "all" is every clip."""
    frames: int = 8
    """Frames per clip, uniformly sampled."""
    words: int = 32
    """Tokens per caption."""
    frame_order: FrameOrder = "normal"
    """What a model loses when frames are shuffled or reversed is what it knew from their order."""
    output: Path | None = None
    """A folder for evaluation.json and ranks.parquet. Default: MODEL/evaluation-ORDER where
    MODEL is a folder, else runs/evaluation-ORDER."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, evaluates and prints."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip evaluate retrieval", description=Options.__doc__
    )
    model = load(options.model).to(device())
    clips = read_manifest(options.data)
    if options.split != "all":
        by_split, note = with_splits(clips, options.data, needed=(options.split,))
        if note:
            print(note)
        clips = by_split[options.split]
    require_captions(clips, options.data)
    beside = Path(options.model) if Path(options.model).is_dir() else Path("runs")
    output = options.output or beside / f"evaluation-{options.frame_order}"
    store = FrameStore(
        output / "frames",
        size=model.config.visual.image_size,
        frames=options.frames,
        fit=model.config.pixels.fit,
    )
    store.fill(clips, 1, options.split)
    found = evaluate(model, clips, store, model.tokenizer(options.words), order=options.frame_order)
    metrics = found.metrics()
    rank_table({options.frame_order: found}).to_parquet(output / "ranks.parquet")
    record = {
        "metrics": metrics,
        "counts": found.counts,
        "tie_rule": TIE_RULE,
        "tie_note": {direction: tie_note(ranks) for direction, ranks in found.ranks.items()},
        "unreadable": store.unreadable,
        "ms_per_clip": found.ms_per_clip,
        "manifest_hash": manifest_hash(options.data),
        "options": {k: str(v) for k, v in dataclasses.asdict(options).items()},
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
    table = pd.DataFrame(metrics).T.rename(index=lambda name: name.replace("_", " "))
    print(f"\n{table.to_markdown(floatfmt='.1f')}\n\nvideos: {found.counts}; {TIE_RULE}")
    for direction, note in record["tie_note"].items():
        if note:
            print(f"{direction.replace('_', ' ')}: {note}")
    for video_id, reason in store.unreadable.items():
        print(f"unreadable, counted as a miss: {video_id}: {reason}")
    print(f"every rank: {output / 'ranks.parquet'}")
