"""Writes "moving shapes", a benchmark that an order-blind model cannot solve.

180 captions over 3 shapes and 5 colors; 150 of them come in twins ("grows" and "shrinks") whose
test clips are exact reversals of each other; docs/moving_shapes.md derives the ceiling from that.

Run: python -m data_prep.moving_shapes FOLDER --seed 0
"""

import argparse
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 64
"""Width and height of a frame in pixels."""
FRAMES = 20
"""Frames of a clip: 4 uniform samples, the middles of segments of 5, mirror each other in time."""
RATE = 12
"""Frames per second."""

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (230, 30, 30),
    "green": (30, 190, 50),
    "blue": (50, 80, 255),
    "yellow": (250, 220, 30),
    "white": (245, 245, 245),
}
"""Color words and what they are drawn as (red, green, blue; 0 to 255)."""

MOTIONS = (
    ("moves from left to right", "moves from right to left"),
    ("moves from top to bottom", "moves from bottom to top"),
    ("grows", "shrinks"),
)
"""Events that a reversal turns into each other; "turns from COLOR to COLOR" is the fourth kind."""
STILL, BLINK = "stays still", "blinks"
"""Events that a reversal turns into themselves."""

SIZES = {"small": (7.0, 9.5), "large": (14.0, 18.0)}
"""Size words of the images and the range of the radius in pixels."""
PLACES = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
}
"""Place words of the images and the direction from the center (x to the right, y down)."""
FULL_TEMPLATE = "a {size} {color} {shape} {place}"
TEMPLATES = (
    FULL_TEMPLATE,
    "there is a {size} {color} {shape} {place}",
    "a {color} {shape} {place}",
    "a {size} {color} {shape}",
    "a picture of a {color} {shape}",
)
"""Captions of the training images are drawn from these."""

# Every frame an independent intra frame under one constant quantizer: whatever the encoder does to
# a picture then depends on that picture alone, so a reversed clip decodes to the reversed frames.
ENCODER = {
    "preset": "ultrafast",
    "qp": "18",
    "g": "1",
    "bf": "0",
    "sc_threshold": "0",
    "aq-mode": "0",
    "mbtree": "0",
    "rc-lookahead": "0",
}

SPLITS = ("train", "val", "test")
IMAGE_STREAM = len(SPLITS)  # the images' place beside the splits in the key of a random generator
VERSION = 2  # raise it when the same settings give other files, so that old folders are redone


class Scene(NamedTuple):
    """One thing that happens; `labels` holds its event and, where it differs, the reversed one."""

    shape: str
    color: str
    last_color: str  # the same as `color` unless the shape turns
    labels: tuple[str, ...]

    def caption(self, label: str) -> str:
        """Return the caption of one of the scene's labels."""
        turns = self.color != self.last_color
        return f"a {self.shape} {label}" if turns else f"a {self.color} {self.shape} {label}"


def scenes(shapes: Sequence[str] = SHAPES, colors: Sequence[str] = tuple(COLORS)) -> list[Scene]:
    """List every scene; the default world has 105: 75 with a twin and 30 without, 180 captions."""
    found = []
    for shape, color in itertools.product(shapes, colors):
        found += [Scene(shape, color, color, labels) for labels in MOTIONS]
        found += [Scene(shape, color, color, (label,)) for label in (STILL, BLINK)]
    for shape, (first, second) in itertools.product(shapes, itertools.combinations(colors, 2)):
        labels = (f"turns from {first} to {second}", f"turns from {second} to {first}")
        found.append(Scene(shape, first, second, labels))
    return found


