"""Frame indices against plain oracles, and draws that depend on their key alone."""

import subprocess
import sys
from fractions import Fraction
from math import floor
from typing import get_args

import numpy as np
import pytest

from videoclip.errors import VideoError
from videoclip.frames.sampling import (
    FrameOrder,
    frame_order,
    frame_range,
    random_indices,
    repeated_indices,
    repeated_random_indices,
    second_indices,
    uniform_indices,
)


def test_uniform_takes_the_middle_of_every_segment() -> None:
    for frames in range(1, 130):
        for count in (1, 2, 3, 7, 8, 12, 16):
            indices = uniform_indices(frames, count)
            if frames <= count:
                expected = list(range(frames))
            else:
                length = Fraction(frames, count)
                expected = [floor(i * length + (length - 1) / 2) for i in range(count)]
            assert indices.tolist() == expected
            assert indices.dtype == np.int64
            assert len(set(expected)) == min(frames, count)


def test_uniform_by_hand() -> None:
    assert uniform_indices(100, 4).tolist() == [12, 37, 62, 87]
    assert uniform_indices(10, 3).tolist() == [1, 4, 7]
    assert uniform_indices(9, 1).tolist() == [4]
    assert uniform_indices(10**12, 2).tolist() == [249999999999, 749999999999]


def test_random_stays_in_its_segment_and_reaches_all_of_it() -> None:
    frames, count = 29, 4
    draws = np.stack(
        [random_indices(frames, count, seed=3, epoch=e, sample="v") for e in range(3000)]
    )
    for i in range(count):
        low, high = i * frames // count, (i + 1) * frames // count
        values, times = np.unique(draws[:, i], return_counts=True)
        assert values.tolist() == list(range(low, high))
        # Uniform: 3000 draws over at most 8 frames deviate by less than 6 standard deviations.
        expected = 3000 / (high - low)
        assert np.abs(times - expected).max() < 6 * np.sqrt(expected)
    correlation = np.corrcoef(draws.T) - np.eye(count)
    assert np.abs(correlation).max() < 0.1


def test_random_depends_on_its_key_alone() -> None:
    def draw(seed: int, epoch: int, sample: int | str) -> list[int]:
        return random_indices(1000, 8, seed=seed, epoch=epoch, sample=sample).tolist()

    assert draw(0, 0, "a") == draw(0, 0, "a")
    keys = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, 1), (0, 0, "1"), (1, 0, 0)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    np.random.seed(1)  # the global generator must play no part
    before = draw(5, 5, "x")
    np.random.seed(2)
    assert draw(5, 5, "x") == before


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_short_clips_give_every_frame_once(frames: int) -> None:
    every = list(range(frames))
    assert uniform_indices(frames, 8).tolist() == every
    assert random_indices(frames, 8, seed=0, epoch=0, sample="a").tolist() == every


@pytest.mark.parametrize(("frames", "count"), [(0, 4), (4, 0), (-1, 4)])
def test_nothing_to_sample_is_an_error(frames: int, count: int) -> None:
    words = f"cannot take {count} frames of {frames}"
    with pytest.raises(ValueError, match=words):
        uniform_indices(frames, count)
    with pytest.raises(ValueError, match=words):
        random_indices(frames, count, seed=0, epoch=0, sample=0)


