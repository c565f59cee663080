"""Every row of every recipe trains: a twin of it, small enough for a CPU, on moving shapes.

The twin keeps what the recipe says about tasks, slots, losses, optimizers, precision, sampling and
augmentation; towers, frames and epochs are small, and a protocol's counts are not asked for.
"""

import math
import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import experiments
from data_prep.moving_shapes import generate
from videoclip.config import from_json, to_json
from videoclip.experiment import Experiment, Row, recipe_named
from videoclip.heads import ClassToken, Transformer
from videoclip.model import Model
from videoclip.reports.cells import run_cell
from videoclip.reports.material import Material, gather
from videoclip.reports.results import summarize
from videoclip.scorers import Tight
from videoclip.tasks import Recognition, Retrieval
from videoclip.towers import Network, Text, Visual, ViT

RECIPES = {
    name: recipe
    for module in pkgutil.iter_modules(experiments.__path__)
    if isinstance((recipe := recipe_named(name := module.name)).base, Experiment)
}
ROWS = [(name, row) for name, recipe in RECIPES.items() for row in recipe.rows]
TOWERS = Model(
    visual=ViT(width=64, layers=1, patch_size=8, image_size=32),
    text=Text(width=64, layers=1, context_length=32),
    embedding=64,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Eight captions and labels, a clip of each in every split."""
    folder = tmp_path_factory.mktemp("world")
    return generate(folder, clips_per_caption=1, images=20, shapes=["square"], colors=["red"])


def small_tower(visual: Visual | None) -> Visual | None:
    if isinstance(visual, Network):
        return replace(visual, frames=4, image_size=32, width=0.25)
    return visual and TOWERS.visual


def twin(base: Experiment, manifest: Path) -> Experiment:
    task = base.task
    if isinstance(task, Retrieval):
        task = replace(task, protocol=None)
    model = replace(TOWERS, mixer=base.model.mixer, head=base.model.head, scorer=base.model.scorer)
    return replace(
        base, task=task, model=model,
        data=replace(base.data, manifest=manifest, frames=4, words=16, takes=1, workers=0),
        finetune=replace(base.finetune, epochs=1, batch_size=5),
    )  # fmt: skip


def twin_row(row: Row) -> Row:
    head, scorer = row.head, row.scorer
    if isinstance(head, Transformer | ClassToken):
        head = replace(head, layers=1)
    if isinstance(scorer, Tight):
        scorer = replace(scorer, layers=1)
    frames = row.frames and 5
    return replace(row, visual=small_tower(row.visual), head=head, scorer=scorer, frames=frames)


@pytest.fixture(scope="module")
def materials(world: Path, tmp_path_factory) -> dict[str, Material]:
    """What each recipe's twin is trained on; frames that recipes share are decoded once."""
    folder = tmp_path_factory.mktemp("frames")
    found = {}
    for name, recipe in RECIPES.items():
        base = twin(recipe.base, world)
        rows = [twin_row(row).of(base) for row in recipe.rows.values()]
        found[name] = gather([base, *rows], folder)
    return found


@pytest.mark.parametrize(("recipe", "row"), ROWS)
def test_every_row_trains(recipe: str, row: str, materials, tmp_path: Path) -> None:
    material = materials[recipe]
    torch.manual_seed(0)
    base = TOWERS.build()
    chosen = twin_row(RECIPES[recipe].rows[row])
    cell = run_cell(row, chosen, 0, material, base, "base", tmp_path)
    losses = [loss for _, loss, _ in cell.facts["history"] if loss is not None]
    assert len(losses) == 1
    assert math.isfinite(losses[0])
    results = summarize({row: [cell]}, {row: chosen}, material)
    [line] = results["rows"]
    assert line["published"] == chosen.published
    if isinstance(material.experiment.task, Recognition):
        assert cell.facts["counts"] == "expected 8 = scored 8 + 0 bad"
        assert set(line["video_to_class"]) == {"top-1", "top-5", "mean class"}
    else:
        assert cell.facts["counts"] == "expected 8 = evaluated 8 = unique 8"
        assert set(line["text_to_video"]) == {"R@1", "R@5", "R@10", "MdR", "MnR"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_its_record(recipe: str) -> None:
    base = RECIPES[recipe].base
    assert from_json(Experiment, to_json(base), "experiment") == base
    for row in RECIPES[recipe].rows.values():
        assert from_json(Row, to_json(row), "row") == row
        row.of(base).model.tokenizer()


def test_both_tasks_have_recipes_and_figures() -> None:
    tasks = {name: type(recipe.base.task) for name, recipe in RECIPES.items()}
    assert tasks["msrvtt"] is tasks["moving_shapes"] is Retrieval
    assert tasks["kinetics400"] is tasks["moving_actions"] is Recognition
    for recipe in RECIPES.values():
        for row in recipe.rows.values():
            assert row.published is None or "(" in row.published, "a figure names its source"
