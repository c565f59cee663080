"""File -> what it is, found out in a process of its own: a video is input that nobody vouched for.

`videoclip.frames.check` runs this as a program and talks to it over pipes: a decoder that hangs or
crashes takes this process with it and nothing else. It imports next to nothing of the package,
since torch would cost seconds and gigabytes of address space. Before anything is decoded,
container, codec, sides and duration must be among what is allowed.
"""

import contextlib
import itertools
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import av
from av.stream import Disposition

from videoclip.errors import VideoError
from videoclip.frames.allowed import CODECS, CONTAINERS, PICTURES, Limits
from videoclip.frames.numbered import numbered
from videoclip.frames.wholeness import RefusalError, beginning, damage, promised, reason, unopened

HEAD = 16
"""Frames that are decoded at the beginning."""
BORDER = 256
"""Pixels by which decoders round up sides, and count them."""
FAR = 1_500
"""Frames between a key frame and a moment that is looked for, after which the search ends."""
PACKETS = 20_000
"""Whose time stamps are looked at, where not everything is decoded."""
UNEVEN = 0.1
"""Frames whose distance differs by more than this share of the usual one: a variable rate."""
LACKS = 0.1
"""A video that ends so much earlier than it says, as a share of its duration and at least..."""
ALONE, WITH_SOUND = 0.5, 1.5
"""...so many seconds, was cut short; sound may go on for longer than the picture."""


def probe(path: Path, limits: Limits) -> dict[str, Any]:
    """What a file is: `kind` is ok or the reason against it, and what could be learned of it."""
    found: dict[str, Any] = {"kind": "ok", "detail": ""}
    try:
        _check_file(path, found)
        if path.is_dir():
            _folder(path, limits, found)
        elif path.suffix.lower() in PICTURES:
            _picture(path, limits, found)
        else:
            _video(path, limits, found)
    except RefusalError as refusal:
        found |= {"kind": refusal.kind, "detail": refusal.detail}
    except (MemoryError, av.error.MemoryError):
        found |= {"kind": "too large", "detail": f"it needs more than {limits.memory:,} bytes"}
    except PermissionError as error:
        found |= {"kind": "missing", "detail": f"it may not be read: {error.strerror}"}
    except OSError as error:
        found |= {"kind": "decode error", "detail": reason(error)}
    return found


def _check_file(path: Path, found: dict[str, Any]) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        link = " (a link that leads nowhere)" if path.is_symlink() else ""
        raise RefusalError("missing", f"there is no such file{link}") from error
    except OSError as error:
        raise RefusalError("missing", reason(error)) from error
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for forever
        raise RefusalError("not video", "it is no plain file")
    found["bytes"] = status.st_size
    if not status.st_size:
        raise RefusalError("empty", "it has 0 bytes")


def _video(path: Path, limits: Limits, found: dict[str, Any]) -> None:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # An absolute path, so that a name such as 12:30.mp4 is not taken for a protocol.
        container = av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise RefusalError(
            "refused format", f"its format is not read here{beginning(path)}"
        ) from error
    except MemoryError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise unopened(path, error) from error
    with container:
        found["container"] = container.format.name.split(",")[0]
        found["audio_streams"] = len(container.streams.audio)
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise _without_pictures(path, container)
        if stream.codec_context is None:
            raise damage(path, "no decoder is known for it", "refused codec")
        _describe(container, stream, found)
        _gate(stream, limits, found)
        times, last = _time_stamps(path, container, stream, limits), None
        found["frames"] = len(times) if len(times) < _most(limits) else None
        found["variable_rate"] = False
        if times and None not in times:
            shown = sorted(times)
            found["variable_rate"] = _is_uneven(shown)
            if found["frames"]:
                last = float((shown[-1] - (stream.start_time or 0)) * stream.time_base)
        _decode(path, container, stream, limits, found)
        _check_end(path, last, found)


def _without_pictures(path: Path, container: av.container.InputContainer) -> RefusalError:
    kinds = {s.type if s.type != "video" else "a cover picture" for s in container.streams}
    holds = f"it holds {' and '.join(sorted(kinds)) or 'nothing'}{beginning(path)}"
    return damage(path, holds, "no video stream")


