"""The planned reader: the same frames as a full decode, of every kind of file, and less work."""

import gc
import itertools
from pathlib import Path

import av
import clips
import numpy as np
import pytest

from videoclip.errors import VideoError
from videoclip.frames import planned
from videoclip.frames.container import open_source
from videoclip.frames.decode import open_video
from videoclip.frames.plan import Plan, plan
from videoclip.frames.planned import Planned

OPEN = "open-gop=1:keyint=20:min-keyint=20:scenecut=0"
QUIET = "log-level=none:pools=1:frame-threads=1"
KINDS = {
    "b.mp4": ("libx264", {"bf": "3", "g": "30"}),
    "pyramid.mkv": ("libx264", {"bf": "8", "g": "60", "x264-params": "b-adapt=2"}),
    "long.mp4": ("libx264", {"g": "500"}),
    "short.mp4": ("libx264", {"g": "2", "bf": "1"}),
    "intra.mp4": ("libx264", {"g": "1"}),
    "open.mp4": ("libx264", {"bf": "5", "x264-params": OPEN}),
    "open.ts": ("libx264", {"bf": "5", "x264-params": OPEN}),
    "refresh.mp4": ("libx264", {"bf": "0", "x264-params": "intra-refresh=1:keyint=20"}),
    "b.ts": ("libx264", {"bf": "3", "g": "30"}),
    "b.flv": ("libx264", {"bf": "3", "g": "30"}),
    "no_b.avi": ("libx264", {"bf": "0", "g": "30"}),
    "hevc.mp4": ("libx265", {"x265-params": f"keyint=30:{QUIET}"}),
    "hevc_open.mkv": ("libx265", {"x265-params": f"{OPEN}:{QUIET}"}),
    "layers.mp4": ("libx265", {"x265-params": f"temporal-layers=3:bframes=8:b-adapt=0:{QUIET}"}),
    "vp8.webm": ("libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": ("libvpx-vp9", {"g": "30", "cpu-used": "8", "lag-in-frames": "16"}),
    "av1.mp4": ("libsvtav1", {"g": "30", "preset": "12"}),
    "mpeg4.mp4": ("mpeg4", {"g": "30", "bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "30", "bf": "0"}),
    "mpeg2.ts": ("mpeg2video", {"g": "15", "bf": "2"}),
    "mjpeg.mov": ("mjpeg", {}),
}
"""Files that have a plan, by their names."""


def moving(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Texture that wanders over noise: what refers to something wrong looks wrong."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 200, (height // 8, width // 4, 3), dtype=np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    pixels = np.stack([np.roll(texture, 3 * n, axis=1)[:, :width] for n in range(frames)])
    return pixels + random.integers(0, 40, pixels.shape, dtype=np.uint8)


def written(path: Path, frames: int = 72, **more: object) -> Path:
    codec, options = KINDS[path.name]
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no encoder {codec} here")
    return clips.write_video(
        path, moving(frames), codec=codec, pixel_format=form, options=options, **more
    )


def planned_of(path: Path) -> Plan | None:
    with open_source(path) as source:
        return plan(source)


@pytest.fixture
def no_full_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("everything was decoded")

    monkeypatch.setattr(planned, "read_whole", refuse)


@pytest.mark.usefixtures("no_full_decode")
@pytest.mark.parametrize("name", KINDS)
def test_the_frames_of_a_full_decode(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name)
    every = clips.decode(path)
    with open_video(path) as video:
        assert isinstance(video, Planned)
        assert len(video.timestamps) == len(every) == 72
        np.testing.assert_allclose(video.timestamps, np.arange(72) / 25, atol=2e-3)
        for index in range(72):
            np.testing.assert_array_equal(video.read([index])[0], every[index], str(index))
        for indices in (range(3, 72, 6), range(72), [71, 0, 40, 40], [19, 20, 21], [38, 37]):
            np.testing.assert_array_equal(video.read(indices), every[indices])


@pytest.mark.usefixtures("no_full_decode")
@pytest.mark.parametrize("name", ["b.mp4", "pyramid.mkv", "hevc.mp4", "vp9.webm"])
def test_irregular_times(name: str, tmp_path: Path) -> None:
    steps = np.random.default_rng(1).integers(20, 200, 60) / 1000
    seconds = 3 + np.cumsum(steps)
    path = written(tmp_path / name, frames=60, seconds=seconds.tolist())
    with open_video(path) as video:
        np.testing.assert_allclose(video.timestamps, seconds - seconds[0], atol=1e-3)
        np.testing.assert_array_equal(video.read([50, 7, 59]), clips.decode(path)[[50, 7, 59]])


@pytest.mark.usefixtures("no_full_decode")
@pytest.mark.parametrize("hidden", [10, 45])
def test_frames_that_an_edit_list_hides(hidden: int, tmp_path: Path) -> None:
    path = clips.hide_start(written(tmp_path / "b.mp4"), hidden)
    every = clips.decode(path)
    with open_video(path) as video:
        assert len(video.timestamps) == len(every) < 72
        np.testing.assert_array_equal(video.read(range(len(every))), every)
        np.testing.assert_array_equal(video.read([20, 1]), every[[20, 1]])


@pytest.mark.usefixtures("no_full_decode")
def test_fragments(tmp_path: Path) -> None:
    how = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = written(tmp_path / "b.mp4", container_options=how)
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read([65, 33, 2]), clips.decode(path)[[65, 33, 2]])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.avi", "libx264", {"bf": "2"}),  # no time stamps, and not in the order shown
        ("packed.avi", "mpeg4", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"g": "15"}),  # other time stamps after a jump
        ("a.asf", "wmv2", {}),
        ("a.mov", "prores_ks", {}),  # nobody has compared it
    ],
)
def test_files_without_a_plan_are_decoded_in_full(
    name: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    form = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    path = tmp_path / name
    clips.write_video(path, moving(30), codec=codec, options=options, pixel_format=form)
    assert planned_of(path) is None
    with open_video(path) as video:
        assert type(video).__name__ == "Whole"
        np.testing.assert_array_equal(video.read([29, 3]), clips.decode(path)[[29, 3]])


def test_a_file_that_begins_in_the_middle_has_no_plan(tmp_path: Path) -> None:
    path = written(tmp_path / "b.ts")
    data = path.read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    # The tables of the stream stay; of the pictures the first ones go, with the key frame.
    path.write_bytes(b"".join(packets[:3] + packets[60:]))
    assert planned_of(path) is None


def test_less_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "b.mp4")
    fed: list[tuple[int, bool]] = []
    packets_from = Planned._packets_from

    def watched(self: Planned, start: int):
        context = self.source.stream.codec_context
        for number, packet in packets_from(self, start):
            yield number, packet
            fed.append((number, context.skip_frame == "NONREF"))

    monkeypatch.setattr(Planned, "_packets_from", watched)
    with open_video(path) as video:
        keys = video.plan.keys.tolist()
        assert keys == [0, 30, 60]
        video.read([33, 64])
    numbers = [number for number, _ in fed]
    assert 0 < len(numbers) < 15
    assert not set(numbers) & set(range(30))
    assert all(skipped for _, skipped in fed)  # the last of each group, asked for, is not listed