def actionclip_test(n: int, count: int) -> list[int]:
    """The released test's indices, in floating point as there."""
    if count == 1:
        return [n // 2]
    if n <= count:
        return [i * n // count for i in range(count)]
    return [int(i * n / count + (n / count - 1) / 2) for i in range(count)]


def test_the_tables_of_actionclip_test_index_by_index() -> None:
    for count in (1, 2, 3, 5, 6, 7, 8, 12, 16, 32):
        for n in (*range(1, 3 * count + 3), 100, 250, 299, 300, 301, 1001, 9999):
            assert repeated_indices(n, count).tolist() == actionclip_test(n, count)
            if n > count > 1:
                assert uniform_indices(n, count).tolist() == actionclip_test(n, count)


def test_the_tables_of_actionclip_by_hand() -> None:
    assert repeated_indices(3, 8).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert repeated_indices(8, 8).tolist() == list(range(8))
    assert repeated_indices(9, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert repeated_indices(300, 8).tolist() == [18, 55, 93, 130, 168, 205, 243, 280]
    assert repeated_indices(10, 1).tolist() == [5]
    assert uniform_indices(10, 1).tolist() == [4]


def test_actionclip_training_takes_short_clips_whole_and_again() -> None:
    seen = set()
    for epoch in range(60):
        drawn = repeated_random_indices(3, 8, seed=0, epoch=epoch, sample="a")
        assert drawn.tolist() == sorted(drawn.tolist())
        assert len(drawn) == 8
        assert set(drawn.tolist()) == {0, 1, 2}
        seen.add(tuple(drawn))
    assert len(seen) > 10
    key = {"seed": 3, "epoch": 4, "sample": "b"}
    for n in (8, 9, 100):
        assert repeated_random_indices(n, 8, **key).tolist() == random_indices(n, 8, **key).tolist()


def clip4clip(
    n: int, rate: float, count: int, start: int | None, end: int | None, slice_framepos: int
) -> list[int]:
    """What the reference reads, frame by frame, and what it keeps; [] where it would crash."""
    fps = int(rate)
    total = (n + fps - 1) // fps
    seconds = [0, total] if start is None else [start, end if end <= total else total]
    read = []
    for second in range(seconds[0], seconds[1] + 1):
        if second * fps >= n:  # the file ends
            break
        read.append(second * fps)
    if len(read) <= count:
        return read
    if slice_framepos == 0:
        return read[:count]
    if slice_framepos == 1:
        return read[-count:]
    places = np.linspace(0, len(read) - 1, num=count, dtype=int)
    return [read[place] for place in places]


@pytest.mark.parametrize("rate", [25.0, 29.97, 23.976, 10.0, 1.0, 59.94])
def test_the_tables_of_clip4clip_index_by_index(rate: float) -> None:
    empty = 0
    for n in (*range(1, 130), 299, 300, 301, 750, 899, 2997, 5400):
        for count in (1, 4, 12, 64):
            for start, end in ((None, None), (0, 31), (2, 5), (0, 1), (3, 10**6)):
                for position, keep in enumerate(("head", "tail", "uniform")):
                    expected = clip4clip(n, rate, count, start, end, position)
                    key = {"start": start, "end": end, "keep": keep}
                    if expected:
                        found = second_indices(n, rate, count, **key)
                        assert found.tolist() == expected
                        assert found.dtype == np.int64
                        continue
                    empty += 1
                    with pytest.raises(VideoError, match=r"holds no second; .* frames at"):
                        second_indices(n, rate, count, **key)
    assert empty > 0


def test_seconds_by_hand() -> None:
    """13.3 s at 29.97: a second is 29 frames, so there are 14, and 12 are kept."""
    assert second_indices(399, 29.97, 64).tolist() == [29 * s for s in range(14)]
    kept = second_indices(399, 29.97, 12)
    assert (kept // 29).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13]
    assert second_indices(5, 25.0, 12).tolist() == [0]
    assert second_indices(5, 0.4, 12).tolist() == [0, 1, 2, 3, 4], "slower than one a second"
    assert second_indices(500, 25.0, 12, start=2.5, end=4.5).tolist() == [62, 87, 112]
    assert second_indices(500, 25.0, 12, start=2.5, end=4.4).tolist() == [62, 87]


def test_frame_range_against_a_plain_loop() -> None:
    shown = np.array([0.0, 0.04, 0.2, 0.24, 1.0, 1.5, 1.54, 3.0])
    marks = [None, 0.0, 0.04, 0.05, 0.2, 0.9, 1.0, 1.54, 2.0, 3.0, 9.0]
    empty = 0
    for start in marks:
        for end in marks:
            inside = [
                i
                for i, t in enumerate(shown)
                if (start is None or t >= start) and (end is None or t < end)
            ]
            if inside:
                assert frame_range(shown, start, end) == (inside[0], inside[-1] + 1)
                continue
            empty += 1
            with pytest.raises(VideoError, match=r"holds no frame; .* shown at 3\.000 s"):
                frame_range(shown, start, end)
    assert empty > 20


def test_orders_are_permutations() -> None:
    for count in (1, 2, 3, 12):
        for order in get_args(FrameOrder):
            places = frame_order(count, order, sample="a")
            assert sorted(places.tolist()) == list(range(count))
    assert frame_order(4, "normal", sample="a").tolist() == [0, 1, 2, 3]
    assert frame_order(4, "reversed", sample="a").tolist() == [3, 2, 1, 0]


def test_shuffled_is_never_the_normal_order() -> None:
    two = [frame_order(2, "shuffled", sample=str(n)).tolist() for n in range(50)]
    assert two == [[1, 0]] * 50
    three = {tuple(frame_order(3, "shuffled", sample=str(n))) for n in range(300)}
    assert three == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    places = np.stack([frame_order(8, "shuffled", sample=str(n)) for n in range(4000)])
    assert np.abs(places.mean(0) - 3.5).max() < 0.25


def test_shuffled_depends_on_seed_and_sample() -> None:
    def shuffled(sample: str, seed: int = 0) -> list[int]:
        return frame_order(16, "shuffled", sample=sample, seed=seed).tolist()

    assert shuffled("a") == shuffled("a")
    assert shuffled("a") != shuffled("b")
    assert shuffled("a") != shuffled("a", seed=1)


def test_the_hash_seed_of_python_plays_no_part() -> None:
    code = (
        "from videoclip.frames.sampling import frame_order, random_indices;"
        "print(random_indices(1000, 6, seed=1, epoch=2, sample='clip').tolist(),"
        "frame_order(12, 'shuffled', sample='clip').tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(printed) == 1
    here = random_indices(1000, 6, seed=1, epoch=2, sample="clip").tolist()
    assert printed.pop().startswith(str(here))
