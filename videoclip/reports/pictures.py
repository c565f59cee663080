"""Strips of frames for the report's gallery."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transform

from videoclip.reports.material import Material

HEIGHT = 96
"""Pixels of a strip; small frames are enlarged, large ones reduced."""


def add_pictures(results: Mapping[str, Any], material: Material, folder: Path) -> None:
    """Writes one strip per clip that the galleries show and adds its path to their items."""
    clips = {clip.video_id: clip for clip in material.splits["test"]}
    (folder / "pictures").mkdir(exist_ok=True)
    written: dict[str, str | None] = {}

    def picture(video_id: str) -> str | None:
        if video_id not in written:
            written[video_id] = None
            if video_id not in material.unreadable:
                # Ids may hold anything that a file name may not.
                name = f"pictures/{hashlib.sha256(video_id.encode()).hexdigest()[:16]}.jpg"
                frames = material.evaluated(clips[video_id])
                strip(frames).save(folder / name, quality=90)
                written[video_id] = name
        return written[video_id]

    for row in results["rows"]:
        for item in (*row["gallery"]["right"], *row["gallery"]["wrong"]):
            item["truth_picture"] = picture(item["truth"])
            for clip in item.get("retrieved", ()):
                clip["picture"] = picture(clip["video_id"])


def strip(frames: torch.Tensor) -> Image.Image:
    """Frames (T, 3, H, W) uint8 beside each other, in the order of time."""
    exact = transform.InterpolationMode.NEAREST_EXACT  # enlarged pixels stay what they are
    larger = frames.shape[-1] < HEIGHT
    mode = exact if larger else transform.InterpolationMode.BICUBIC
    resized = transform.resize(frames, [HEIGHT, HEIGHT], interpolation=mode)
    return transform.to_pil_image(torch.cat(list(resized), dim=-1))
