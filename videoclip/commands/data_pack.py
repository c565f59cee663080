"""`videoclip data pack`: a manifest -> a store of frames that are decoded once and for all."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import tyro

from videoclip.commands.data import part_of_parts, require_above_zero
from videoclip.errors import VideoclipError
from videoclip.frames.gate import Limits
from videoclip.frames.pack import SHARD_BYTES, WHOLE, Found, Share, pack, write_manifests
from videoclip.frames.pack_clip import Packing
from videoclip.frames.packed import BAD, SHARDS
from videoclip.manifest import read_manifest

DEFAULT = Limits()
SHOWN = 10
"""So many bad clips are printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Packing):
    """Decodes every video of a manifest once and keeps what training and evaluation read.

    STORE/NAME.jsonl is then a manifest like any other (--data STORE/NAME.jsonl). Run again after
    an interruption, a change of the manifest or of a file, it does only what is missing; several
    manifests of one store share what they have in common.
    """

    manifest: tyro.conf.Positional[Path]
    """NAME.jsonl or NAME.parquet."""
    output: Path
    """The store, a folder."""
    workers: int = max(1, os.cpu_count() or 1)
    """Processes at once."""
    shard: str | None = None
    """Pack only part i of n, as 3/16, one on each of n machines. What they made becomes the store
    when the command runs without this, with the folder that they share (or the `pieces` and
    `journal-*` of all their folders in one)."""
    ray: str | None = None
    """The address of a Ray cluster that packs, such as auto; local: one on this machine. All its
    machines must see videos and store under the same paths."""
    shard_bytes: int = SHARD_BYTES
    """About so large a .tar becomes."""
    timeout: float = DEFAULT.timeout
    """Seconds without progress after which a file is given up."""
    side: int = DEFAULT.side
    """Allowed pixels of a side."""
    pixels: int = DEFAULT.pixels
    """Allowed pixels of a frame."""
    seconds: float = DEFAULT.seconds
    """Allowed duration."""
    most_frames: int = DEFAULT.frames
    """Allowed frames of a video."""
    memory: int = DEFAULT.memory
    """Allowed bytes of address space of a process."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, packs, writes the manifests and prints the counts."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip data pack", description=Options.__doc__
    )
    names = ("workers", "shard_bytes", "timeout", "side", "pixels", "seconds", "most_frames")
    require_above_zero(options, (*names, "memory"))
    share = Share(*part_of_parts(options.shard)) if options.shard is not None else WHOLE
    if options.ray and share.of > 1:
        raise VideoclipError("--ray and --shard are two ways to share the work; give one of them")
    clips = read_manifest(options.manifest)
    store = options.output
    if store.exists() and not store.is_dir():
        raise VideoclipError(f"{store} is a file; --output names the folder of a store")
    if (store / options.manifest.name).absolute() == options.manifest.absolute():
        raise VideoclipError(
            f"{options.manifest} would be overwritten; choose another folder for the store"
        )
    limits = Limits(
        side=options.side, pixels=options.pixels, seconds=options.seconds,
        frames=options.most_frames, memory=options.memory, timeout=options.timeout,
    )  # fmt: skip
    cluster = import_module("videoclip.cluster") if options.ray else None  # it waits for torch
    with cluster.joined(options.ray) if cluster else nullcontext():
        rows = pack(
            clips, options.record, store, limits,
            workers=options.workers, share=share, shard_bytes=options.shard_bytes,
            elsewhere=cluster.pack if cluster else None,
        )  # fmt: skip
    if share.of > 1:
        good = sum(row.status == "ok" for row in rows.values())
        print(f"part {options.shard}: {good:,} packed + {len(rows) - good:,} bad = {len(rows):,}")
        print("when all parts are done, run the same command without --shard")
        return
    _print(write_manifests(options.manifest.name, clips, rows, store), options)


def _print(found: Sequence[Found], options: Options) -> None:
    bad = [one for one in found if one.status != "ok"]
    print(f"{len(found) - len(bad):,} packed + {len(bad):,} bad = {len(found):,}")
    for kind, count in Counter(one.status for one in bad).most_common():
        print(f"  {count:>7,} {kind}")
    for one in bad[:SHOWN]:
        # A name may hold signs that a terminal takes for commands.
        print(f"  {one.clip.video_id!a}: {one.status}: {one.detail!a}")
    if len(bad) > SHOWN:
        print(f"  and {len(bad) - SHOWN:,} more in {options.manifest.stem}{BAD}")
    shards = list((options.output / SHARDS).glob("*.tar"))
    size = sum(path.stat().st_size for path in shards)
    print(f"{len(shards):,} shards, {size:,} bytes")
    print(f"{options.output / options.manifest.name}")
