"""The digits and class folders as pictures with captions."""

import csv
from pathlib import Path

import numpy as np
import pytest
from pictures_on_disk import class_folders
from PIL import Image

from data_prep.digits import DIGIT_TEMPLATES, generate_digits, generate_pictures


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open() as file:
        return list(csv.DictReader(file))


def test_digits_are_split_once_and_only_train_has_captions(tmp_path) -> None:
    folder = generate_digits(tmp_path / "d")
    pictures = {split: sorted((folder / split).rglob("*.png")) for split in ("train", "test")}
    assert len(pictures["train"]) + len(pictures["test"]) == 1797
    assert 0.15 < len(pictures["test"]) / 1797 < 0.25
    names = [path.name for split in pictures.values() for path in split]
    assert len(set(names)) == 1797
    rows = rows_of(folder)
    assert len(rows) == len(DIGIT_TEMPLATES) * len(pictures["train"])
    assert {folder / row["filepath"] for row in rows} == set(pictures["train"])
    for row in rows[::97]:
        assert Path(row["filepath"]).parent.name in row["caption"]
    picture = np.array(Image.open(pictures["train"][0]))
    assert picture.shape == (32, 32)
    assert picture.max() == 255  # paper


def test_what_is_there_is_kept_and_a_killed_start_is_finished(tmp_path) -> None:
    folder = generate_digits(tmp_path / "d")
    first = (folder / "pairs.csv").read_bytes()
    picture = next((folder / "test").rglob("*.png"))
    marked = picture.stat().st_mtime_ns
    generate_digits(folder)
    assert picture.stat().st_mtime_ns == marked
    (folder / "pairs.csv").unlink()
    picture.unlink()
    generate_digits(folder)
    assert picture.is_file()
    assert (folder / "pairs.csv").read_bytes() == first


def test_class_folders_get_captions(tmp_path) -> None:
    source = class_folders(tmp_path / "colors", 20)
    folder = generate_pictures(source, tmp_path / "out")
    assert (
        len(list((folder / "train").rglob("*.png"))) + len(list((folder / "test").rglob("*.png")))
        == 60
    )
    assert {Path(row["filepath"]).parts[0] for row in rows_of(folder)} == {"train"}
    for split in ("train", "test"):
        class_folders(tmp_path / "split" / split, 2)
    folder = generate_pictures(tmp_path / "split", tmp_path / "other")
    assert len(list((folder / "test").rglob("*.png"))) == 6
    assert "a photo of a red." in {row["caption"] for row in rows_of(folder)}
    with pytest.raises(ValueError, match="holds no pictures in class folders"):
        generate_pictures(tmp_path / "split" / "train" / "red", tmp_path / "none")
