"""The loss against an independent formula, and the loop's promises."""

import math
from pathlib import Path

import clips as files
import pytest
import torch
import torch.nn.functional as F
from models import build

from videoclip.data import FrameStore
from videoclip.errors import VideoclipError
from videoclip.experiment import Data, Optim
from videoclip.losses import contrastive
from videoclip.manifest import Clip
from videoclip.tokenizer import Tokenizer
from videoclip.towers import Text
from videoclip.train import parameter_groups, train


def test_one_match_per_row_is_clips_loss() -> None:
    scores = torch.randn(5, 5)
    target = torch.arange(5)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    torch.testing.assert_close(contrastive(scores, torch.eye(5, dtype=torch.bool)), expected)


def test_several_matches_share_the_target() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
    matches = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    rows = scores.log_softmax(1)
    columns = scores.log_softmax(0)
    by_text = -((rows[0, 0] + rows[0, 1]) / 2 + (rows[1, 0] + rows[1, 1]) / 2 + rows[2, 2]) / 3
    by_video = (columns[0, 0] + columns[1, 0]) / 2 + (columns[0, 1] + columns[1, 1]) / 2
    by_video = -(by_video + columns[2, 2]) / 3
    torch.testing.assert_close(contrastive(scores, matches), (by_text + by_video) / 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number in range(6):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(4 + number, width=32, height=32))
        made.append(Clip(f"v{number}", path, (f"number {number}",)))
    return made


def train_small(videos: list[Clip], folder: Path, values: list[float], **optim: float):
    model = build(head="lstm", text=Text(width=32, layers=1, context_length=12))
    store = FrameStore(folder, size=16, frames=4)
    store.fill(videos, 1, "clips")
    seen = iter(values)
    weights = []

    def validate(model) -> float:
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(seen)

    history = train(
        model, videos, store, Tokenizer(12),
        optim=Optim(epochs=len(values) - 1, batch_size=3, tower_rate=1e-3, **optim),
        data=Data(takes=1, crop=0.8), seed=0, validate=validate, label="test",
    )  # fmt: skip
    return model, history, weights


def test_the_best_validated_epoch_is_kept(videos, tmp_path) -> None:
    model, history, weights = train_small(videos, tmp_path, [1.0, 5.0, 3.0, 2.0])
    assert [epoch.validation for epoch in history] == [1.0, 5.0, 3.0, 2.0]
    assert history[0].loss is None
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[1][key])
    assert not torch.equal(weights[0]["clip.visual.proj"], weights[1]["clip.visual.proj"])


def test_the_same_seed_gives_the_same_weights(videos, tmp_path) -> None:
    first, history, _ = train_small(videos, tmp_path, [0.0, 1.0, 2.0])
    second, again, _ = train_small(videos, tmp_path, [0.0, 1.0, 2.0])
    assert history[1:] == again[1:]
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_no_epochs_leave_the_weights_alone(videos, tmp_path) -> None:
    model, history, weights = train_small(videos, tmp_path, [7.0])
    assert len(history) == 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[0][key])


def test_a_loss_that_is_not_finite_stops_with_the_clips_named(videos, tmp_path) -> None:
    with pytest.raises(VideoclipError, match=r"the loss is nan in epoch 1 with the clips v"):
        train_small(videos, tmp_path, [0.0] * 3, max_norm=math.nan)


def test_groups_have_their_rates_and_only_matrices_decay() -> None:
    model = build(head="transformer")
    groups = parameter_groups(model, Optim(tower_rate=1.0, module_rate=2.0, weight_decay=3.0))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.clip.visual.proj)] == (1.0, 3.0)
    assert found[id(model.clip.visual.ln_post.weight)] == (1.0, 0.0)
    assert found[id(model.clip.logit_scale)] == (1.0, 0.0)
    assert found[id(model.clip.token_embedding.weight)] == (1.0, 0.0)
    assert found[id(model.head.positions)] == (2.0, 0.0)
    assert found[id(model.head.transformer.resblocks[0].attn.in_proj_weight)] == (2.0, 3.0)


def test_the_temperature_is_clamped() -> None:
    clip = build().clip
    clip.logit_scale.data.fill_(9.0)
    clip.clamp_logit_scale()
    assert clip.logit_scale.exp().item() == pytest.approx(100)
