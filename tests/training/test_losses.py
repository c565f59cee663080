"""The losses against independent formulas and other projects' code."""

import math

import pytest
import torch
import torch.nn.functional as F

from videoclip.training.losses import LOSSES, classification, contrastive, divergence, siglip


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


IMBALANCED = torch.tensor([3, 3, 3, 3, 3, 1, 2, 1])
"""The classes of a batch: one of them five times, one twice, one once."""


def row_by_row(scores: list[list[float]], matches: list[list[float]]) -> float:
    """ActionCLIP's divergence of rows in plain numbers: softmax(10 matches) against softmax."""
    total = 0.0
    for row, wanted in zip(scores, matches, strict=True):
        logarithm = math.log(sum(math.exp(score) for score in row))
        weights = [math.exp(10 * match) for match in wanted]
        for score, weight in zip(row, weights, strict=True):
            target = weight / sum(weights)
            total += target * (math.log(target) - (score - logarithm))
    return total / len(scores)


@pytest.mark.parametrize("soft", [False, True])
def test_the_divergence_in_both_directions(soft: bool) -> None:
    """Of a batch in which a class stands five times, and of one whose clips are mixed."""
    torch.manual_seed(2)
    scores = 5 * torch.randn(8, 8, dtype=torch.float64)
    matches = IMBALANCED[:, None] == IMBALANCED
    if soft:  # clip j is 0.7 of its own class and 0.3 of another clip's
        matches = 0.7 * matches + 0.3 * matches.flip(1)
    by_text = row_by_row(scores.tolist(), matches.tolist())
    by_video = row_by_row(scores.T.tolist(), matches.T.tolist())
    assert abs(by_text - by_video) > 0.01
    assert divergence(scores, matches).item() == pytest.approx((by_text + by_video) / 2, abs=1e-12)


def test_the_target_of_the_divergence_has_a_closed_form() -> None:
    """Of k matches in a row of B each gets e^10 / (k e^10 + B - k): at these scores it is zero."""
    matches = IMBALANCED[:, None] == IMBALANCED
    count = matches.sum(1, keepdim=True).double()
    share = math.e**10 / (count * math.e**10 + 8 - count)
    rest = 1 / (count * math.e**10 + 8 - count)
    scores = torch.where(matches, share, rest).log()
    assert scores.exp().sum(1) == pytest.approx(torch.ones(8).double())
    assert divergence.of_rows(scores, matches) == pytest.approx(torch.zeros(8), abs=1e-12)
    assert divergence.of_rows(scores + 3, matches) == pytest.approx(torch.zeros(8), abs=1e-12)
    moved = scores.clone()
    moved[0, 7] += 5
    assert divergence.of_rows(moved, matches)[0] > 1e-3


def test_the_divergence_is_torchs_mean_over_all_pairs_times_the_batch() -> None:
    """So the released code computes it (KLLoss of ActionCLIP)."""
    scores, target = torch.randn(8, 8), (10.0 * (IMBALANCED[:, None] == IMBALANCED)).softmax(1)
    parts = [F.kl_div(x.log_softmax(1), target, reduction="none").mean() * 8
             for x in (scores, scores.T)]  # fmt: skip
    torch.testing.assert_close(
        divergence(scores, IMBALANCED[:, None] == IMBALANCED), sum(parts) / 2
    )


def test_classification_is_cross_entropy_over_all_classes() -> None:
    """A row of scores for each of five classes; two of them have no clip in the batch."""
    scores, labels = torch.randn(5, 7), torch.tensor([0, 4, 4, 2, 0, 0, 4])
    matches = torch.arange(5)[:, None] == labels
    expected = F.cross_entropy(scores.T, labels)
    torch.testing.assert_close(classification(scores, matches), expected)
    weight = torch.rand(7)
    mixed = weight * matches + (1 - weight) * matches.roll(1, 1)
    one, other = (F.cross_entropy(scores.T, y, reduction="none") for y in (labels, labels.roll(1)))
    expected = (weight * one + (1 - weight) * other).mean()
    torch.testing.assert_close(classification(scores, mixed), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_and_columns_of_several_processes_add_up(name: str) -> None:
    loss, scores = LOSSES[name], torch.randn(6, 5)
    matches = torch.rand(6, 5).round(decimals=1) + 0.1
    parts = [
        loss.part((scores[rows], matches[rows]), (scores[:, columns], matches[:, columns]), (6, 5))
        for rows, columns in ((slice(0, 4), slice(0, 1)), (slice(4, 6), slice(1, 5)))
    ]
    torch.testing.assert_close(sum(parts), loss(scores, matches))
    nothing = (scores[:0], matches[:0]), (scores[:, :0], matches[:, :0])
    assert loss.part(*nothing, (6, 5)).item() == 0
