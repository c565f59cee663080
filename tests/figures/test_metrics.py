"""Ranks and metrics against golden figures, torchmetrics, plain loops and a padded argsort."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from videoclip.errors import VideoclipError
from videoclip.figures import metrics
from videoclip.figures.metrics import (
    Ranks,
    check_counts,
    hits_at_k,
    recall_at_k,
    reference_metrics,
    retrieval_metrics,
    text_to_video_ranks,
    tie_note,
    video_to_text_ranks,
)

DIRECTIONS = {"t2v": text_to_video_ranks, "v2t": video_to_text_ranks}
GOLDEN_NAMES = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "MdR": "MedianR", "MnR": "MeanR"}


def one_to_one(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores, np.arange(len(scores))


def uneven_owners(rng: np.random.Generator, captions: int, videos: int) -> np.ndarray:
    """Every video has a caption; the captions of a video do not stand together."""
    extra = rng.integers(0, videos, captions - videos)
    return rng.permutation(np.concatenate([np.arange(videos), extra]))


def awkward_scores(rng: np.random.Generator, captions: int, videos: int) -> np.ndarray:
    """Few distinct values, so many ties, and some NaN and infinite ones."""
    scores = rng.integers(-3, 4, (captions, videos)).astype(np.float64)
    kind = rng.random(scores.shape)
    scores[kind < 0.10] = np.nan
    scores[(kind > 0.10) & (kind < 0.13)] = np.inf
    scores[(kind > 0.13) & (kind < 0.16)] = -np.inf
    return scores


def slow_rank(own: float, others: list[float]) -> tuple[int, int, bool]:
    """Optimistic rank, pessimistic rank and whether the answer is missing, one number at a time."""
    if own != own:
        return len(others) + 2, len(others) + 2, True
    greater = equal = 0
    for other in others:
        greater += other > own
        equal += other == own
    return 1 + greater, 1 + greater + equal, False


def slow_ranks(scores: np.ndarray, owners: np.ndarray, direction: str) -> list[tuple]:
    rows, owner_list, videos = scores.tolist(), owners.tolist(), scores.shape[1]
    if direction == "t2v":
        return [
            slow_rank(row[v], [x for u, x in enumerate(row) if u != v])
            for row, v in zip(rows, owner_list, strict=True)
        ]
    ranks = []
    for video in range(videos):
        best = []
        for group in range(videos):
            of_group = [rows[n][video] for n, v in enumerate(owner_list) if v == group]
            present = [x for x in of_group if x == x]
            best.append(max(present) if present else float("nan"))
        ranks.append(slow_rank(best[video], best[:video] + best[video + 1 :]))
    return ranks


def assert_as_slow(ranks: Ranks, expected: list[tuple]) -> None:
    optimistic, pessimistic, missing = zip(*expected, strict=True)
    assert ranks.optimistic.tolist() == list(optimistic)
    assert ranks.pessimistic.tolist() == list(pessimistic)
    assert ranks.missing.tolist() == list(missing)
    means = [(a + b) / 2 for a, b in zip(optimistic, pessimistic, strict=True)]
    assert ranks.rank.tolist() == means


# Agreement with others


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", ["one_to_one", "multi_caption"])
def test_metrics_are_those_of_the_reference_code(shared: Path, case: str, direction: str) -> None:
    golden = json.loads((shared / "golden/metrics/metrics.json").read_text())[case][direction]
    tensors = load_file(shared / "golden/metrics/similarities.safetensors")
    scores = tensors[case]
    owners = tensors["video_of_caption"] if case == "multi_caption" else np.arange(len(scores))
    ranks = DIRECTIONS[direction](scores, owners)
    found = retrieval_metrics(ranks)
    assert list(found) == ["R@1", "R@5", "R@10", "MdR", "MnR"]
    for name, golden_name in GOLDEN_NAMES.items():  # golden recalls passed through float32
        assert found[name] == pytest.approx(golden[golden_name], rel=1e-6), name
    assert tie_note(ranks) is None


def test_real_msrvtt_matrix_gives_its_known_figures(shared: Path) -> None:
    scores = np.load(shared / "data/embeddings/msrvtt_titles_matrix.npy")
    ranks = text_to_video_ranks(*one_to_one(scores))
    found = retrieval_metrics(ranks)
    assert [found[name] for name in ("R@1", "R@5", "R@10", "MdR")] == [29.7, 55.8, 66.6, 4]
    assert found["MnR"] == pytest.approx(26.7, abs=0.05)
    assert tie_note(ranks) is None  # no caption ties with a wrong video
    # Duplicate captions of 1k-A tie exactly when a video is the query: R@1 depends on the rule.
    back = video_to_text_ranks(*one_to_one(scores))
    assert recall_at_k(back, 1) == pytest.approx(28.1 + (28.4 - 28.1) / 2, abs=0.1)
    assert "R@1 28.10 to 28.40 (" in tie_note(back)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_torchmetrics(k: int) -> None:
    from torchmetrics.retrieval import RetrievalHitRate

    rng = np.random.default_rng(k)
    scores = rng.standard_normal((90, 30))
    owners = uneven_owners(rng, 90, 30)
    scores[np.arange(90), owners] += 1
    rate = RetrievalHitRate(top_k=k)
    rate.update(
        torch.from_numpy(scores).float().flatten(),
        torch.from_numpy(owners[:, None] == np.arange(30)).flatten(),
        indexes=torch.arange(90).repeat_interleave(30),
    )
    found = recall_at_k(text_to_video_ranks(scores, owners), k)
    assert 0 < found < 100
    assert found == pytest.approx(100 * rate.compute().item(), rel=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(20))
def test_ranks_agree_with_plain_loops(
    seed: int, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    videos = int(rng.integers(1, 12))
    captions = videos + int(rng.integers(0, 30))
    scores, owners = awkward_scores(rng, captions, videos), uneven_owners(rng, captions, videos)
    expected = slow_ranks(scores, owners, direction)
    assert_as_slow(DIRECTIONS[direction](scores, owners), expected)
    # Chunks of one query, and chunks that leave an uneven rest.
    for elements in (1, 3 * captions + 1):
        monkeypatch.setattr(metrics, "_ELEMENTS_AT_ONCE", elements)
        assert_as_slow(DIRECTIONS[direction](scores, owners), expected)


def test_ranks_agree_with_padded_double_argsort_on_msvd_shape() -> None:
    rng = np.random.default_rng(0)
    videos, captions = 67, 2_776  # a tenth of MSVD's test split
    owners = np.sort(uneven_owners(rng, captions, videos))
    scores = rng.standard_normal((captions, videos)).astype(np.float32)
    scores[np.arange(captions), owners] += 1.5
    counts = np.bincount(owners)
    padded = np.full((videos, counts.max(), videos), -np.inf, dtype=np.float32)
    within = np.concatenate([np.arange(count) for count in counts])
    padded[owners, within] = scores

    order = np.argsort(np.argsort(-padded, axis=-1), axis=-1)  # place of each video, from 0
    by_caption = order[owners, within, owners] + 1
    assert text_to_video_ranks(scores, owners).rank.tolist() == by_caption.tolist()

    best = padded.max(axis=1).T  # (query video, caption group)
    by_video = np.argsort(np.argsort(-best, axis=-1), axis=-1).diagonal() + 1
    assert video_to_text_ranks(scores, owners).rank.tolist() == by_video.tolist()


def test_ranks_are_a_direct_count_on_the_whole_msvd_shape() -> None:
    rng = np.random.default_rng(1)
    owners = uneven_owners(rng, 27_763, 670)
    scores = rng.standard_normal((27_763, 670))
    scores[np.arange(27_763), owners] += 2
    own = scores[np.arange(27_763), owners]
    by_caption = np.array([1 + (row > x).sum() for row, x in zip(scores, own, strict=True)])
    assert text_to_video_ranks(scores, owners).rank.tolist() == by_caption.tolist()
    best = np.stack([scores[owners == video].max(axis=0) for video in range(670)])
    by_video = [1 + (best[:, video] > best[video, video]).sum() for video in range(670)]
    assert video_to_text_ranks(scores, owners).rank.tolist() == by_video


def sorted_places(scores: np.ndarray) -> np.ndarray:
    """Every place at which a query's true score stands among its sorted scores, from 1."""
    places = []
    for row, own in zip(scores, scores.diagonal(), strict=True):
        places += [i + 1 for i, score in enumerate(np.sort(-row)) if score - -own == 0]
    return np.array(places)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_reference_metrics_count_ties_several_times_and_drop_what_is_missing(
    direction: str,
) -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 9, (40, 40)).astype(np.float64)
    scores[3] = np.nan
    scores[:, 5] = np.nan
    places = sorted_places(scores if direction == "t2v" else scores.T)
    assert len(places) > 100
    found = reference_metrics(DIRECTIONS[direction](*one_to_one(scores)))
    wanted = {f"R@{k}": 100 * (places <= k).mean() for k in (1, 5, 10)}
    wanted |= {"MdR": np.median(places), "MnR": places.mean(), "queries": len(places)}
    assert found == pytest.approx(wanted)


