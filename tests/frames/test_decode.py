"""The readers: exact frames, exact times, upright pixels, and one clear error for the rest."""

import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import av
import clips
import decord
import numpy as np
import pytest

from videoclip.errors import VideoclipError, VideoError
from videoclip.frames import whole
from videoclip.frames.decode import Reader, open_video
from videoclip.frames.transforms import resize_and_crop


def read(
    path: Path, indices: list[int] | None = None, reader: Reader = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    with open_video(path, reader) as video:
        wanted = list(range(len(video.timestamps))) if indices is None else indices
        return video.read(wanted), video.timestamps


def reader(path: Path) -> str:
    with open_video(path) as video:
        return type(video).__name__


@pytest.fixture(params=["planned", "decord", "whole", "torchcodec"])
def each(request: pytest.FixtureRequest) -> Reader:
    if request.param == "torchcodec":
        try:
            from torchcodec import decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError):
            pytest.skip("torchcodec or FFmpeg's shared libraries are not here")
    return request.param


def test_every_frame_in_order(tmp_path: Path) -> None:
    pixels = clips.pattern(40)
    path = clips.write_video(tmp_path / "a.mp4", pixels, options={"crf": "1"})
    frames, seconds = read(path)
    assert reader(path) == "Planned"
    assert frames.shape == pixels.shape
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, clips.decode(path))
    assert np.abs(frames.mean((1, 2, 3)) - pixels.mean((1, 2, 3))).max() < 3
    np.testing.assert_allclose(seconds, np.arange(40) / 25, atol=1e-6)


def test_every_reader_gives_the_same_frames(tmp_path: Path, each: Reader) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(60), options={"g": "12", "bf": "2"})
    expected = clips.decode(path)
    for indices in ([59, 0, 31, 31], [7], list(range(3, 60, 5))):
        frames, seconds = read(path, indices, each)
        np.testing.assert_array_equal(frames, expected[indices])
        np.testing.assert_allclose(seconds, np.arange(60) / 25, atol=1e-6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_video_is_upright(tmp_path: Path, degrees: int, each: Reader) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(4))
    upright = np.rot90(clips.decode(path), -degrees // 90, axes=(1, 2))
    clips.turn(path, degrees)
    np.testing.assert_array_equal(read(path, reader=each)[0], upright)
    with open_video(path, each) as video:
        small = video.read([0, 3], short_side=48)
    assert small.shape == (2, 48, 64, 3) if degrees == 180 else (2, 64, 48, 3)
    assert np.abs(small[0].mean((0, 1)) - upright[0].mean((0, 1))).max() < 2


def test_irregular_times(tmp_path: Path, each: Reader) -> None:
    shown = [0.0, 0.04, 0.2, 0.24, 1.0, 1.5, 1.54, 3.0]
    pixels = clips.pattern(8)
    path = clips.write_video(tmp_path / "a.mp4", pixels, seconds=[2 + s for s in shown])
    frames, seconds = read(path, reader=each)
    np.testing.assert_allclose(seconds, shown, atol=1e-3)
    np.testing.assert_array_equal(frames, clips.decode(path))


def test_a_reader_that_is_not_exact_says_so(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.avi", clips.pattern(9), options={"bf": "2"})
    for name in ("planned", "decord"):
        with pytest.raises(VideoError, match=f"the reader {name} does not give exactly"):
            read(path, reader=name)
    assert len(read(path)[0]) == 9


def test_the_environment_chooses_for_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(3))
    for name, kind in (("decord", "Decord"), ("whole", "Whole"), ("", "Planned")):
        monkeypatch.setenv("VIDEOCLIP_READER", name)
        assert reader(path) == kind
    # Where the one preferred is not exact, the others are tried.
    narrow = clips.write_video(tmp_path / "b.mp4", clips.pattern(3, 96, 48))
    monkeypatch.setenv("VIDEOCLIP_READER", "decord")
    assert reader(narrow) == "Planned"
    with pytest.raises(VideoError, match="the reader decord does not give exactly"):
        read(narrow, reader="decord")
    monkeypatch.setenv("VIDEOCLIP_READER", "opencv")
    with pytest.raises(VideoclipError, match="is 'opencv'; let it be one of auto, planned, decord"):
        read(path)


def test_a_reader_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(3))
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(VideoclipError, match=r"pip install 'videoclip\[torchcodec\]'"):
        read(path, reader="torchcodec")
    assert len(read(path)[0]) == 3