def render(
    shape: str,
    center_x: np.ndarray,
    center_y: np.ndarray,
    radius: np.ndarray,
    color: np.ndarray,
    background: float,
) -> np.ndarray:
    """Draw one antialiased shape per frame from its distance field: uint8 (T, SIDE, SIDE, 3).

    Centers and radii are in pixels, (T,) each; `color` is (T, 3) and `background` a gray level.
    """
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    x = np.abs(pixel[None, None, :] - center_x.astype(np.float32)[:, None, None])
    y = pixel[None, :, None] - center_y.astype(np.float32)[:, None, None]
    size = radius.astype(np.float32)[:, None, None]
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - size
    elif shape == "square":
        distance = np.maximum(x, np.abs(y)) - 0.88 * size
    else:  # an equilateral triangle, shifted down so that its bounding box is centered
        inner = 0.62 * size
        y = y - 0.5 * inner
        distance = np.maximum(y, np.float32(0.75**0.5) * x - np.float32(0.5) * y) - inner
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    ink = color.astype(np.float32)[:, None, None, :] - np.float32(background)
    return np.rint(np.float32(background) + cover * ink).astype(np.uint8)


def blink_pattern(half_period: int, offset: int) -> np.ndarray:
    """Say in which frames a blinking shape is seen, bool (FRAMES,); symmetric under reversal."""
    frame = np.arange(FRAMES)
    from_the_edge = np.minimum(frame, FRAMES - 1 - frame)
    return (from_the_edge + offset) // half_period % 2 == 0


def draw_clip(scene: Scene, random: np.random.Generator) -> np.ndarray:
    """Draw the parameters and then the frames of `scene.labels[0]`: uint8 (FRAMES, SIDE, SIDE, 3).

    The clip of `scene.labels[1]` is the reversal, `draw_clip(...)[::-1]`.
    """
    label = scene.labels[0]
    frame = np.arange(FRAMES)
    background = random.uniform(10, 45)
    jitter_x, jitter_y = random.normal(0, 0.3, size=(2, FRAMES)).clip(-1, 1)
    begin, end = random.uniform(0, 4), random.uniform(FRAMES - 5, FRAMES - 1)
    progress = ((frame - begin) / (end - begin)).clip(0, 1)

    radius = np.full(FRAMES, random.uniform(8, 13))
    if label == "grows":
        small, large = random.uniform(5, 7), random.uniform(17, 21)
        radius = small + (large - small) * progress

    margin = 1.1 * radius.max() + 1
    low, high = margin, SIDE - margin
    center_x, center_y = (np.full(FRAMES, place) for place in random.uniform(low, high, size=2))
    if label.startswith("moves"):
        start, stop = low + random.uniform(0, 5), high - random.uniform(0, 5)
        along = start + (stop - start) * progress
        across = (center_x + random.uniform(-5, 5) * (progress - 0.5)).clip(low, high)
        center_x, center_y = (along, across) if "left" in label else (across, along)

    color = np.array([COLORS[scene.color]] * FRAMES, dtype=np.float64)
    if scene.last_color != scene.color:
        middle, width = random.uniform(7.5, 11.5), random.uniform(0.1, 3)
        mix = ((frame - middle) / width + 0.5).clip(0, 1)[:, None]
        color += mix * (np.array(COLORS[scene.last_color]) - color)
    if label == BLINK:
        # At 5 frames a state, 4 evenly spaced frames always hold both states.
        seen = blink_pattern(5, int(random.integers(5)))
        color = np.where(seen[:, None], color, background)
    return render(scene.shape, center_x + jitter_x, center_y + jitter_y, radius, color, background)


def encode(frames: np.ndarray, options: Mapping[str, str] = ENCODER) -> bytes:
    """Encode uint8 frames (T, H, W, 3) as an H.264 .mp4 file, returned as its bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes must not depend on the number of cores
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def clip_files(
    seed: int, split: str, draws: int, world: Sequence[Scene]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield manifest row and file of every clip of a split: `draws` for each caption, twins paired.

    Twins share their drawn parameters in every split, so the one is the other played backward.
    """
    number = 0
    for index, (_, scene) in enumerate(itertools.product(range(draws), world)):
        random = np.random.default_rng([seed, SPLITS.index(split), index])
        frames = draw_clip(scene, random)
        for label, ordered in zip(scene.labels, (frames, frames[::-1]), strict=False):
            name = f"shapes_{split}_{number:05d}"
            number += 1
            row = {
                "video_id": name,
                "path": f"videos/{name}.mp4",
                "captions": [scene.caption(label)],
                "label": label,
                "split": split,
                "group": "order" if len(scene.labels) == 2 else "content",
            }
            yield row, encode(ordered)


