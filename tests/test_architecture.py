"""The rules of the house: imports run one way, files stay small, the pins agree."""

import ast
import graphlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    ["errors", "types", "randomness", "record"],
    ["distributed"],
    ["manifest", "tokenizer", "prompts", "layers"],
    ["figures", "tasks"],
    ["frames"],
    ["towers"],
    ["mixers", "heads", "scorers"],
    ["config", "model"],
    ["checkpoints", "experiment", "features"],
    ["training", "cluster"],
    ["image_text"],
    ["evaluation"],
    ["reports"],
    ["commands"],
    ["__main__", "__init__"],
]
"""From the bottom to the top; a file may import what stands below it, and its own folder."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LATE = {("model", "checkpoints")}
"""Imports inside a function that point upward: `save_pretrained` is a method by convention."""
LONG = {
    "data_prep/moving_shapes.py": "one benchmark, drawn, encoded and written in one place",
    "scripts/bench_data.py": "one benchmark of all ways from a file to frames, in one place",
}
"""Files over 400 lines, each with its reason."""


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "videoclip").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """What a file imports of videoclip; what only type checkers read does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("videoclip.")}


def parts(path: Path) -> set[str]:
    """The folders and files at the top of videoclip that a file imports."""
    return {name.split(".")[1] for name in imported(path)} & set(LEVEL)


@pytest.mark.parametrize("path", sorted((ROOT / "videoclip").rglob("*.py")), ids=lambda p: p.stem)
def test_imports_run_one_way(path: Path) -> None:
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in LAYERS"
    siblings = {"mixers", "heads", "scorers"}
    wrong = {
        name for name in parts(path) - {own} if LEVEL[name] > LEVEL[own] or {own, name} <= siblings
    }
    wrong -= {to for by, to in LATE if by == own}
    assert not wrong


def test_no_file_imports_itself_by_a_detour() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "videoclip").rglob("*.py")
    }
    graph = {}
    for name, path in files.items():
        wanted = {found for found in imported(path) if found in files}
        wanted |= {found.rpartition(".")[0] for found in imported(path)} & set(files)
        late = {f"videoclip.{to}" for by, to in LATE if by == part_of(path)}
        folder = name.rpartition(".")[0]  # which a file does not wait for
        graph[name] = {w for w in wanted - {name, folder} if not w.startswith(tuple(late) or "-")}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


@pytest.mark.parametrize("path", sorted((ROOT / "data_prep").glob("*.py")), ids=lambda p: p.stem)
def test_data_prep_meets_the_package_only_in_the_manifest(path: Path) -> None:
    assert not imported(path)


def test_files_stay_small() -> None:
    for folder in ("videoclip", "data_prep", "experiments", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400 or str(path.relative_to(ROOT)) in LONG, f"{path}: {lines} lines"


def pins() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    inner = next(item["pip"] for item in listed if isinstance(item, dict))
    return dict(pin.split("==") for pin in inner)


def test_what_is_installed_is_what_is_pinned() -> None:
    for name, version in pins().items():
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_every_dependency_is_pinned_and_every_pin_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["ray"]]
    names = {re.match(r"[\w.-]+", line).group().lower() for line in wanted} - {"decord2"}
    assert names == {name.lower() for name in pins()}


def test_set_up_installs_exactly_the_pins() -> None:
    """scripts/setup.sh reads environment.yml with sed, so that it needs nothing installed."""
    text = (ROOT / "scripts/setup.sh").read_text()
    pattern = re.search(r"s/(\^.*?)/\\1/p", text).group(1)
    pattern = pattern.replace(r"\(", "(").replace(r"\)", ")")
    found = [
        re.match(pattern, line) for line in (ROOT / "environment.yml").read_text().splitlines()
    ]
    assert dict(m.group(1).split("==") for m in found if m) == pins()


def test_torch_and_torchvision_are_of_one_family() -> None:
    import torchvision

    assert torchvision.ops.nms is not None
    import torch

    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torchvision.ops.nms(box, torch.ones(1), 0.5).tolist() == [0]
