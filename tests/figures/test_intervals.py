"""Intervals against a bootstrap written out in numpy, known answers and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from videoclip.figures import intervals
from videoclip.figures.intervals import Interval, mcnemar, mean_interval, paired_difference


def clustered(
    rng: np.random.Generator, videos: int, most: int, shared: float = 1.0, own: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Values of 1 to `most` captions per video: a part that the video shares, a part of its own."""
    video = np.repeat(np.arange(videos), rng.integers(1, most + 1, videos))
    noise = own * rng.standard_normal(len(video))
    return shared * rng.standard_normal(videos)[video] + noise, video


def plain_bootstrap(
    values: np.ndarray, video: np.ndarray, resamples: int, level: float = 0.95
) -> tuple[float, float]:
    """One resample at a time: draw videos, put their queries together, average."""
    rng = np.random.default_rng(99)
    queries = [values[video == v] for v in np.unique(video)]
    means = [
        np.concatenate([queries[i] for i in rng.integers(0, len(queries), len(queries))]).mean()
        for _ in range(resamples)
    ]
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_agrees_with_a_bootstrap_written_out(level: float) -> None:
    values, video = clustered(np.random.default_rng(1), videos=40, most=9)
    found = mean_interval(values, video, level=level)
    low, high = plain_bootstrap(values, video, 4_000, level)
    assert found.mean == pytest.approx(values.mean())
    # Both ends carry Monte Carlo noise of about 0.02 of the width.
    assert found.low == pytest.approx(low, abs=0.06 * width(found))
    assert found.high == pytest.approx(high, abs=0.06 * width(found))


def test_mean_is_over_queries_and_not_over_videos() -> None:
    values, video = np.array([100.0, 100, 100, 0]), np.array([7, 7, 7, 3])
    found = mean_interval(values, video)
    # Four draws: twice the first video, twice the second, or both in either order.
    assert found == (75.0, 0.0, 100.0)
    assert mean_interval(values, video, level=0.4)[1:] == (75.0, 75.0)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    trials, covered = 200, 0
    for trial in range(trials):
        values, video = clustered(rng, videos=50, most=8)  # the true mean is 0
        found = mean_interval(values, video, resamples=400, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / trials <= 0.99


def test_captions_drawn_alone_give_a_far_too_narrow_interval() -> None:
    video = np.repeat(np.arange(60), 41)  # MSVD has about 41 captions a video
    values = 100.0 * (np.random.default_rng(3).random(60) < 0.4)[video]
    by_video = mean_interval(values, video)
    by_caption = mean_interval(values, np.arange(len(values)))
    assert by_video.mean == by_caption.mean
    # Captions of a video agree fully here, so that the true ratio is the root of 41, 6.4.
    assert 5.8 < width(by_video) / width(by_caption) < 7.0


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(4)
    baseline, video = clustered(rng, videos=80, most=5)
    values = baseline + 0.2 + 0.1 * rng.standard_normal(len(baseline))
    paired = paired_difference(values, baseline, video)
    assert paired.mean == pytest.approx((values - baseline).mean())
    assert paired.low > 0  # though the two intervals overlap almost fully
    assert width(paired) < 0.2 * width(mean_interval(values, video))


def test_difference_and_mean_share_their_draws() -> None:
    values, video = clustered(np.random.default_rng(5), videos=30, most=5)
    alone = mean_interval(values, video)
    assert paired_difference(values, np.zeros_like(values), video) == pytest.approx(alone)
    there, back = (
        paired_difference(*pair, video) for pair in ((values, -values), (-values, values))
    )
    assert back == pytest.approx((-there.mean, -there.high, -there.low))


def test_seeds_are_averaged_per_query() -> None:
    rng = np.random.default_rng(6)
    seeds, video = rng.random((3, 50)), np.repeat(np.arange(10), 5)
    assert mean_interval(seeds, video) == mean_interval(seeds.mean(axis=0), video)
    one = rng.random(50)
    assert paired_difference(seeds, one, video) == paired_difference(
        seeds.mean(0), one[None], video
    )


def test_interval_is_deterministic_and_indifferent_to_order_and_labels() -> None:
    rng = np.random.default_rng(7)
    values, video = clustered(rng, videos=25, most=6)
    found = mean_interval(values, video)
    assert mean_interval(values, video) == found
    assert mean_interval(values, video, seed=1) != found
    order = rng.permutation(len(values))
    assert mean_interval(values[order], video[order]) == pytest.approx(found)
    names = np.array([f"video{v:02}" for v in video])
    assert mean_interval(values, names) == found


def test_draws_in_small_batches_give_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values, video = clustered(np.random.default_rng(8), videos=25, most=6)
    found = mean_interval(values, video, resamples=300)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 25 * 7)  # 7 resamples at a time
    assert mean_interval(values, video, resamples=300) == found


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval(np.full(30, 0.1), np.arange(30) // 4) == (0.1, 0.1, 0.1)
    values = np.random.default_rng(9).random(30)
    assert paired_difference(values, values, np.arange(30) // 4) == (0, 0, 0)


def test_a_single_video_has_a_mean_but_no_interval() -> None:
    found = mean_interval([0.0, 100.0], ["a", "a"])
    assert found.mean == 50
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(mean_interval([100.0, 100.0], ["a", "a"]).low)  # equal values or not


@pytest.mark.parametrize(
    ("values", "video", "options", "message"),
    [
        ([], [], {}, r"shape \(0,\), expected \(queries,\)"),
        (np.zeros((1, 2, 3)), np.zeros(3), {}, r"shape \(1, 2, 3\), expected"),
        ([1.0, np.nan, np.inf], [0, 1, 2], {}, "2 of 3 values are not finite"),
        ([1.0, 2.0], [0, 1, 2], {}, r"shape \(3,\), but the values hold 2 queries"),
        ([1.0, 2.0], [0, 1], {"level": 95}, "level is 95"),
        ([1.0, 2.0], [0, 1], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_what_does_not_fit_is_refused(values, video, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, video, **options)


def test_a_difference_needs_the_same_queries() -> None:
    with pytest.raises(ValueError, match="values hold 2 queries and baseline 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], [0, 1])


def hits_of_table(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, ...]:
    cells = [both, only_a, only_b, neither]
    return np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells)


def test_mcnemar_gives_known_values() -> None:
    # Two tails of a fair coin: 2 * (C(8,0) + C(8,1)) / 2^8 for 1 against 7.
    assert mcnemar(*hits_of_table(50, 1, 7, 20)) == pytest.approx(18 / 256)
    table = hits_of_table(500, 45, 23, 432)
    assert mcnemar(*table) == pytest.approx(2 * stats.binom.cdf(23, 68, 0.5))
    assert mcnemar(*table) == mcnemar(*table[::-1])
    assert mcnemar(*(hits.astype(bool) for hits in table)) == mcnemar(*table)
    assert mcnemar(*hits_of_table(5, 6, 6, 5)) == 1
    assert mcnemar(*hits_of_table(5, 0, 0, 5)) == 1  # never differ


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1, 0, 1], "hits_a hold 2 queries and hits_b 3"),
        ([], [], r"hits_a have the shape \(0,\)"),
        ([1, 0], [0, 3], "hits_b hold 3, expected bool or 0 / 1"),
        ([0.5, 0], [0, 1], r"hits_a hold 0\.5, expected"),
    ],
)
def test_mcnemar_refuses_what_are_no_paired_hits(a: list, b: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mcnemar(a, b)
