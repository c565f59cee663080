"""Tiny labelled .mp4 files and their manifest, for everything that recognizes actions."""

from pathlib import Path

import numpy as np
from clips import write_video

from videoclip.manifest import Clip, write_manifest

ACTIONS = ("fade", "flicker", "move left")


def action(name: str, seed: int, frames: int = 10, side: int = 32) -> np.ndarray:
    """Frames (F, side, side, 3) uint8 of one of ACTIONS, different for every seed."""
    numbers = np.random.default_rng(seed)
    color = numbers.integers(60, 255, 3)
    pixels = np.zeros((frames, side, side, 3), dtype=np.uint8)
    for at in range(frames):
        share = {"fade": at / frames, "flicker": at % 2, "move left": 1.0}[name]
        left = (frames - at) * (side - 8) // frames if name == "move left" else 8
        pixels[at, 8:24, left : left + 8] = color * share
    return pixels


def labelled(folder: Path, count: int = 6, split: str | None = "test") -> list[Clip]:
    """So many clips on disk, their labels in turn, cut from sources of two clips each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        label = ACTIONS[number % len(ACTIONS)]
        path = write_video(
            folder / f"{number:02}.mp4", action(label, number, frames=8 + number % 5)
        )
        found.append(
            Clip(f"clip{number:02}", path, label=label, split=split, source=f"film {number // 2}")
        )
    return found


def manifest(folder: Path, clips: list[Clip]) -> Path:
    """The manifest of these clips."""
    write_manifest(folder / "clips.jsonl", clips)
    return folder / "clips.jsonl"
