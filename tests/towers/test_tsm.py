"""TSM's ResNet as a tower: masks, placements, and what it refuses. Its numbers: tests/parity."""

import pytest
import torch
from foreign import randomized

from videoclip.checkpoints.weights import load
from videoclip.config import from_json, to_json
from videoclip.heads import Mean, Transformer
from videoclip.mixers import Shift
from videoclip.model import Model
from videoclip.scorers import Dot
from videoclip.towers import TSM, Labels
from videoclip.towers.base import Visual
from videoclip.types import Features

SMALL = {"block": "basic", "layers": (1, 1, 1, 1)}


def model_of(tower: TSM, **fields) -> Model:
    labels = Labels(classes=("jump", "run"), bias=True)
    return Model(
        visual=tower, text=labels, embedding=512, scorer=Dot(), templates=("{}",),
        **({"head": Mean(average="plain")} | fields),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["residual", "block", "none"])
def tower(request) -> torch.nn.Module:
    torch.manual_seed(0)
    return randomized(TSM(placement=request.param, **SMALL).build(512)).eval()


@torch.no_grad()
def test_padding_never_reaches_real_frames(tower) -> None:
    video = torch.randn(3, 5, 3, 32, 32)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True, False, True, False, False]])
    found = tower(video, mask)
    assert found.frames.shape == (3, 5, 512)
    noise = torch.where(mask[:, :, None, None, None], video, 100 * torch.randn_like(video))
    assert torch.equal(tower(noise, mask).frames, found.frames)
    assert not found.frames[~mask].any()
    alone = tower(video[1:2, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(alone.frames, found.frames[1:2, :2], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_only_neighbors_of_shifted_towers_see_a_frame(tower) -> None:
    video, mask = torch.randn(1, 12, 3, 32, 32), torch.ones(1, 12, dtype=torch.bool)
    other = video.clone()
    other[:, 11] = 0
    changed = (tower(video, mask).frames - tower(other, mask).frames).abs().amax(-1)[0] > 1e-4
    reach = 0 if tower.config.placement == "none" else 4  # one frame a block, and there are four
    assert changed.tolist() == [frame >= 11 - reach for frame in range(12)]


def test_batch_normalization_counts_real_frames_alone() -> None:
    torch.manual_seed(0)
    tower = TSM(**SMALL).build(512).train()
    video, mask = torch.randn(2, 3, 3, 32, 32), torch.tensor([[True] * 3, [True, False, False]])
    found: Features = tower(100 * ~mask[:, :, None, None, None] + video, mask)
    found.frames.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    mean = tower.bn1.running_mean.clone()
    tower.bn1.reset_running_stats()
    tower(video, mask)
    assert torch.equal(tower.bn1.running_mean, mean)


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path) -> None:
    model = model_of(TSM(placement="block", **SMALL)).build().eval()
    randomized(model.clip)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    assert from_json(Visual, to_json(model.config.visual)) == model.config.visual
    video = torch.randint(0, 255, (1, 4, 3, 32, 32), dtype=torch.uint8)
    ids = again.tokenize(["jump", "run"])
    assert torch.equal(again.similarity(ids, video), model.similarity(ids, video))
    assert "(1, 1, 1, 1) basic blocks, shift: block" in (tmp_path / "README.md").read_text()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"basic blocks have 512 channels.*embedding is 64"):
        TSM(**SMALL).build(64)
    for divisor in (1, 65):
        with pytest.raises(ValueError, match=f"divisor is {divisor}"):
            TSM(divisor=divisor)
    with pytest.raises(ValueError, match="it mixes frames itself"):
        model_of(TSM(**SMALL), mixer=Shift())
    with pytest.raises(ValueError, match=r"TSM keeps no layers \(2 asked for by the head\)"):
        TSM(**SMALL).build(512)(torch.zeros(1, 1, 3, 32, 32), torch.ones(1, 1).bool(), (), 2)
    model_of(TSM(**SMALL), head=Transformer(layers=1)).build()
