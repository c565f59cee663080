"""Views against pytorchvideo's own functions, the published protocols and plain geometry."""

import importlib.util
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import pytorchvideo
import torch
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

from videoclip.errors import VideoclipError
from videoclip.frames.sampling import uniform_indices
from videoclip.frames.views import NAMED, Views, crops_of, view_indices, views_named


def at_rate(frames: int, rate: float = 25.0) -> np.ndarray:
    return np.arange(frames) / rate


def functional() -> ModuleType:
    """pytorchvideo's functions without the package around them, which cannot be imported."""
    path = Path(pytorchvideo.__file__).parent / "transforms/functional.py"
    spec = importlib.util.spec_from_file_location("functional", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names() -> None:
    found = {name: views_named(name, size=224) for name in NAMED}
    assert [(v.clips, v.crops) for v in found.values()] == [(1, 1), (3, 1), (4, 3), (10, 3)]
    assert [v.short_side for v in found.values()] == [256, 256, 224, 224]
    assert views_named("1x1", size=336).short_side == 384
    assert views_named("2x3").clips == 2
    dense = views_named("10x3", size=32, seconds=2.5)
    assert dense == Views(clips=10, crops=3, size=32, seconds=2.5)
    for wrong in ("4x2", "0x1", "4", "x", "4x3x1", "", "-1x3", "1e3x1"):
        with pytest.raises(VideoclipError, match=r"no views|there are no views 0x1"):
            views_named(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": 0.0}, "a clip of 0.0 seconds"),
        ({"seconds": float("nan")}, "a clip of nan seconds"),
        ({"resize": 223}, "short side of 223 hold no crop of 224"),
        ({"crops": 2}, "no views 1x2"),
    ],
)
def test_views_that_show_nothing(fields: dict, message: str) -> None:
    with pytest.raises(VideoclipError, match=message):
        Views(**fields)


def test_one_view_is_the_middle_of_every_segment() -> None:
    for frames in (1, 3, 8, 9, 100, 301):
        [found] = view_indices(at_rate(frames), 8, views_named("1x1"))
        assert found.tolist() == uniform_indices(frames, 8).tolist()


@pytest.mark.parametrize("clips", [3, 4, 10])
@pytest.mark.parametrize("count", [1, 3, 8, 32])
def test_clips_that_span_the_video_share_its_segments_out(clips: int, count: int) -> None:
    """Clip k shows floor(k N / (T n) + i N / T), the formula worked out by hand."""
    for frames in (1, count, count + 1, 50, 101, 300):
        found = view_indices(at_rate(frames), count, Views(clips=clips))
        assert found.shape == (clips, min(frames, count))
        assert found.dtype == np.int64
        if frames <= count:
            assert (found == np.arange(frames)).all()
            continue
        for k in range(clips):
            for i in range(count):
                expected = Fraction(k * frames, count * clips) + Fraction(i * frames, count)
                assert found[k, i] == int(expected)
        segment = (found * count) // frames
        if frames % count == 0:
            assert (segment == np.arange(count)).all(), "each clip has a frame of every segment"


def test_clips_of_a_length_begin_where_pytorchvideo_says() -> None:
    frames, rate, seconds = 300, 30.0, 2.0
    found = view_indices(at_rate(frames, rate), 8, Views(clips=10, seconds=seconds))
    sampler = ConstantClipsPerVideoSampler(2, 10)
    for row in found:
        info = sampler(0, Fraction(10), {})
        first = int(info.clip_start_sec * 30)
        assert row.tolist() == (first + uniform_indices(60, 8)).tolist()
    assert info.is_last_clip


def test_a_video_shorter_than_a_clip_is_shown_whole() -> None:
    for frames in (1, 5, 20):
        found = view_indices(at_rate(frames), 8, Views(clips=4, seconds=30.0))
        assert (found == uniform_indices(frames, 8)).all()


def test_no_clip_is_empty_where_the_video_stands_still() -> None:
    """Frames at irregular times: a clip between two frames shows the one that is on the screen."""
    shown = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 9.8, 9.9, 10.0])
    found = view_indices(shown, 4, Views(clips=5, seconds=0.5))
    assert found.shape == (5, 4)
    assert found[0].tolist() == [0, 1, 2, 3]
    assert found[1].tolist() == found[2].tolist() == [4] * 4
    assert ((found >= 0) & (found < 9)).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_with_actionclips_rule_short_videos_repeat_frames() -> None:
    for views in (Views(), Views(clips=3), Views(clips=3, seconds=1.0)):
        found = view_indices(at_rate(3), 8, views, "actionclip")
        assert (found == [0, 0, 0, 1, 1, 1, 2, 2]).all()
        assert found.shape == (views.clips, 8)


@pytest.mark.parametrize("shape", [(32, 50), (50, 32), (32, 32), (32, 33), (33, 32), (32, 400)])
def test_three_crops_are_pytorchvideos(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (2, 4, 3, *shape), dtype=torch.uint8)
    found = crops_of(pixels, Views(crops=3, size=32))
    assert found.shape == (3, 2, 4, 3, 32, 32)
    theirs = functional().uniform_crop
    for number in range(3):
        for clip in range(2):
            expected = theirs(pixels[clip].transpose(0, 1), 32, number).transpose(0, 1)
            assert torch.equal(found[number, clip], expected)
    covered = torch.zeros(shape)
    positions = torch.arange(shape[0] * shape[1]).reshape(shape)
    for crop in crops_of(positions, Views(crops=3, size=32)):
        covered.view(-1)[crop.flatten()] = 1
    if max(shape) <= 96:
        assert covered.all(), "three crops show the whole frame"


def test_one_crop_is_the_middle() -> None:
    positions = torch.arange(36 * 60).reshape(1, 36, 60)
    [found] = crops_of(positions, Views(size=32))
    assert found.shape == (1, 32, 32)
    assert torch.equal(found, positions[:, 2:34, 14:46])