def test_reference_metrics_of_real_duplicates_have_more_queries(shared: Path) -> None:
    scores = np.load(shared / "data/embeddings/msrvtt_titles_matrix.npy")
    back = video_to_text_ranks(*one_to_one(scores))
    found, places = reference_metrics(back), sorted_places(scores.T)
    assert found["queries"] == len(places) == 1012  # three pairs and a triple of equal captions
    assert found["R@1"] == pytest.approx(100 * (places == 1).mean())
    there = text_to_video_ranks(*one_to_one(scores))
    assert reference_metrics(there) == retrieval_metrics(there) | {"queries": 1000}


def test_reference_metrics_of_nothing_but_missing_scores() -> None:
    assert reference_metrics(text_to_video_ranks(np.full((2, 2), np.nan), [0, 1])) == {"queries": 0}


# Properties


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ranks_follow_their_queries_under_permutation(direction: str) -> None:
    rng = np.random.default_rng(3)
    scores, owners = awkward_scores(rng, 60, 20), uneven_owners(rng, 60, 20)
    rows, columns = rng.permutation(60), rng.permutation(20)
    new_column = np.argsort(columns)
    before = DIRECTIONS[direction](scores, owners)
    after = DIRECTIONS[direction](scores[rows][:, columns], new_column[owners[rows]])
    queries = rows if direction == "t2v" else columns
    for name in ("rank", "optimistic", "pessimistic", "missing"):
        assert getattr(after, name).tolist() == getattr(before, name)[queries].tolist(), name


