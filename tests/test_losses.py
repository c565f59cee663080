"""The losses against independent formulas and other projects' code."""

import math

import pytest
import torch
import torch.nn.functional as F

from videoclip.losses import contrastive, siglip


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


def test_siglip_is_open_clips() -> None:
    from open_clip.loss import SigLipLoss

    image, text = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    expected = SigLipLoss()(image, text, scale, bias)
    scores = scale * text @ image.T + bias
    torch.testing.assert_close(siglip(scores, torch.eye(6, dtype=torch.bool)), expected)


def test_siglip_is_the_one_of_transformers() -> None:
    from transformers import SiglipConfig, SiglipModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    config = SiglipConfig(
        text_config=small | {"vocab_size": 50, "max_position_embeddings": 8},
        vision_config=small | {"image_size": 8, "patch_size": 4},
    )
    model = SiglipModel(config).eval()
    model.logit_bias.data.fill_(-3.0)
    model.logit_scale.data.fill_(1.5)
    with torch.no_grad():
        found = model(
            input_ids=torch.randint(2, 50, (5, 8)), pixel_values=torch.randn(5, 3, 8, 8),
            return_loss=True,
        )  # fmt: skip
    matches = torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(siglip(found.logits_per_text, matches), found.loss)


def test_siglip_counts_every_match_as_a_yes() -> None:
    scores = [[2.0, 1.0, -4.0], [0.5, 3.0, -2.0]]
    matches = [[True, True, False], [False, True, False]]
    expected = 0.0
    for row, wanted in zip(scores, matches, strict=True):
        for score, match in zip(row, wanted, strict=True):
            probability = 1 / (1 + math.exp(-score))
            expected -= math.log(probability if match else 1 - probability)
    assert siglip(torch.tensor(scores), torch.tensor(matches)).item() == pytest.approx(expected / 2)
