"""pytorchvideo's networks as towers, and classes instead of a text tower."""

import json
import warnings

import pytest
import torch

from videoclip.checkpoints.weights import load
from videoclip.config import from_json, to_json
from videoclip.errors import VocabularyError
from videoclip.heads import LSTM
from videoclip.mixers import Shift
from videoclip.model import Model
from videoclip.towers import Labels, Network, Text, ViT

FAMILIES = ("x3d", "slowfast", "mvit")


def small(family: str, **settings) -> Model:
    return Model(
        visual=Network(family=family, frames=4, image_size=32, width=0.25),
        text=Labels(classes=("jump", "run")), embedding=16, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "frames", "maker"),
    [("x3d", 16, "x3d_m"), ("slowfast", 32, "slowfast_r50"), ("mvit", 16, "mvit_base_16x4")],
)
def test_the_published_networks_are_built(family: str, frames: int, maker: str) -> None:
    with warnings.catch_warnings():  # pytorchvideo compiles in an old way
        warnings.simplefilter("ignore")
        from pytorchvideo.models import hub

    own = Network(family=family, frames=frames).build(400)
    theirs = getattr(hub, maker)(pretrained=False)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {k.removeprefix("network."): v.shape for k, v in own.state_dict().items()} == shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_makes_one_feature_of_the_real_frames(family: str) -> None:
    torch.manual_seed(0)
    tower = small(family).build().clip.visual.eval()
    video = torch.randn(2, 6, 3, 32, 32)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    found = tower(video, mask)
    assert found.frames.shape == (2, 1, 16)
    assert found.mask.all()
    # Of 6 frames the middles of 4 parts (0.75, 2.25, 3.75, 5.25), of 3 (0.4, 1.1, 1.9, 2.6).
    picked = torch.stack([video[0, [0, 2, 3, 5]], video[1, [0, 1, 1, 2]]])
    assert torch.allclose(tower(picked, torch.ones(2, 4, dtype=torch.bool)).frames, found.frames)
    changed = video.clone()
    changed[1, 3:] = 9.0
    assert torch.equal(tower(changed, mask).frames, found.frames), "padding changes nothing"
    backward = tower(picked.flip(1), torch.ones(2, 4, dtype=torch.bool)).frames
    assert not torch.allclose(backward, found.frames, atol=1e-4), "it sees the order"


def test_every_class_has_a_vector() -> None:
    model = small("x3d").build().eval()
    ids = model.tokenize(["run", "jump", "run"])
    assert ids.tolist() == [[1], [0], [1]]
    assert torch.equal(model.encode_text(ids), model.clip.label_embedding.weight[[1, 0, 1]])
    with pytest.raises(VocabularyError, match=r"'runs' is no class .* 2 classes.*'run'"):
        model.tokenize("runs")
    assert model.similarity(ids, torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)).shape == (3, 1)


def test_all_of_it_is_new() -> None:
    model = small("x3d").build()
    new = {id(p) for p in model.new_parameters()}
    assert new == {id(p) for p in model.parameters()} - {id(model.clip.logit_scale)}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_and_loaded(family: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = small(family).build().eval()
    model.save_pretrained(tmp_path)
    found = load(tmp_path)
    video = torch.randint(0, 255, (1, 4, 3, 32, 32), dtype=torch.uint8)
    ids = found.tokenize(["jump", "run"])
    with torch.no_grad():
        assert torch.equal(found.similarity(ids, video), model.similarity(ids, video))
    assert "0.25 of its channels" in (tmp_path / "README.md").read_text()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4 frames, not 6"):
        Network(family="slowfast", frames=6)
    with pytest.raises(ValueError, match="does not divide image_size 40"):
        Network(image_size=40)
    with pytest.raises(ValueError, match="it mixes frames itself"):
        small("x3d", mixer=Shift())
    small("x3d", head=LSTM()).build()


def test_a_configuration_without_a_kind_means_the_towers_that_there_were() -> None:
    written = to_json(Model())
    assert written["text"]["kind"] == "text"
    del written["text"]["kind"], written["visual"]["kind"]
    found = from_json(Model, json.loads(json.dumps(written)))
    assert (type(found.visual), type(found.text)) == (ViT, Text)
