"""Dual softmax, QB-Norm and re-ranking against their formulas written out with loops."""

import math

import numpy as np
import pytest

from videoclip.evaluation.rescoring import dual_softmax, qb_norm, query_bank, rerank, top_candidates
from videoclip.figures.metrics import text_to_video_ranks, video_to_text_ranks


def order(scores: np.ndarray) -> list[list[int]]:
    """The candidates of every row, the best first."""
    return np.argsort(-scores, axis=1, kind="stable").tolist()


@pytest.mark.parametrize("queries", [0, 1])
def test_dual_softmax_is_the_score_times_its_share_of_all_queries(queries: int) -> None:
    scores = 10 * np.random.default_rng(0).standard_normal((5, 4))
    found = dual_softmax(scores.astype(np.float32), queries=queries)
    for i in range(5):
        for j in range(4):
            rivals = scores[:, j] if queries == 0 else scores[i]
            share = math.exp(scores[i, j]) / sum(math.exp(rival) for rival in rivals)
            assert found[i, j] == pytest.approx(scores[i, j] * share, rel=1e-5)


def test_dual_softmax_orders_like_camoe_and_clip_vip() -> None:
    cosines = np.random.default_rng(1).uniform(0.1, 0.4, (6, 5))
    weights = np.exp(100 * cosines)
    share = weights / weights.sum(axis=0, keepdims=True)
    ours = order(dual_softmax(100 * cosines, queries=0))
    assert ours == order(cosines * share * len(cosines)) == order(cosines * share)
    assert ours != order(cosines)


def test_dual_softmax_takes_a_video_from_the_query_that_wants_it_less() -> None:
    # Both texts like video 0 best; text 0 likes it more, so text 1 gets video 1.
    scores = np.array([[9.0, 2.0], [7.0, 6.5]])
    owners = np.arange(2)
    assert text_to_video_ranks(scores, owners).rank.tolist() == [1, 2]
    found = dual_softmax(scores, queries=0)
    assert text_to_video_ranks(found, owners).rank.tolist() == [1, 1]


@pytest.mark.parametrize("queries", [0, 1])
def test_dual_softmax_keeps_what_is_missing_apart(queries: int) -> None:
    scores = np.random.default_rng(2).standard_normal((4, 3))
    broken = scores.copy()
    broken[:, 1] = np.nan
    found = dual_softmax(broken, queries=queries)
    assert np.isnan(found[:, 1]).all()
    alone = dual_softmax(scores[:, [0, 2]], queries=queries)
    np.testing.assert_allclose(found[:, [0, 2]], alone, rtol=1e-12)


def test_dual_softmax_survives_logits_far_apart() -> None:
    scores = np.array([[1000.0, 900.0], [0.5, 0.25]], dtype=np.float32)
    found = dual_softmax(scores, queries=0)
    assert np.isfinite(found).all()
    assert found[0].tolist() == [1000, 900]


def slow_qb_norm(cosines: np.ndarray, bank: np.ndarray, beta: float) -> np.ndarray:
    hubs = {int(row.argmax()) for row in bank}
    found = cosines.copy()
    for i, row in enumerate(cosines):
        if int(row.argmax()) in hubs:
            for j in range(len(row)):
                total = sum(math.exp(beta * query[j]) for query in bank)
                found[i, j] = math.exp(beta * row[j]) / total
    return found


def test_qb_norm_is_the_dynamic_inverted_softmax() -> None:
    numbers = np.random.default_rng(3)
    cosines, bank = numbers.uniform(-1, 1, (30, 8)), numbers.uniform(-1, 1, (5, 8))
    wanted = slow_qb_norm(cosines, bank, 20)
    untouched = (wanted == cosines).all(axis=1)
    assert 0 < untouched.sum() < 30  # texts of both kinds
    for parts in (1, 2, 5):
        found = qb_norm(cosines, query_bank(np.array_split(bank, parts)))
        np.testing.assert_array_equal(found[untouched], cosines[untouched])
        np.testing.assert_allclose(np.exp(found[~untouched]), wanted[~untouched], rtol=1e-9)
        assert order(found) == order(wanted)


def test_qb_norm_humbles_a_hub() -> None:
    # Video 0 is near to everything: the bank says so.
    bank = query_bank([np.array([[0.9, 0.1], [0.8, 0.2], [0.85, 0.0]])])
    assert bank.hubs.tolist() == [True, False]
    assert bank.queries == 3
    assert order(qb_norm(np.array([[0.6, 0.5]]), bank)) == [[1, 0]]


