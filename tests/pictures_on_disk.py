"""Tiny pictures, labelled ones on disk, and a tiny CLIP with CLIP's own vocabulary."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from videoclip.model import Model, VideoCLIP
from videoclip.towers import Text, ViT

COLORS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (220, 30, 40)}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes with a little noise, or all noise where the mode is not RGB."""
    numbers = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x + y), np.cos(3 * x), np.sin(x * y)], axis=-1)
    pixels = (127 + 100 * waves + numbers.integers(-20, 20, waves.shape)).clip(0, 255)
    image = Image.fromarray(pixels.astype(np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def class_folders(folder: Path, count: int = 4, seed: int = 0) -> Path:
    """A folder per color with noisy pictures of it."""
    numbers = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = numbers.integers(-20, 20, (20, 24, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def small_clip(**fields: object) -> VideoCLIP:
    """A CLIP of 16 pixels and 20 tokens that takes CLIP's token ids."""
    torch.manual_seed(0)
    config = Model(
        visual=ViT(width=64, layers=1, patch_size=8, image_size=16),
        text=Text(width=32, layers=1, context_length=20),
        embedding=32,
        **fields,
    )
    return config.build().eval()
