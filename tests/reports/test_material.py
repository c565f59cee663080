"""What all cells of a comparison share is read as the model needs it, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.moving_shapes import generate
from videoclip.commands import evaluate_retrieval
from videoclip.errors import VocabularyError
from videoclip.experiment import Data, Experiment
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import Pixels
from videoclip.manifest import read_manifest
from videoclip.model import Model
from videoclip.reports.material import gather
from videoclip.towers import Text, ViT

TOWERS = Model(
    visual=ViT(width=64, layers=1, patch_size=8, image_size=16),
    text=Text(width=32, layers=1, context_length=20),
    embedding=32,
    pixels=Pixels(fit="squash"),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    return generate(folder, clips_per_caption=1, images=20, shapes=["square"], colors=["red"])


def test_frames_and_captions_fit_the_model(manifest: Path, tmp_path: Path) -> None:
    experiment = Experiment(data=Data(manifest=manifest, frames=4, words=99), model=TOWERS)
    stores = gather([experiment], tmp_path).stores(experiment)
    for store in (stores.training, stores.evaluation):
        assert (store.size, store.fit, store.frames) == (16, "squash", 4)
    assert experiment.model.tokenizer(experiment.data.words)(["a"] * 3).shape == (3, 20)


def test_captions_for_another_vocabulary_are_refused(manifest: Path, tmp_path: Path) -> None:
    model = replace(TOWERS, text=replace(TOWERS.text, vocabulary=100))
    experiment = Experiment(data=Data(manifest=manifest), model=model)
    with pytest.raises(VocabularyError, match="a vocabulary of 100 tokens, CLIP's tokenizer one"):
        gather([experiment], tmp_path)


def test_evaluation_reads_frames_as_the_model_was_trained(manifest: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    TOWERS.build().save_pretrained(tmp_path / "model")
    output = tmp_path / "evaluation"
    evaluate_retrieval.main(
        [str(tmp_path / "model"), "--data", str(manifest), "--split", "all", "--frames", "4",
         "--output", str(output)]
    )  # fmt: skip
    kept = {path.name for path in (output / "frames").iterdir()}
    store = FrameStore(output / "frames", size=16, frames=4, fit="squash")
    assert {store._path(clip, 1).name for clip in read_manifest(manifest)} == kept