def test_qb_norm_leaves_out_what_is_missing() -> None:
    bank = np.array([[0.9, np.nan, 0.1], [0.2, np.nan, 0.8]])
    cosines = np.array([[0.3, np.nan, 0.2], [0.1, np.nan, 0.6]])
    found = qb_norm(cosines, query_bank([bank]))
    assert np.isnan(found[:, 1]).all()
    alone = qb_norm(cosines[:, [0, 2]], query_bank([bank[:, [0, 2]]]))
    np.testing.assert_allclose(found[:, [0, 2]], alone)


def test_a_bank_needs_queries() -> None:
    for chunks in ([], [np.zeros((0, 3))]):
        with pytest.raises(ValueError, match="no queries"):
            query_bank(chunks)


def test_the_best_candidates_and_those_that_tie_with_the_last() -> None:
    loose = np.array([[3.0, 1.0, 2.0, 2.0], [0.0, np.nan, 5.0, 4.0], [np.nan] * 4])
    assert top_candidates(loose, 1).sum(axis=1).tolist() == [1, 1, 4]
    assert top_candidates(loose, 2)[:2].tolist() == [
        [True, False, True, True],
        [False, False, True, True],
    ]
    assert top_candidates(loose, 9).all()
    with pytest.raises(ValueError, match="the best 0"):
        top_candidates(loose, 0)


def test_re_ranking_all_candidates_is_the_exact_score() -> None:
    numbers = np.random.default_rng(4)
    loose, exact = numbers.standard_normal((2, 20, 12)).astype(np.float32)
    owners = np.arange(20) % 12
    chosen = top_candidates(loose, 12)
    found = rerank(loose, np.where(chosen, exact, np.nan), chosen)
    assert found.tolist() == exact.tolist()
    ranks = text_to_video_ranks(found, owners).rank
    assert ranks.tolist() == text_to_video_ranks(exact, owners).rank.tolist()


def test_re_ranking_orders_the_chosen_exactly_and_the_rest_loosely() -> None:
    numbers = np.random.default_rng(5)
    loose, exact = numbers.standard_normal((2, 20, 12))
    chosen = top_candidates(loose, 4)
    found = rerank(loose, np.where(chosen, exact, np.nan), chosen)
    for row in range(20):
        best = sorted(np.flatnonzero(chosen[row]), key=lambda j: -exact[row, j])
        rest = sorted(np.flatnonzero(~chosen[row]), key=lambda j: -loose[row, j])
        assert order(found)[row] == [*best, *rest]


def test_what_was_not_chosen_ties_where_its_loose_scores_tie() -> None:
    loose = np.array([[9.0, 1.0, 1.0, 0.5]])
    found = rerank(loose, np.array([[-3.0, np.nan, np.nan, np.nan]]), top_candidates(loose, 1))
    assert found.tolist() == [[-3, -4, -4, -5]]


def test_re_ranking_keeps_missing_scores_missing() -> None:
    loose = np.array([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, np.nan], [np.nan] * 4])
    chosen = top_candidates(loose, 2)
    exact = np.where(chosen, 1.0, np.nan)
    exact[0, :2] = np.nan  # the model has no number for what was chosen
    exact[2] = np.nan
    found = rerank(loose, exact, chosen)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1]).tolist() == [False, False, False, True]
    ranks = text_to_video_ranks(found, np.array([2, 3, 0]))
    assert ranks.missing.tolist() == [True, True, True]


def test_directions_have_their_own_candidates() -> None:
    numbers = np.random.default_rng(6)
    loose, exact = numbers.standard_normal((2, 10, 10))
    for top in (1, 3, 10):
        chosen = top_candidates(loose.T, top)
        found = rerank(loose.T, np.where(chosen, exact.T, np.nan), chosen).T
        slow = [
            1
            + sum(
                (exact[i, j] > exact[j, j] if chosen[j, i] else False)
                if chosen[j, j]
                else (chosen[j, i] or loose[i, j] > loose[j, j])
                for i in range(10)
                if i != j
            )
            for j in range(10)
        ]
        assert video_to_text_ranks(found, np.arange(10)).rank.tolist() == slow
