"""The published templates: their number, their source, and what users may give instead."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest

from videoclip.errors import VideoclipError
from videoclip.prompts import names, prompts, templates_of

COUNTS = {
    "birdsnap": 1, "cifar10": 18, "cifar100": 18, "clevrcounts": 1, "caltech101": 34,
    "country211": 5, "describabletextures": 8, "eurosat": 3, "fgvcaircraft": 2,
    "facialemotionrecognition2013": 6, "flowers102": 1, "food101": 1, "gtsrb": 3,
    "hatefulmemes": 1, "kitti": 1, "kinetics400": 28, "kinetics600": 28,
    "kinetics700": 28, "mnist": 1, "oxfordpets": 1,
    "pascalvoc2007": 1, "patchcamelyon": 1, "resisc45": 18, "sst2": 1, "stl10": 2, "sun397": 2,
    "stanfordcars": 8, "ucf101": 48, "imagenet": 80, "imagenet-7": 7, "actionclip": 16,
}  # fmt: skip
"""Radford et al. 2021 and Wang et al. 2021 publish so many."""


def test_every_set_has_its_templates_and_says_where_they_are_from() -> None:
    assert set(names()) == set(COUNTS)
    for name, count in COUNTS.items():
        found = prompts(name)
        assert len(found.templates) == count, name
        assert all(template.count("{}") == 1 for template in found.templates)
        assert "/" in found.source
    assert len(prompts("imagenet").classes) == len(set(prompts("imagenet").classes)) + 2 == 1000
    for size in (400, 600, 700):  # CLIP has one set of templates for all of them
        assert len(set(prompts(f"kinetics{size}").classes)) == size
        assert prompts(f"kinetics{size}").templates == prompts("kinetics700").templates
    assert ("happy", "smiling") in prompts("facialemotionrecognition2013").classes


def test_the_sets_are_those_of_the_published_files(shared) -> None:
    folder = shared / "annotations" / "clip"
    if not folder.is_dir():
        folder = shared / "data" / "annotations" / "clip"
    text = (folder / "prompts.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        code = re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1)
        lists = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(code).body}
        found = prompts(section.split("\n")[0].strip())
        assert list(found.templates) == lists["templates"]
        assert [list(c) if isinstance(c, tuple) else c for c in found.classes] == lists["classes"]
    imagenet = json.loads((folder / "imagenet_prompts.json").read_text())
    assert list(prompts("ImageNet").templates) == imagenet["imagenet_templates"]
    assert list(prompts("ImageNet").classes) == imagenet["imagenet_classes"]


def test_kinetics_has_its_own_class_names(shared) -> None:
    for size in (400, 600):
        path = shared / f"data/annotations/labels/kinetics_{size}_labels.csv"
        lines = path.read_text().splitlines()[1:]
        names = tuple(line.split(",", 1)[1].strip('"') for line in lines)
        assert prompts(f"kinetics{size}").classes == names


def test_an_installed_package_has_the_files() -> None:
    root = Path(__file__).resolve().parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = declared["tool"]["setuptools"]["package-data"]["videoclip"]
    packed = {path for pattern in patterns for path in (root / "videoclip").glob(pattern)}
    assert {path.stem for path in packed if path.parent.name == "prompts"} == set(names())


def test_templates_as_users_give_them(tmp_path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffa {}.\n\nthe {}.\n", encoding="utf-8")  # with the mark of some editors
    assert templates_of([str(file), "one {}"]) == ("a {}.", "the {}.", "one {}")
    assert templates_of(["stl10"]) == ("a photo of a {}.", "a photo of the {}.")
    with pytest.raises(VideoclipError, match=r"'cifar11' is neither a file nor.*'cifar10'"):
        templates_of(["cifar11"])
    with pytest.raises(VideoclipError, match=r"one \{} where.*got 'a photo of a dog'"):
        templates_of(["a photo of a dog"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VideoclipError, match=r"templates cannot be read: .*binary.txt.*UTF-8"):
        templates_of([str(tmp_path / "binary.txt")])
    with pytest.raises(VideoclipError, match=r"needs one \{} where the class name goes"):
        templates_of(["a {} and a {}"])
