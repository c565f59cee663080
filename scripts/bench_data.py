"""Times how frames come out of videos: the readers here, others, CLIP4Clip's way, and the store.

Run: .venv/bin/python scripts/bench_data.py --json bench.json
"""

import dataclasses
import functools
import json
import platform
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import NamedTuple

import av
import decord
import numpy as np
import torch
import tyro
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.frames import store as stores
from videoclip.frames.decode import open_video
from videoclip.frames.gate import Limits
from videoclip.frames.pack import pack, write_manifests
from videoclip.frames.pack_clip import Packing
from videoclip.frames.sampling import uniform_indices
from videoclip.frames.store import FrameStore
from videoclip.frames.transforms import Pixels, resize_and_crop
from videoclip.manifest import Clip

SIZE, RATE, SECONDS = 224, 25, 20
"""What every way ends with: pictures of so many pixels a side. The written files' own measures."""
EXACT, SCALED, STORE, PACKED = "exact", "scaled", "store", "packed"
OTHERS = ("torchcodec", "decord")
FULL, SEEKS = "full decode", "CLIP4Clip's way"
CLIPS = {STORE: 16, PACKED: 16}
"""Ways so short that so many clips are read in a row; their time is that of one."""
RATIOS = (
    (SEEKS, EXACT), (SEEKS, SCALED), ("torchcodec", EXACT), ("torchcodec", SCALED), (SEEKS, STORE),
    (SEEKS, PACKED),
)  # fmt: skip
"""What the table compares: how many times the time of the second the first takes."""
Way = Callable[[], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times frames from video files and from the store, beside what others do, in one run.

    exact: the reader here, frames as a full decode gives them, resized and cropped by torchvision.
    scaled: the reader here, scaled before the colors are made. torchcodec and decord: theirs, then
    the same resizing. full decode: every frame of the file decoded by PyAV and thrown away, the
    limit of who decodes everything. CLIP4Clip's way: OpenCV seeks to every second of the video,
    Pillow and torchvision resize, crop and normalize, an array of float64; from it the frames are
    picked, so that their number changes nothing. store: uint8 frames that a training keeps beside
    it. packed: frames of the store of `videoclip data pack`, four JPEG a second. Of both stores
    sixteen clips are read in a row, as an epoch does; the time is that of one.

    All decode with one thread, in turns; each round begins with another way and the first only
    warms up. Seconds are those of the processor (user and system), so that other work on the
    machine changes little; videos a second of one core are 1 divided by them. Before anything is
    timed, exact frames of all readers are compared to the last bit with a full decode.
    """

    frames: tuple[int, ...] = (8, 12, 16, 32)
    """Frames that are asked for, uniformly over the video; 0: those of CLIP4Clip's way."""
    sizes: tuple[tuple[int, int], ...] = ((320, 240), (1280, 720))
    """Width and height of the videos that are written."""
    gops: tuple[int, ...] = (12, 250)
    """Frames from a key frame to the next, in the videos that are written."""
    seconds: int = SECONDS
    """Length of the videos that are written."""
    files: tuple[Path, ...] = ()
    """Videos to take instead of those that are written."""
    folder: Path | None = None
    """Where the written videos are kept, to be used again. Default: nowhere."""
    rounds: int = 3
    """Timed rounds, after one to warm up."""
    opencv_threads: int = 1
    """Of CLIP4Clip's way; 0: as many as OpenCV takes, as CLIP4Clip has it."""
    json: Path | None = None
    """Where to write every time that was measured."""


class Row(NamedTuple):
    """One file, and so many frames of it."""

    file: str
    frames: int
    seconds: dict[str, list[float]]
    """Of the processor per way, in each round."""
    note: str
    """What was compared before."""

    def milliseconds(self, way: str) -> float:
        """The median of the rounds."""
        return 1000 * median(self.seconds[way])

    def ratio(self, way: str, other: str) -> float | None:
        """How many times the seconds of one way those of another are; None where one is absent."""
        if not {way, other} <= self.seconds.keys():
            return None
        return self.milliseconds(other) / self.milliseconds(way)


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures, prints the table and writes what was measured."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__)
    torch.set_num_threads(1)
    lines, rows = [describe(options)], []
    with tempfile.TemporaryDirectory() as temporary:
        for row in measure(options, Path(temporary)):
            rows.append(row)
            if options.json:  # also what was measured before an interruption
                found = {"conditions": lines[0], "rows": [row._asdict() for row in rows]}
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    notes = [f"{row.file}: {row.note}" for row in {row.file: row for row in rows}.values()]
    print("\n".join([*lines, "", table(rows), "", *notes, "", summary(rows)]))


def measure(options: Options, temporary: Path) -> Iterator[Row]:
    """One file after the other."""
    paths = options.files or tuple(write_files(options, options.folder or temporary))
    for path in paths:
        by_frames, shared, note = ways(path, options, temporary / "store")
        calls = {(-1, name): way for name, way in shared.items()}
        calls |= {(n, name): way for n, them in by_frames.items() for name, way in them.items()}
        seconds = interleaved(calls, options.rounds, path.name)
        for n in options.frames:
            own = {name: taken for (which, name), taken in seconds.items() if which in (-1, n)}
            yield Row(path.name, n, own, note)


def interleaved(
    calls: Mapping[tuple[int, str], Way], rounds: int, label: str
) -> dict[tuple[int, str], list[float]]:
    """Seconds of the processor of each call in each round, after one to warm up."""
    names = list(calls)
    seconds: dict[tuple[int, str], list[float]] = {name: [] for name in names}
    for number in tqdm(range(1 + rounds), label, unit="round"):
        start = number * len(names) // (1 + rounds)
        for name in names[start:] + names[:start]:
            began = processor()
            calls[name]()
            if number:
                seconds[name].append((processor() - began) / CLIPS.get(name[1], 1))
    return seconds


def processor() -> float:
    """Seconds that this process has worked, all its threads, for itself and in the system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ways(
    path: Path, options: Options, folder: Path
) -> tuple[dict[int, dict[str, Way]], dict[str, Way], str]:
    """The ways for each number of frames, those that do not depend on it, and what was compared.

    Raises SystemExit where our exact frames are not those of a full decode. Another reader that
    gives other frames is left out, and the note says so.
    """
    every, clip = full_decode(path), Clip(path.name, path, ("",))
    ready = packed(clip, folder / path.stem)
    by_frames: dict[int, dict[str, Way]] = {}
    notes = ["our frames are those of a full decode"]
    for n in options.frames:
        indices = uniform_indices(len(every), n) if n else first_of_seconds(path, len(every))
        wanted = np.stack([every[index].to_ndarray(format="rgb24") for index in indices])
        if every[0].rotation:
            wanted = np.rot90(wanted, round(every[0].rotation / 90), axes=(1, 2))
        if not np.array_equal(exact(path, indices), wanted):
            raise SystemExit(f"{path}: frames differ from those of a full decode; nothing is timed")
        store = FrameStore(folder, size=SIZE, frames=len(indices))
        kept = copies(clip, folder / "copies")
        store.fill(kept, 1, path.name)
        by_frames[n] = {
            EXACT: functools.partial(resized, exact, path, indices),
            SCALED: functools.partial(scaled, path, indices),
            STORE: functools.partial(stored, kept, store),
            PACKED: functools.partial(stored, [ready] * CLIPS[PACKED], store),
        }
        for name, read in (("torchcodec", torchcodec_frames), ("decord", decord_frames)):
            try:
                same = np.array_equal(read(path, indices), wanted)
            except (ImportError, OSError, RuntimeError, decord.DECORDError):
                notes.append(f"{name} is not here or does not read it")
                continue
            if same:
                by_frames[n][name] = functools.partial(resized, read, path, indices)
            else:
                notes.append(f"{name} gives other frames and is left out")
    shared: dict[str, Way] = {FULL: lambda: full_decode(path, keep=False)}
    try:
        if len(clip4clip(path, options.opencv_threads)):
            shared[SEEKS] = lambda: clip4clip(path, options.opencv_threads)
    except ImportError:
        notes.append("no OpenCV, and so not CLIP4Clip's way (pip install opencv-python-headless)")
    except VideoclipError as error:
        notes.append(str(error))
    return by_frames, shared, "; ".join(dict.fromkeys(notes))


def first_of_seconds(path: Path, count: int) -> np.ndarray:
    """The frames that CLIP4Clip's way reads."""
    with open_video(path) as video:
        return np.arange(0, count, max(int(video.rate), 1))


def resized(read: Callable[..., np.ndarray], path: Path, indices: np.ndarray) -> torch.Tensor:
    """The frames of a reader, as the tower takes them."""
    return resize_and_crop(read(path, indices), SIZE)


def exact(path: Path, indices: np.ndarray) -> np.ndarray:
    """By the reader here."""
    with open_video(path) as video:
        return video.read(indices)


def scaled(path: Path, indices: np.ndarray) -> np.ndarray:
    """By the reader here, scaled before the colors are made, and the middle kept."""
    with open_video(path) as video:
        pixels = video.read(indices, short_side=SIZE)
    top, left = (pixels.shape[1] - SIZE) // 2, (pixels.shape[2] - SIZE) // 2
    return np.ascontiguousarray(pixels[:, top : top + SIZE, left : left + SIZE])


def torchcodec_frames(path: Path, indices: np.ndarray) -> np.ndarray:
    """By torchcodec, which is exact unless it is asked not to be."""
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return reader.get_frames_at(indices.tolist()).data.numpy()


def decord_frames(path: Path, indices: np.ndarray) -> np.ndarray:
    """By decord."""
    return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()


def full_decode(path: Path, *, keep: bool = True) -> list[av.VideoFrame]:
    """Every frame, decoded by one thread and left as it is."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return [frame for frame in container.decode(stream) if keep]


def stored(clips: Sequence[Clip], store: FrameStore) -> None:
    """From a store that has the clips; each time as for the first time."""
    stores._array.cache_clear()  # else the files would stay open
    for clip in clips:
        store.read(clip, 1)


def copies(clip: Clip, folder: Path) -> list[Clip]:
    """The clip under as many names, so that none is still at hand from the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [folder / f"{number}-{clip.path.name}" for number in range(CLIPS[STORE])]
    for path in found:
        path.unlink(missing_ok=True)
        path.symlink_to(clip.path.absolute())
    return [clip._replace(video_id=path.name, path=path) for path in found]


def packed(clip: Clip, folder: Path) -> Clip:
    """The clip as it stands in a packed store."""
    rows = pack([clip], Packing().record, folder, Limits(), workers=1)
    [found] = write_manifests("bench.jsonl", [clip], rows, folder)
    return found.clip


def clip4clip(path: Path, threads: int) -> np.ndarray:
    """All seconds of a video as CLIP4Clip's loader has them: float64 (seconds, 3, 224, 224).

    For every second OpenCV winds to its first frame and reads it; Pillow and torchvision do the
    rest. Written anew.
    """
    import cv2

    cv2.setNumThreads(1)
    prepare = v2.Compose(
        [
            v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(Pixels().mean, Pixels().std),
        ]
    )
    how = [cv2.CAP_PROP_N_THREADS, threads] if threads else []
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, how)
    rate, count = int(capture.get(cv2.CAP_PROP_FPS)), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    pictures = []
    for second in range(-(-count // rate) if rate > 0 else 0):
        capture.set(cv2.CAP_PROP_POS_FRAMES, second * rate)
        read, frame = capture.read()
        if not read:
            break
        colors = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        pictures.append(prepare(Image.fromarray(colors).convert("RGB")))
    capture.release()
    if not pictures:
        raise VideoclipError("OpenCV reads nothing of it")
    video = np.zeros((len(pictures), 3, SIZE, SIZE), dtype=np.float64)
    video[:] = torch.stack(pictures).numpy()
    return video


def write_files(options: Options, folder: Path) -> Iterator[Path]:
    """The videos of all sizes and distances of key frames, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in options.sizes:
        for gop in options.gops:
            path = folder / f"{width}x{height}, key frame every {gop}.mp4"
            if not path.exists():
                part = path.with_suffix(".part.mp4")
                write_video(part, width, height, options.seconds * RATE, gop)
                part.rename(path)
            yield path


def write_video(path: Path, width: int, height: int, frames: int, gop: int) -> None:
    """H.264 as x264 writes it by default, with B-frames, of a scene that moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        scenes = tqdm(scene(width, height, frames), f"writing {path.stem}", frames, unit="frame")
        for pixels in scenes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def scene(width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """A camera pans over a landscape of noise, things cross it, the sensor is noisy."""
    numbers = np.random.default_rng(0)
    land = landscape(2 * width, 2 * height, numbers)
    things = [
        (numbers.random(2), numbers.uniform(-3, 3, 2), int(height * numbers.uniform(0.1, 0.3)))
        for _ in range(5)
    ]
    noise = numbers.normal(0, 3, (height, 2 * width, 1)).astype(np.float32)
    for number in range(frames):
        top = int(height / 2 * (1 + np.sin(number / 90)))
        left = int(width / 2 * (1 + np.sin(number / 130 + 1)))
        picture = land[top : top + height, left : left + width].copy()
        for place, speed, side in things:
            y = int((place[0] * height + speed[0] * number) % (height - side))
            x = int((place[1] * width + speed[1] * number) % (width - side))
            picture[y : y + side, x : x + side] = 255 - land[:side, x : x + side]
        shift = int(numbers.integers(width))
        picture += np.roll(noise[:, shift : shift + width], int(numbers.integers(height)), axis=0)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def landscape(width: int, height: int, numbers: np.random.Generator) -> np.ndarray:
    """Noise of many sizes, gray with a little color: float32 (height, width, 3)."""
    picture = np.full((height, width, 3), 120, dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        coarse = numbers.normal(0, 60 / cells**0.4, (cells, 2 * cells, 1))
        coarse = coarse + numbers.normal(0, 15 / cells**0.4, (cells, 2 * cells, 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            picture[..., channel] += np.asarray(layer.resize((width, height), Image.BICUBIC))
    return picture


def table(rows: Sequence[Row]) -> str:
    """Milliseconds of the processor per video, and the ratios that goals were set for."""
    names = (EXACT, SCALED, *OTHERS, FULL, SEEKS, STORE, PACKED)
    lines = [f"| file | frames | {' | '.join(names)} | {' | '.join(map(' : '.join, RATIOS))} |"]
    lines.append("| --- | ---: |" + " ---: |" * (len(names) + len(RATIOS)))
    for row in rows:
        shown = [f"{row.milliseconds(n):.3g}" if n in row.seconds else "" for n in names]
        found = [row.ratio(way, other) for other, way in RATIOS]
        shown += ["" if ratio is None else f"{ratio:.2f}" for ratio in found]
        lines.append(f"| {row.file} | {row.frames} | {' | '.join(shown)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """The smallest and the largest of each ratio, over all rows."""
    said = []
    for other, way in RATIOS:
        found = [row.ratio(way, other) for row in rows]
        ratios = [ratio for ratio in found if ratio is not None]
        if ratios:
            said.append(f"{other} : {way} {min(ratios):.3g} to {max(ratios):.3g}")
    return f"Times as much of the processor's time: {'; '.join(said)}."


def describe(options: Options) -> str:
    """On what was measured, and how often."""
    installed = {found.name: found.version for found in distributions()}
    named = ("av", "torchcodec", "decord", "opencv-python-headless")
    versions = ", ".join(f"{name} {installed[name]}" for name in named if name in installed)
    return f"{platform.machine()}, 1 thread; {options.rounds} rounds; {versions}. Milliseconds:"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except VideoclipError as error:
        sys.exit(f"bench_data: {error}")