def test_each_direction_is_the_other_one_transposed_for_one_caption_per_video() -> None:
    scores = awkward_scores(np.random.default_rng(5), 40, 40)
    there, back = (
        text_to_video_ranks(*one_to_one(scores)),
        video_to_text_ranks(*one_to_one(scores.T)),
    )
    assert there.rank.tolist() == back.rank.tolist()


def test_types_of_scores_do_not_matter() -> None:
    scores = np.random.default_rng(0).integers(-5, 6, (12, 12))
    expected = text_to_video_ranks(*one_to_one(scores)).rank.tolist()
    for kind in (np.float16, np.float32, np.float64, np.int8):
        assert text_to_video_ranks(*one_to_one(scores.astype(kind))).rank.tolist() == expected
    tensors = torch.from_numpy(scores).float(), torch.arange(12)
    assert text_to_video_ranks(*tensors).rank.tolist() == expected


def test_metrics_need_no_torch() -> None:
    modules = "videoclip.figures.metrics, videoclip.figures.intervals"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Ties and missing scores


def test_constant_scores_have_the_mean_rank_and_the_recall_of_chance() -> None:
    ranks = text_to_video_ranks(*one_to_one(np.zeros((100, 100))))
    assert set(ranks.rank) == {50.5}
    expected = {"R@1": 1, "R@5": 5, "R@10": 10, "MdR": 50.5, "MnR": 50.5}
    assert retrieval_metrics(ranks) == pytest.approx(expected)
    assert tie_note(ranks) == (
        "100 of 100 queries tie with a wrong candidate; from the pessimistic to the optimistic "
        "order of ties: R@1 0.00 to 100.00, R@5 0.00 to 100.00, R@10 0.00 to 100.00 (the table "
        "has the mean)."
    )


