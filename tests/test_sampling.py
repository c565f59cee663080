"""Frame indices against plain oracles, and draws that depend on their key alone."""

import subprocess
import sys
from fractions import Fraction
from math import floor
from typing import get_args

import numpy as np
import pytest

from videoclip.errors import VideoError
from videoclip.sampling import (
    FrameOrder,
    frame_order,
    frame_range,
    random_indices,
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
        "from videoclip.sampling import frame_order, random_indices;"
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