def image_files(
    seed: int, images: int, shapes: Sequence[str], colors: Sequence[str]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield row and .png file of every image; the first round over all descriptions is `val`.

    The validation captions are full and differ from each other, so that R@1 is well defined.
    """
    descriptions = list(itertools.product(shapes, colors, SIZES, PLACES))
    for index in range(images):
        shape, color, size, place = descriptions[index % len(descriptions)]
        split = "val" if index < len(descriptions) else "train"
        random = np.random.default_rng([seed, IMAGE_STREAM, index])
        radius = random.uniform(*SIZES[size])
        background = random.uniform(10, 45)
        # Up to 3 pixels from the border in the named direction, near the middle otherwise.
        reach = SIDE / 2 - 1.1 * radius - random.uniform(0, 3, size=2)
        center = SIDE / 2 + np.where(PLACES[place], PLACES[place] * reach, random.uniform(-3, 3, 2))
        pixels = render(
            shape,
            *(center[:, None]),
            radius=np.array([radius]),
            color=np.array([COLORS[color]]),
            background=background,
        )
        template = FULL_TEMPLATE if split == "val" else TEMPLATES[random.integers(len(TEMPLATES))]
        name = f"shapes_image_{index:05d}"
        row = {
            "video_id": name,
            "path": f"images/{name}.png",
            "captions": [template.format(shape=shape, color=color, size=size, place=place)],
            "label": f"{color} {shape}",
            "split": split,
        }
        buffer = io.BytesIO()
        Image.fromarray(pixels[0]).save(buffer, "png")
        yield row, buffer.getvalue()


def order_blind_ceiling(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the highest expected text-to-video R@1 (0 to 1) of a model that ignores frame order.

    `rows` are the manifest rows of one split. A caption whose twin is among them counts 1/2, the
    others 1: such a model scores twin clips alike, so which of them comes first is a coin flip.
    """
    captions = {row["captions"][0] for row in rows}
    if not captions or len(captions) != len(rows):
        raise ValueError(
            f"{len(rows)} rows with {len(captions)} different captions: the ceiling is defined for "
            "one clip per caption; pass the rows of the split 'test' or 'val' only"
        )
    return sum(0.5 if _twin_caption(row) in captions else 1.0 for row in rows) / len(rows)


def _twin_caption(row: Mapping[str, Any]) -> str | None:
    """Return the caption of the reversed clip, or None where the reversal changes nothing."""
    caption, label = row["captions"][0], row["label"]
    opposites = {**dict(MOTIONS), **{second: first for first, second in MOTIONS}}
    if label.startswith("turns from "):
        first, second = label.removeprefix("turns from ").split(" to ")
        opposites[label] = f"turns from {second} to {first}"
    return caption.removesuffix(label) + opposites[label] if label in opposites else None


def generate(
    folder: Path,
    *,
    seed: int = 0,
    clips_per_caption: int = 4,
    images: int = 3000,
    shapes: Sequence[str] = SHAPES,
    colors: Sequence[str] = tuple(COLORS),
) -> Path:
    """Write the benchmark into `folder` and return the path of its manifest.jsonl.

    Val and test get one clip for each caption, train `clips_per_caption`. A folder that a call with
    the same settings finished is left as it is; any other is written anew. Fewer `shapes` and
    `colors` make a smaller world for tests; published numbers use the default.
    """
    folder = Path(folder)
    settings = {
        "version": VERSION,
        "seed": seed,
        "clips_per_caption": clips_per_caption,
        "images": images,
        "shapes": list(shapes),
        "colors": list(colors),
    }
    _check(settings)
    done, manifest = folder / "moving_shapes.json", folder / "manifest.jsonl"
    if _is_finished(folder, settings):
        return manifest

    done.unlink(missing_ok=True)  # from here on, and until the end, the folder is unfinished
    for subfolder in ("videos", "images"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    world = scenes(shapes, colors)
    captions = sum(len(scene.labels) for scene in world)
    draws = {"train": clips_per_caption, "val": 1, "test": 1}
    clips = itertools.chain.from_iterable(
        clip_files(seed, split, draws[split], world) for split in SPLITS
    )
    _write_all(manifest, clips, total=captions * sum(draws.values()), unit="clip")
    pictures = image_files(seed, images, shapes, colors)
    _write_all(folder / "images.jsonl", pictures, total=images, unit="image")
    _write(done, (json.dumps(settings, indent=2) + "\n").encode())
    return manifest


def _check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings from which no benchmark can be made."""
    for name, known in (("shapes", SHAPES), ("colors", tuple(COLORS))):
        given = settings[name]
        if not given or set(given) - set(known) or len(set(given)) != len(given):
            raise ValueError(f"{name} {given}: give one or more of {list(known)}, each once")
    for name, least in (("seed", 0), ("clips_per_caption", 1)):
        if settings[name] < least:
            raise ValueError(f"{name} is {settings[name]}: give {least} or more")
    descriptions = len(settings["shapes"]) * len(settings["colors"]) * len(SIZES) * len(PLACES)
    if settings["images"] < 2 * descriptions:
        raise ValueError(
            f"images is {settings['images']}: give {2 * descriptions} or more, because val takes "
            f"one for each of the {descriptions} descriptions and train needs at least as many"
        )


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether a run with these settings reached its end here and no file was lost since."""
    try:
        if json.loads((folder / "moving_shapes.json").read_text("utf-8")) != settings:
            return False
        for name in ("manifest.jsonl", "images.jsonl"):
            for line in (folder / name).read_text("utf-8").splitlines():
                if not (folder / json.loads(line)["path"]).is_file():
                    return False
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _write_all(
    manifest: Path, files: Iterator[tuple[dict[str, Any], bytes]], *, total: int, unit: str
) -> None:
    """Write every file, then the manifest that lists them, then remove files of an earlier run."""
    rows = []
    for row, data in tqdm(files, total=total, desc=manifest.stem, unit=unit, mininterval=0.5):
        _write(manifest.parent / row["path"], data)
        rows.append(row)
    assert len(rows) == total
    _write(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    kept = {manifest.parent / row["path"] for row in rows}
    # Only what carries our own names: the folder may hold somebody's other files.
    for path in next(iter(kept)).parent.glob("shapes_*"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent (or old) or complete, never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, write the benchmark and print what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.moving_shapes",
        description="Write the moving-shapes benchmark: short H.264 clips and captions of which "
        "most can only be told apart by the order of the frames, and captioned images of the same "
        "world. A folder already finished with the same settings is left as it is.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where to write; made if absent"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument(
        "--clips-per-caption",
        type=int,
        default=4,
        help="training clips for each of the 180 captions; val and test always have one",
    )
    parser.add_argument(
        "--images", type=int, default=3000, help="captioned images, 150 of which become val"
    )
    options = parser.parse_args(arguments)
    try:
        manifest = generate(**vars(options))
    except ValueError as error:
        parser.error(str(error))
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    print(
        f"{manifest}: {len(rows)} clips, {len(test)} of them for testing, and {options.images} "
        f"images; an order-blind model's R@1 on test is at most "
        f"{100 * order_blind_ceiling(test):.1f} % in expectation"
    )


if __name__ == "__main__":
    main()