@pytest.mark.parametrize("candidates", [2**15 - 1, 2**15, 70_000])
def test_many_candidates_are_counted_without_overflow(candidates: int) -> None:
    scores = np.zeros((2, candidates), dtype=np.float32)
    scores[1, 0] = -1
    ranks = text_to_video_ranks(scores, [0, 0])
    assert ranks.optimistic.tolist() == [1, candidates]
    assert ranks.pessimistic.tolist() == [candidates, candidates]


def test_tie_note_names_only_the_recalls_that_depend_on_ties() -> None:
    scores = np.eye(4)
    scores[0, 1] = 1  # rank 1 or 2: only R@1 depends on it
    note = tie_note(text_to_video_ranks(*one_to_one(scores)))
    assert "1 of 4 queries" in note
    assert "R@1 75.00 to 100.00 (" in note
    assert "R@5" not in note
    scores = np.eye(8)
    scores[0, 1:6] = [2, 2, 2, 1, 1]  # rank 4 to 6, 5 in the mean: a hit at 5 but for bad luck
    assert "R@5 87.50 to 100.00 (" in tie_note(text_to_video_ranks(*one_to_one(scores)))
    scores = np.eye(4)
    scores[0] = [1, 1, 2, 2]  # rank 3 or 4: tied, but no recall depends on it
    assert tie_note(text_to_video_ranks(*one_to_one(scores))) is None


def test_rows_without_scores_are_misses_of_all_queries() -> None:
    scores = np.eye(1000)
    scores[:100] = np.nan  # a pooled vector divided by zero
    ranks = text_to_video_ranks(*one_to_one(scores))
    assert ranks.missing.sum() == 100
    assert set(ranks.rank[:100]) == {1001.0}
    assert retrieval_metrics(ranks) == {
        "R@1": 90.0, "R@5": 90.0, "R@10": 90.0, "MdR": 1.0, "MnR": (900 + 100 * 1001) / 1000,
    }  # fmt: skip
    assert tie_note(ranks) is None


def test_an_unreadable_video_is_missed_by_its_captions_and_outranks_nobody() -> None:
    scores = np.zeros((6, 3))
    owners = np.array([0, 0, 1, 1, 2, 2])
    scores[np.arange(6), owners] = 1
    scores[:, 1] = np.nan
    by_caption, by_video = text_to_video_ranks(scores, owners), video_to_text_ranks(scores, owners)
    assert by_caption.missing.tolist() == [False, False, True, True, False, False]
    assert by_caption.rank.tolist() == [1, 1, 4, 4, 1, 1]
    assert by_video.missing.tolist() == [False, True, False]
    assert by_video.rank.tolist() == [1, 4, 1]
    assert recall_at_k(by_video, 1) == pytest.approx(200 / 3)


def test_a_missing_answer_is_a_miss_even_where_k_exceeds_the_candidates() -> None:
    ranks = text_to_video_ranks(np.array([[1.0, 0.0], [0.0, np.nan]]), np.arange(2))
    assert ranks.rank.tolist() == [1, 3]
    assert hits_at_k(ranks, 10).tolist() == [1, 0]
    assert recall_at_k(ranks, 10) == 50


def test_a_nan_caption_is_passed_over_where_the_video_has_another() -> None:
    scores = np.array([[np.nan, np.nan], [2.0, np.nan], [1.0, 3.0]])
    ranks = video_to_text_ranks(scores, np.array([0, 0, 1]))
    assert ranks.missing.tolist() == [False, False]
    assert ranks.rank.tolist() == [1, 1]