def test_scaled_frames_are_near_the_exact_ones(tmp_path: Path, each: Reader) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 15, 20, 1), dtype=np.uint8)
    pixels = noise.repeat(16, 1).repeat(16, 2).repeat(3, 3)  # blocks of 16 pixels: many edges
    path = clips.write_video(tmp_path / "a.mp4", pixels, options={"crf": "10"})
    with open_video(path, each) as video:
        exact = resize_and_crop(video.read([2, 9]), 112, "whole").permute(0, 2, 3, 1).numpy()
        fast = video.read([2, 9], short_side=112)
    assert fast.shape == exact.shape
    assert psnr(fast, exact) > 30


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def test_h264_in_avi_gives_the_frames_asked_for(tmp_path: Path) -> None:
    # The form of MSVD's files: no time stamps, by which decord finds frames.
    path = clips.write_video(
        tmp_path / "a.avi", clips.pattern(100), options={"g": "25", "bf": "3", "b_strategy": "0"}
    )
    expected = clips.decode(path)
    indices = list(range(4, 100, 9))
    decord_reader = decord.VideoReader(str(path), num_threads=1)
    assert (decord_reader.get_batch(indices).asnumpy() != expected[indices]).any()
    frames, seconds = read(path, indices)
    np.testing.assert_array_equal(frames, expected[indices])
    np.testing.assert_allclose(seconds, np.arange(100) / 25, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_few_frames_are_decoded_once(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "KEPT", kept)
    path = clips.write_video(tmp_path / "a.avi", clips.pattern(30), options={"bf": "2"})
    with open_video(path) as video:
        assert len(video.frames) == (30 if kept else 0)
        np.testing.assert_array_equal(video.read([29, 2, 2]), clips.decode(path)[[29, 2, 2]])
        assert video.read([4], short_side=48).shape == (1, 48, 64, 3)


def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(50), options={"bf": "0"})
    every = clips.decode(path)
    clips.hide_start(path, 10)
    frames, seconds = read(path)
    np.testing.assert_array_equal(frames, every[10:])
    assert seconds[0] == 0
    np.testing.assert_array_equal(read(path, [0, 20, 39])[0], every[[10, 30, 49]])


def test_raw_stream_without_times_counts_by_its_rate(tmp_path: Path) -> None:
    path = clips.write_video(
        tmp_path / "a.mpg", clips.pattern(20), codec="mpeg1video", options={"g": "5", "bf": "2"}
    )
    frames, seconds = read(path)
    np.testing.assert_array_equal(frames, clips.decode(path))
    np.testing.assert_allclose(seconds, np.arange(20) / 25, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("a.mkv", "libsvtav1", "yuv420p"), ("a.gif", "gif", "rgb8"), ("a.webm", "libvpx-vp9", None)],
)
def test_other_codecs(tmp_path: Path, name: str, codec: str, pixel_format: str | None) -> None:
    pixels = clips.pattern(6, 64, 64)
    path = clips.write_video(
        tmp_path / name, pixels, codec=codec, pixel_format=pixel_format or "yuv420p"
    )
    frames, seconds = read(path)
    assert frames.shape == pixels.shape
    assert len(seconds) == 6
    np.testing.assert_array_equal(frames[[5, 2]], clips.decode(path)[[5, 2]])


@pytest.mark.parametrize("width", [16, 48, 64, 72, 80, 130])
def test_narrow_videos(tmp_path: Path, width: int) -> None:
    # decord refuses 16, 48 and 72.
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(5, 96, width))
    np.testing.assert_array_equal(read(path)[0], clips.decode(path))


def test_one_frame(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.pattern(1))
    frames, seconds = read(path)
    assert frames.shape == (1, 96, 128, 3)
    assert seconds.tolist() == [0]


