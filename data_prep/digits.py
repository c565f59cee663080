"""scikit-learn's digits, or any folder of class folders -> pictures with captions from templates.

The digits are 1,797 real scans of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998) that need no
download. What comes out: `train/` and `test/` with a folder per class, for zero-shot and probes,
and `pairs.csv` with the pictures of train and their captions, to pre-train on.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_TEMPLATES = (
    "a photo of the digit {}.",
    "a scan of the digit {}.",
    "the digit {}, written by hand.",
    "a handwritten {}.",
    "somebody wrote a {}.",
    "the number {}.",
)
PICTURE_TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a small picture of a {}.",
    "there is a {} in the picture.",
    "a {}.",
)
TEST_SHARE = 0.2
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def generate_digits(folder: Path) -> Path:
    """Writes the digits into a folder, once, and returns it."""
    from sklearn.datasets import load_digits

    done = folder / "pairs.csv"
    if done.is_file():
        return folder
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"{number:04d}"
        target = folder / split_of(name) / NAMES[label]
        target.mkdir(parents=True, exist_ok=True)
        # 0 is paper and 16 is ink; three sizes larger, so that they can be looked at.
        gray = Image.fromarray((255 - pixels * 255 / 16).round().astype(np.uint8))
        gray.resize((32, 32), Image.Resampling.BICUBIC).save(target / f"{name}.png")
    write_pairs(folder, DIGIT_TEMPLATES)
    return folder


def generate_pictures(source: Path, folder: Path) -> Path:
    """The same from a folder of class folders, or one with `train` and `test`; files are copied.

    Raises ValueError where there are no pictures in class folders.
    """
    done = folder / "pairs.csv"
    if done.is_file():
        return folder
    splits = (source / "train").is_dir() and (source / "test").is_dir()
    found = 0
    for picture in sorted(source.glob("*/*/*" if splits else "*/*")):
        if picture.suffix.lower() not in PICTURES:
            continue
        relative = picture.relative_to(source)
        target = folder / (relative if splits else Path(split_of(str(relative))) / relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
        found += 1
    if not found:
        raise ValueError(f"{source} holds no pictures in class folders ({', '.join(PICTURES)})")
    write_pairs(folder, PICTURE_TEMPLATES)
    return folder


def write_pairs(folder: Path, templates: Sequence[str]) -> None:
    """Writes `pairs.csv`, last: every picture of train with each template as a caption."""
    unfinished = folder / "pairs.csv.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for picture in sorted((folder / "train").glob("*/*")):
            label = picture.parent.name.replace("_", " ")
            for template in templates:
                rows.writerow([picture.relative_to(folder), template.replace("{}", label)])
    (folder / "about.json").write_text(json.dumps({"templates": list(templates)}) + "\n")
    unfinished.replace(folder / "pairs.csv")


def split_of(name: str) -> str:
    """train or test, a function of the name alone."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "test" if number < TEST_SHARE * 2**64 else "train"