def test_infinite_scores_are_scores() -> None:
    infinite = np.inf
    scores = np.array([[infinite, 5.0, infinite], [5.0, -infinite, 0.0], [1.0, -infinite, 2.0]])
    ranks = text_to_video_ranks(*one_to_one(scores))
    assert ranks.rank.tolist() == [1.5, 3, 1]
    assert not ranks.missing.any()


def test_a_video_without_caption_still_competes_for_captions() -> None:
    ranks = text_to_video_ranks(np.array([[1.0, 2.0]]), np.array([0]))
    assert (ranks.rank.tolist(), ranks.candidates) == ([2.0], 2)


def test_median_is_the_mean_of_the_two_middle_ranks() -> None:
    ranks = Ranks(np.array([1.0, 2, 5, 9]), np.ones(4), np.ones(4), np.zeros(4, bool), 9)
    assert retrieval_metrics(ranks)["MdR"] == 3.5


# Errors


@pytest.mark.parametrize(
    ("scores", "owners", "message"),
    [
        (np.zeros(3), [0, 0, 0], r"shape \(3,\), expected \(captions, videos\)"),
        (np.zeros((0, 3)), [], r"shape \(0, 3\).*at least one"),
        (np.zeros((3, 0)), [0, 0, 0], r"shape \(3, 0\).*at least one"),
        (np.full((1, 1), "a"), [0], "type <U1, expected real"),
        (np.zeros((1, 1), complex), [0], "type complex128, expected real"),
        (np.zeros((3, 2)), [0, 1], r"shape \(2,\), but scores \(3, 2\).* 3 rows"),
        (np.zeros((2, 2)), [0.0, 1.0], "type float64, expected integers"),
        (np.zeros((2, 2)), [True, False], "type bool, expected integers"),
        (np.zeros((3, 2)), [0, 2, 5], r"\[1\] is 2, .* columns 0 to 1 \(2 such"),
        (np.zeros((2, 2)), [0, -1], r"\[1\] is -1, .* columns 0 to 1 \(1 such"),
    ],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_does_not_fit_is_refused(
    direction: str, scores: np.ndarray, owners: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DIRECTIONS[direction](scores, np.array(owners))


def test_videos_without_caption_are_refused_as_queries_by_name() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 videos have no caption.*: 1, 3\. Leave"):
        video_to_text_ranks(np.zeros((2, 4)), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"19 of 20 .* 9, 10 and 9 more\."):
        video_to_text_ranks(np.zeros((2, 20)), np.array([0, 0]))


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(text_to_video_ranks(*one_to_one(np.eye(2))), 0)


# Counts


def test_equal_counts_give_the_line_to_print() -> None:
    names = [f"video{i}" for i in range(180)]
    assert check_counts(names, reversed(names)) == "expected 180 = evaluated 180 = unique 180"
    assert check_counts(np.arange(3), torch.tensor([2, 0, 1])).startswith("expected 3 = ")


def test_every_kind_of_wrong_count_is_named() -> None:
    with pytest.raises(VideoclipError, match=r"expected 3, evaluated 4, unique 3: .*") as caught:
        check_counts(["a", "b", "c"], ["a", "b", "b", "d"])
    message = str(caught.value)
    assert "1 missing: 'c'" in message
    assert "1 evaluated more than once: 'b'" in message
    assert "1 unexpected: 'd'" in message
    # 670 rows, as many as expected, but one stands twice: what a padded sampler leaves.
    with pytest.raises(
        VideoclipError, match=r"expected 3, evaluated 3, unique 2: .*1 missing: 2; 1 ev"
    ):
        check_counts(range(3), [0, 1, 1])
    with pytest.raises(VideoclipError, match="1 expected more than once: 'a'"):
        check_counts(["a", "a"], ["a", "a"])
    with pytest.raises(
        VideoclipError, match=r"25 missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more$"
    ):
        check_counts(range(25), [])
    with pytest.raises(VideoclipError, match=r"expected 0, .* nothing to evaluate"):
        check_counts([], [])