def _describe(
    container: av.container.InputContainer, stream: av.VideoStream, found: dict[str, Any]
) -> None:
    context = stream.codec_context
    ratio = stream.sample_aspect_ratio
    found |= {
        "codec": context.codec.canonical_name,
        "pixel_format": context.pix_fmt,
        "width": context.width,
        "height": context.height,
        "rate": float(stream.average_rate) if stream.average_rate else None,
        "seconds": _seconds(container, stream),
        "video_streams": len(container.streams.video),
        "non_square": bool(ratio and ratio not in (0, 1)),
    }


def _seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """The duration that the file declares."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _gate(stream: av.VideoStream, limits: Limits, found: dict[str, Any]) -> None:
    """Refuses what must not reach a decoder, and tells the decoder the same."""
    codec, width, height = found["codec"], found["width"], found["height"]
    if codec not in CODECS:
        raise RefusalError("refused codec", f"{codec} is not decoded here")
    _check_size(width, height, limits)
    if (found["seconds"] or 0) > limits.seconds:
        raise RefusalError(
            "too long", f"{found['seconds']:,.0f} s, allowed are {limits.seconds:,.0f}"
        )
    if stream.frames > limits.frames:
        raise RefusalError("too long", f"{stream.frames:,} frames, allowed are {limits.frames:,}")
    # On the codec's own context: what av.open is given does not reach the decoder.
    stream.codec_context.options = {
        "codec_whitelist": stream.codec_context.codec.name,
        "max_pixels": str(limits.pixels + BORDER * limits.side),
        "err_detect": "explode",
    }
    stream.codec_context.thread_count = 1


def _check_size(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise RefusalError(
            "too large",
            f"{width} x {height} pixels, allowed are {limits.side} a side and {limits.pixels:,} "
            "in all",
        )


def _most(limits: Limits) -> int:
    return limits.frames if limits.full else PACKETS


def _time_stamps(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, limits: Limits
) -> list[int | None]:
    """When frames are shown, in the stream's units, where it says so; nothing is decoded."""
    times: list[int | None] = []
    corrupt = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            corrupt += packet.is_corrupt
            times.append(packet.pts if packet.pts is not None else packet.dts)
            if len(times) > limits.frames:
                raise RefusalError("too long", f"it has more than {limits.frames:,} frames")
            if len(times) >= _most(limits):
                break
        container.seek(0)
    except av.FFmpegError as error:
        raise damage(path, f"its packets cannot be read ({reason(error)})") from error
    if corrupt:
        raise damage(path, f"{corrupt} of {len(times)} packets are incomplete")
    return times


def _is_uneven(times: list[int]) -> bool:
    """Whether the distances of frames differ, beyond what a coarse clock makes of even ones."""
    steps = [after - before for before, after in itertools.pairwise(times[:-1])]
    if not steps:
        return False
    usual = median(steps)
    return any(abs(step - usual) > max(UNEVEN * usual, 2) for step in steps)


def _decode(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    found: dict[str, Any],
) -> None:
    """Head, middle and tail, or everything. Raises RefusalError at the first damage."""
    found["decoded"], last = 0, None
    try:
        if limits.full:
            _straight_through(path, container, stream, limits, found)
            return
        for frame in _frames(container, stream, limits, found):
            last = frame.time
            if found["decoded"] >= HEAD:
                break
        else:
            _check_end(path, last, found)
            return
        try:
            _middle_and_tail(path, container, stream, limits, found)
        except av.FFmpegError:
            # Where a seek ends, frames may lack what they refer to (transport streams): damage is
            # what also fails from the beginning.
            container.seek(0)
            _straight_through(path, container, stream, limits, found)
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        detail = f"the decoder fails after {found['decoded']} frames ({reason(error)})"
        raise damage(path, detail) from error


def _straight_through(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    found: dict[str, Any],
) -> None:
    found["decoded"], last = 0, None
    for frame in _frames(container, stream, limits, found):
        last = frame.time
    _check_end(path, last, found)


