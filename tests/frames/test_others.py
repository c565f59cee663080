"""Other libraries give the frames of a full decode, or are not asked."""

from pathlib import Path

import clips
import numpy as np
import pytest

from videoclip.errors import VideoError
from videoclip.frames.decode import Reader, open_video


def moving(frames: int = 72, height: int = 96, width: int = 128) -> np.ndarray:
    """A texture that wanders: frames that refer to something wrong look wrong."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(texture, 3 * number, axis=1) for number in range(frames)])


@pytest.fixture(params=["decord", "torchcodec"])
def other(request: pytest.FixtureRequest) -> Reader:
    if request.param == "torchcodec":
        try:
            from torchcodec import decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError):
            pytest.skip("torchcodec or FFmpeg's shared libraries are not here")
    return request.param


@pytest.mark.parametrize(
    ("name", "form", "options"),
    [
        ("open.mp4", "yuv420p", {"x264-params": "open-gop=1:keyint=20:bframes=5:scenecut=0"}),
        ("refreshed.mp4", "yuv420p", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
        ("interlaced.mp4", "yuv420p", {"x264-params": "tff=1"}),
        ("ten.mp4", "yuv420p10le", {}),
        ("transport.ts", "yuv420p", {"g": "20"}),
    ],
)
def test_what_they_read_otherwise_they_are_not_asked_for(
    name: str, form: str, options: dict[str, str], other: Reader, tmp_path: Path
) -> None:
    path = clips.write_video(tmp_path / name, moving(), options=options, pixel_format=form)
    with pytest.raises(VideoError, match=f"the reader {other} does not give exactly the frames"), (
        open_video(path, other)
    ):  # fmt: skip
        pass
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read(range(72)), clips.decode(path))


def test_real_files(other: Reader, shared: Path) -> None:
    same = 0
    for folder in ("captioned", "labelled", "odd"):
        for path in sorted((shared / "data" / folder).iterdir()):
            try:
                with open_video(path, other) as video:
                    count = len(video.timestamps)
                    indices = sorted({0, count // 3, count // 2, count - 1}, reverse=True)
                    frames, times = video.read(indices), video.timestamps
            except VideoError:
                continue
            with open_video(path, "planned") as video:
                np.testing.assert_array_equal(frames, video.read(indices), str(path))
                np.testing.assert_allclose(times, video.timestamps, atol=1e-4, err_msg=str(path))
            same += 1
    assert same >= 18
