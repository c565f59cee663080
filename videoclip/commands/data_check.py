"""`videoclip data check`: a manifest, a folder or files -> which videos can be used."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import tyro

from data_prep.videos import is_video, list_files
from videoclip.commands.data import require_above_zero
from videoclip.errors import VideoclipError
from videoclip.frames.check import Row, check, columns, remarks, summary
from videoclip.frames.gate import Limits
from videoclip.frames.packed import is_packed
from videoclip.manifest import Clip, read_manifest, write_manifest

DEFAULT = Limits()
LISTED = 5_000
"""So many bad files stand in the page; the JSON file has all."""
SHOWN = 10
"""So many are printed."""
MEANINGS = {
    "ok": "opened and decoded without an error",
    "missing": "there is no such file, or it may not be read",
    "empty": "0 bytes: fetch it again",
    "not video": "something else, often a web page in place of a download: fetch it again",
    "truncated": "a part of a video: fetch it again",
    "no video stream": "sound or nothing: leave it out",
    "no frame": "a video stream without a frame: leave it out",
    "refused format": "a container or playlist that is not opened here: convert it to .mp4",
    "refused codec": "a codec that is not decoded here: convert it to H.264",
    "too large": "more pixels than allowed: --side, --pixels, --memory",
    "too long": "more seconds or frames than allowed: --seconds, --frames",
    "decode error": "damaged inside: fetch it again",
    "timeout": "not done in time: --timeout, or leave it out",
    "crash": "its decoder ended: leave it out",
    "segment outside": "the clip begins behind the end of its video: correct the manifest",
    "variable rate": "frames are not evenly spaced: every tenth is not one every so many seconds",
    "rotated": "to be shown turned, as phones record; it is turned when it is read",
    "non-square pixels": "stored narrower or wider than shown; read as stored",
    "one frame": "a picture as a video",
    "several video streams": "the best one is read",
    "10 bit or more": "read as 8 bit",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Tries every video in a process of its own, and says of each what it is.

    Containers, codecs, sides and duration are checked before anything is decoded; a decoder that
    hangs or crashes costs one file. Run again, it goes on where it was stopped.
    """

    source: tyro.conf.Positional[tuple[Path, ...]]
    """A manifest, or folders and video files."""
    output: Path = Path("data-check")
    """Gets report.json, report.html and, of a manifest, NAME.checked with a column for each finding
    and NAME.good with what is ok."""
    full: bool = False
    """Decode every frame; without it head, middle and tail."""
    every: bool = False
    """Look at all files of a folder, not only at those that are called like videos."""
    workers: int = max(1, (os.cpu_count() or 2) - 1)
    """Processes at once."""
    timeout: float | None = None
    """Seconds for one file. None: 60, or 600 with --full."""
    side: int = DEFAULT.side
    """Allowed pixels of a side."""
    pixels: int = DEFAULT.pixels
    """Allowed pixels of a frame."""
    seconds: float = DEFAULT.seconds
    """Allowed duration."""
    frames: int = DEFAULT.frames
    """Allowed frames."""
    memory: int = DEFAULT.memory
    """Allowed bytes of address space of a process."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, checks everything, writes the reports and prints the counts."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip data check", description=Options.__doc__
    )
    if options.timeout is None:
        options = dataclasses.replace(options, timeout=600.0 if options.full else DEFAULT.timeout)
    names = ("workers", "timeout", "side", "pixels", "seconds", "frames", "memory")
    require_above_zero(options, names)
    manifest = _manifest(options.source)
    clips = read_manifest(manifest) if manifest else _clips(options)
    if any(is_packed(clip.path) for clip in clips):
        raise VideoclipError(
            f"{manifest} is a packed store's manifest, and its videos were checked when they were "
            "packed; give the manifest of the files"
        )
    limits = Limits(**{name: getattr(options, name) for name in Limits._fields})
    options.output.mkdir(parents=True, exist_ok=True)
    rows = check(clips, limits, workers=options.workers, journal=options.output / "journal.jsonl")
    if manifest:
        for kind, chosen in (("checked", rows), ("good", [row for row in rows if row.ok])):
            path = options.output / f"{manifest.stem}.{kind}{manifest.suffix}"
            write_manifest(path, [row.clip for row in chosen], columns(chosen))
    _write_reports(rows, options)
    _print(rows, options)


def _manifest(source: Sequence[Path]) -> Path | None:
    if not source:
        raise VideoclipError("nothing to check is given; videoclip data check MANIFEST or FOLDER")
    manifests = [path for path in source if path.suffix in (".jsonl", ".parquet")]
    if manifests and len(source) > 1:
        raise VideoclipError("give one manifest, or folders and videos, but not both")
    return manifests[0] if manifests else None


def _clips(options: Options) -> list[Clip]:
    """A clip for every file. Raises VideoclipError where a folder has none."""
    clips, left = [], 0
    for place in options.source:
        if not place.is_dir():
            clips.append(Clip(str(place), place.absolute()))
            continue
        files = list_files(place)
        chosen = [path for path in files if options.every or is_video(path)]
        left += len(files) - len(chosen)
        clips += [Clip(str(place / path), (place / path).absolute()) for path in chosen]
    if left:
        print(f"{left:,} files are not called like videos and not looked at (--every)")
    if not clips:
        raise VideoclipError(f"there is no video in {' '.join(map(str, options.source))}")
    return clips


def _write_reports(rows: Sequence[Row], options: Options) -> None:
    counts = summary(rows)
    bad = [row for row in rows if not row.ok]
    record = counts | {
        "source": [str(path) for path in options.source],
        "options": {k: str(v) for k, v in dataclasses.asdict(options).items()},
        "clips": [
            {"video_id": row.clip.video_id, "path": str(row.clip.path), "remarks": remarks(row)}
            | row.found
            for row in rows
        ],
    }
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("videoclip.frames", "."), autoescape=True, trim_blocks=True
    ).get_template("check.html.jinja")
    texts = {
        "report.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
        "report.html": page.render(
            source=", ".join(map(str, options.source)),
            summary=counts,
            meanings=MEANINGS,
            how="Every frame was decoded."
            if options.full
            else "Head, middle and tail of every file were decoded; --full decodes all of it.",
            bad=bad[:LISTED],
            named=_manifest(options.source) is not None,
            more=len(bad) - len(bad[:LISTED]),
            json="report.json",
        ),
    }
    for name, text in texts.items():
        part = options.output / f"{name}.part"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(options.output / name)


def _print(rows: Sequence[Row], options: Options) -> None:
    counts = summary(rows)
    print(f"{counts['ok']:,} ok + {counts['bad']:,} bad = {counts['files']:,}")
    for kind, count in counts["by_class"].items():
        print(f"  {count:>7,} {kind}: {MEANINGS[kind]}")
    for name, count in counts["remarks_on_ok"].items():
        print(f"  {count:>7,} of the ok: {name}")
    bad = [row for row in rows if not row.ok]
    for row in bad[:SHOWN]:
        # A name may hold signs that a terminal takes for commands.
        print(f"  {row.clip.video_id!a}: {row.found['status']}: {row.found['detail']!a}")
    if len(bad) > SHOWN:
        print(f"  and {len(bad) - SHOWN:,} more")
    print(f"{options.output / 'report.html'}")