def test_stream_that_changes_its_size(tmp_path: Path) -> None:
    small = clips.write_video(tmp_path / "small.ts", clips.pattern(5, 80, 112))
    large = clips.write_video(tmp_path / "large.ts", clips.pattern(5, 96, 128))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, seconds = read(both)
    assert frames.shape == (10, 80, 112, 3)
    assert (np.diff(seconds) > 0).all()


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    paths = [
        clips.write_video(tmp_path / f"{n}.{kind}", clips.pattern(20 + n))
        for n in range(3)
        for kind in ("mp4", "avi")
    ]
    alone = [read(path)[0] for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: read(path)[0], paths))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def first_and_last(path: Path) -> np.ndarray:
    return read(path, [0, 19])[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_what_one_reads(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    paths = [
        clips.write_video(tmp_path / f"a.{kind}", clips.pattern(20), options={"bf": "2"})
        for kind in ("mp4", "avi")
    ]
    alone = [first_and_last(path) for path in paths]  # the readers have run before the fork
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the tests have threads: that is it
        with open_video(paths[0]), ProcessPoolExecutor(2, mp_context=context) as pool:
            together = list(pool.map(first_and_last, paths * 2, timeout=60))
    for one, other in zip(alone * 2, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips.write_video(tmp_path / "a.mp4", clips.pattern(3)).rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read(Path("12:30.mp4"))[0]) == 3


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    page, empty = tmp_path / "page.mp4", tmp_path / "empty.mp4"
    page.write_text("<!DOCTYPE html><html>not found</html>")
    empty.touch()
    (tmp_path / "empty").mkdir()
    sound = clips.write_sound(tmp_path / "sound.mp4")
    song = clips.write_sound(tmp_path / "song.mp4", cover=clips.pattern(1)[0])
    for path, words in (
        (tmp_path / "none.mp4", "does not exist"),
        (tmp_path / "empty", "is not a file"),
        (empty, "is empty"),
        (page, "it begins with '<!DOCTYPE html>"),
        (sound, "has no video stream"),
        (song, "has no video stream"),
    ):
        with pytest.raises(VideoError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    index_last = clips.write_video(tmp_path / "index_last.mp4", clips.pattern(50))
    index_first = clips.write_video(
        tmp_path / "index_first.mp4",
        clips.pattern(50),
        container_options={"movflags": "faststart"},
    )
    for path, words in (
        (clips.cut(index_last, 0.8), "is not a video that can be read"),
        (clips.cut(index_first, 0.8), "is damaged"),
    ):
        with pytest.raises(VideoError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_smeared_frames_are_an_error(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.avi", clips.pattern(50), options={"crf": "5"})
    whole = clips.decode(path)
    clips.spoil(path, 0.7, length=16)
    # A decoder that is not asked to be strict paints over the damage.
    smeared = clips.decode(path)
    assert len(smeared) == 50
    assert (smeared != whole).any()
    with pytest.raises(VideoError, match=r"a\.avi is damaged at frame \d+ \(Invalid data"):
        read(path)


@pytest.mark.parametrize(
    "head",
    [
        "ffconcat version 1.0\nfile secret.ts\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\nsecret.ts\n#EXT-X-ENDLIST\n",
    ],
)
@pytest.mark.parametrize("disguised", [False, True])
def test_playlists_cannot_name_other_files(tmp_path: Path, head: str, disguised: bool) -> None:
    secret = clips.write_video(tmp_path / "secret.ts", clips.pattern(40))
    playlist = tmp_path / "a.mp4"
    text = head.encode()
    if disguised:  # followed by packets of a shorter transport stream, which alone may be seen
        innocent = clips.write_video(tmp_path / "innocent.ts", clips.pattern(7))
        text += b"#" * (187 - len(text)) + b"\n" + innocent.read_bytes()
    playlist.write_bytes(text)
    try:
        frames, _ = read(playlist)
    except VideoError:
        return
    assert disguised
    assert len(frames) == 7 != len(clips.decode(secret))


def test_no_message_from_the_decoders(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.mp4"
    page.write_text("no video")
    damaged = clips.write_video(
        tmp_path / "b.mp4", clips.pattern(50), container_options={"movflags": "faststart"}
    )
    for path in (page, clips.cut(damaged, 0.9)):
        with pytest.raises(VideoError):
            read(path)
    read(clips.write_video(tmp_path / "a.mp4", clips.pattern(3)))
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_real_files(shared: Path) -> None:
    """Every real file gives the frames of a plain decode, upright, or a VideoError."""
    refused = {
        "Mpeg4.mp4", "corrupted.mp4", "gif.gif", "mp4-with-audio.mp4", "result.webm",
        "sine_mono_s16.wav",
    }  # fmt: skip
    paths = [*(shared / "data/odd").iterdir(), *(shared / "data/captioned").iterdir()]
    paths += list((shared / "data/labelled").iterdir())
    for path in sorted(paths):
        if path.name in refused:
            with pytest.raises(VideoError, match=path.name):
                read(path)
            continue
        with open_video(path) as video:
            count = len(video.timestamps)
            assert video.timestamps[0] == 0
            assert (np.diff(video.timestamps) > 0).all()
            indices = sorted({0, count // 3, count // 2, count - 1})
            frames = video.read(indices)
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            number, plain = -1, []
            for number, frame in enumerate(container.decode(stream)):
                if number in indices:
                    pixels = frame.to_ndarray(format="rgb24")
                    plain.append(np.rot90(pixels, frame.rotation // 90))
        assert number + 1 == count, path
        np.testing.assert_array_equal(frames, np.stack(plain), str(path))


def test_files_are_closed(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are listed in /proc only on Linux")
    paths = [
        clips.write_video(tmp_path / f"a.{kind}", clips.pattern(10)) for kind in ("mp4", "avi")
    ]
    read(paths[0]), read(paths[1])
    before = len(list(folder.iterdir()))
    for path in paths * 5:
        read(path, [0, 3])
    assert len(list(folder.iterdir())) == before