def _middle_and_tail(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    found: dict[str, Any],
) -> None:
    seconds = found["seconds"]
    if not seconds:  # nobody knows where the middle is
        container.seek(0)
        _straight_through(path, container, stream, limits, found)
    else:
        begin = float((stream.start_time or 0) * stream.time_base)
        _decode_at(container, stream, begin + seconds / 2, limits, found)
        last = _decode_at(container, stream, begin + seconds, limits, found)
        _check_end(path, None if last is None else last - begin, found)


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    found: dict[str, Any],
) -> Iterator[av.VideoFrame]:
    for frame in container.decode(stream):
        _check_size(frame.width, frame.height, limits)  # which may change on the way
        found["decoded"] += 1
        found.setdefault("rotation", round(-frame.rotation) % 360)
        if found["decoded"] > limits.frames:
            raise RefusalError("too long", f"it has more than {limits.frames:,} frames")
        yield frame


def _decode_at(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    moment: float,
    limits: Limits,
    found: dict[str, Any],
) -> float | None:
    """Decodes from the key frame before a moment up to it; when the last frame is shown.

    None where that is not known: the search ended before, or there are no time stamps.
    """
    container.seek(int(moment / stream.time_base), stream=stream)
    last = None
    for number, frame in enumerate(_frames(container, stream, limits, found)):
        if frame.time is None or number >= FAR:
            return None
        last = frame.time if last is None else max(last, frame.time)
        if frame.time > moment:
            break
    return last


def _check_end(path: Path, last: float | None, found: dict[str, Any]) -> None:
    """Refuses a file without a frame, and one that ends much earlier than it says."""
    if not found["decoded"]:
        raise RefusalError("no frame", "it has a video stream without a frame")
    if size := promised(path):
        raise RefusalError("truncated", f"it has {found['bytes']:,} bytes of {size:,}")
    seconds = found["seconds"]
    slack = WITH_SOUND if found["audio_streams"] else ALONE
    if last is not None and seconds and seconds - last > max(slack, LACKS * seconds):
        raise RefusalError("truncated", f"its last frame is shown at {last:.1f} of {seconds:.1f} s")


def _picture(path: Path, limits: Limits, found: dict[str, Any]) -> None:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limits here are asked instead, and raise no warning
    try:
        with Image.open(path) as picture:
            _check_size(*picture.size, limits)
            picture.load()
            found |= {"width": picture.width, "height": picture.height, "frames": 1, "decoded": 1}
            found |= {"codec": str(picture.format).lower(), "container": "picture"}
    except (OSError, SyntaxError, ValueError) as error:
        raise RefusalError(
            "decode error", f"it is no picture that can be read ({error})"
        ) from error


def confine(limits: Limits) -> TextIO:
    """Limits this process's memory, and returns where its answers go."""
    # Libraries may print; the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    return answers


def _folder(path: Path, limits: Limits, found: dict[str, Any]) -> None:
    """All pictures of a folder of frames."""
    if not any(one.suffix.lower() in PICTURES for one in path.iterdir()):
        raise RefusalError("not video", "it is a folder without pictures")
    try:
        frames = numbered(path)
    except VideoError as error:
        raise RefusalError("decode error", str(error)) from error
    if len(frames) > limits.frames:
        raise RefusalError("too long", f"{len(frames):,} frames, allowed are {limits.frames:,}")
    sizes = set()
    for frame in frames:
        try:
            _check_file(frame, {})
            _picture(frame, limits, found)
        except RefusalError as refusal:
            raise RefusalError(refusal.kind, f"{frame.name}: {refusal.detail}") from refusal
        sizes.add((found["width"], found["height"]))
    if len(sizes) > 1:
        raise RefusalError("decode error", f"its frames have {len(sizes)} sizes")
    found |= {"container": "folder", "frames": len(frames), "decoded": len(frames)}


def main() -> None:
    """Answers each path, a JSON text a line on standard input, with a line of JSON."""
    limits = Limits(**json.loads(sys.argv[1]))
    answers = confine(limits)
    answers.write("{}\n")  # ready
    answers.flush()
    for line in sys.stdin:
        # Where the one who asked is dead, this ends the process, also inside a decoder.
        signal.alarm(int(limits.timeout) + 10)
        found = probe(Path(json.loads(line)), limits)
        signal.alarm(0)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