def test_neighbors_are_read_straight_through(tmp_path: Path) -> None:
    path = written(tmp_path / "short.mp4")
    jumps = []
    with open_video(path) as video:
        wind = video._wound
        video._wound = lambda start: jumps.append(start) or wind(start)
        np.testing.assert_array_equal(video.read(range(40, 60)), clips.decode(path)[40:60])
    assert len(jumps) == 1


def test_damage_is_an_error_and_what_is_before_it_is_not(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", moving(72), options={"g": "24", "crf": "10"})
    every = clips.decode(path)
    clips.spoil(path, 0.5, length=300)
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read([3, 20]), every[[3, 20]])
        with pytest.raises(VideoError, match=r"a\.mp4 is damaged at frame \d+"):
            video.read([3, 20, *range(30, 48)])
        np.testing.assert_array_equal(video.read([3, 71, 50]), every[[3, 71, 50]])


def test_what_is_cut_off_is_refused(tmp_path: Path) -> None:
    first = {"movflags": "faststart"}
    cut = [
        clips.cut(written(tmp_path / "b.mp4", container_options=first), 0.7),
        clips.cut(written(tmp_path / "pyramid.mkv"), 0.7),
        clips.cut(written(tmp_path / "no_b.avi"), 0.7),
    ]
    for path in cut:
        with pytest.raises(VideoError, match=r"is damaged: it has [\d,]+ bytes of [\d,]+;"), (
            open_video(path)
        ):  # fmt: skip
            pass


def test_codecs_that_nobody_vouches_for_are_refused(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mkv", moving(3), codec="ffv1")
    with pytest.raises(VideoError, match="holds ffv1, which is not decoded here"), (
        open_video(path)
    ):  # fmt: skip
        pass


def test_memory_stays_flat_over_many_opens(tmp_path: Path) -> None:
    path = written(tmp_path / "b.mp4")

    def grown(times: int) -> int:
        for _ in range(times):
            with open_video(path) as video:
                video.read([5, 40])
        gc.collect()
        pages = Path("/proc/self/statm")
        if not pages.is_file():
            pytest.skip("the memory of a process is listed in /proc only on Linux")
        return int(pages.read_text().split()[1]) * 4096

    grown(30)  # until the pools are full
    before = grown(1)
    assert grown(150) - before < 150 * 20_000  # 80 kB each, where the index is not closed


def test_every_real_file(shared: Path) -> None:
    """The same frames as a full decode, one by one and together; none needed a full decode."""
    exact = 0
    names = ("captioned", "labelled", "odd")
    for path in sorted(itertools.chain(*((shared / "data" / n).iterdir() for n in names))):
        try:
            with open_video(path, "whole") as video:
                count = len(video.timestamps)
                indices = sorted({0, 1 % count, count // 3, count // 2, count - 1})
                every, times = video.read(indices), video.timestamps
        except VideoError:
            continue
        if planned_of(path) is None:
            continue
        with open_video(path, "planned") as video:
            np.testing.assert_allclose(video.timestamps, times, atol=1e-6, err_msg=str(path))
            np.testing.assert_array_equal(video.read(indices), every, str(path))
            np.testing.assert_array_equal(video.read(indices[-1:]), every[-1:], str(path))
        exact += 1
    assert exact == 39


def test_the_first_frames_of_an_open_group_need_the_key_frame_before() -> None:
    stamps = np.array([0, 3, 1, 2, 6, 4, 5, 7])  # the fifth packet is a key frame
    found = Plan(stamps, np.array([0, 4]), np.array([0]), np.argsort(stamps), True, False)
    assert [found.start(packet) for packet in range(8)] == [0, 0, 0, 0, 4, 0, 0, 4]
    assert found.closed_start(4) == 0
