"""Packets -> which of them must be decoded for a frame; nothing is decoded to know it.

A container says of each packet when it is shown and whether decoding can begin there. Not all of
that can be believed, so the packets' own first bits are looked at too. Where anything remains in
doubt there is no plan, and the file is decoded from its beginning on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np

from videoclip.errors import VideoError
from videoclip.frames.container import Source, reason

PLANNED = {
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "gif",
}  # fmt: skip
"""Codecs of which a packet is a frame, and which were compared with a full decode."""
SKIPPED = {"h264", "hevc", "vp8", "mpeg4", "mpeg1video", "mpeg2video"}
"""Codecs whose decoder leaves out a frame that no other refers to, and nothing else."""
FORGETTING = {"vp8", "vp9", "av1", "mjpeg"}
"""Codecs of which every key frame makes the decoder forget what was before."""
VAGUE = ("mpeg", "mpegvideo", "ogg", "asf")
"""Containers in which a packet has another time stamp after a jump than without one, or none."""
IDR, MESSAGES, RECOVERY = 5, 6, 6
"""In H.264, the kind of the unit of a picture that nothing before it matters for; that of units
with messages; and the kind of message that says that decoding can begin."""


class Plan(NamedTuple):
    """The packets of a video, in the order in which they are decoded."""

    stamps: np.ndarray
    """(P,) int64: when each is shown, in the stream's unit; no two are alike."""
    keys: np.ndarray
    """(K,) which of them decoding can begin with; the first packet is always one."""
    closed: np.ndarray
    """Those of the keys before which everything is forgotten; the first packet is always one."""
    shown: np.ndarray
    """(F,) which of them is each frame, in the order in which frames are shown."""
    skips: bool
    """Whether the decoder may leave out frames that no other refers to."""
    all_closed: bool
    """Whether all that the container calls key frames make the decoder forget what was before."""

    def start(self, packet: int) -> int:
        """Which packet decoding has to begin with, so that this one comes out right.

        Of an open group of pictures the first ones shown come after the key frame in the file and
        refer to what is before it: they need the key frame before.
        """
        before = self.keys[: np.searchsorted(self.keys, packet, side="right")]
        return int(before[self.stamps[before] <= self.stamps[packet]][-1])

    def closed_start(self, key: int) -> int:
        """The last one up to a key frame that nothing before it matters for."""
        return int(self.closed[np.searchsorted(self.closed, key, side="right") - 1])


def plan(source: Source) -> Plan | None:
    """Reads all packets; None where they do not say exactly which frames there are.

    Raises VideoError where the file cannot be read to its end.
    """
    if source.codec not in PLANNED or source.format in VAGUE:
        return None
    looks = _Looks(source)
    stamps: list[int | None] = []
    keys, closed, hidden, called = [], [0], [], 0
    for packet in _packets(source):
        if packet.is_keyframe:
            called += 1
            begins, forgets = looks.begins(packet)
            if begins or not stamps:
                keys.append(len(stamps))
            if forgets and stamps:
                closed.append(len(stamps))
        if packet.is_discard or looks.unseen(packet):
            hidden.append(len(stamps))
        stamps.append(packet.pts)
        if packet.is_corrupt or looks.odd(packet):
            return None
    if keys[:1] != [0] or None in stamps or len(set(stamps)) < len(stamps):
        return None
    times = np.array(stamps, dtype=np.int64)
    visible = np.delete(np.arange(len(times)), hidden)
    # Frames before the first key frame: whether they come out is the decoder's secret.
    if (times[visible] < times[0]).any():
        return None
    shown = visible[np.argsort(times[visible])]
    skips = source.codec in SKIPPED and not looks.layered
    return Plan(times, np.array(keys), np.array(closed), shown, skips, len(closed) == called)


def _packets(source: Source) -> Iterator[av.Packet]:
    count = 0
    try:
        for packet in source.container.demux(source.stream):
            if packet.size:
                yield packet
                count += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{source.path} is damaged after packet {count} ({reason(error)}); fetch it again or "
            "remove it"
        ) from error


class _Looks:
    """What the first bits of packets say, for the codecs whose container does not say it all."""

    def __init__(self, source: Source) -> None:
        self.codec, self.avi = source.codec, source.format == "avi"
        self.layered = False
        """Whether there are temporal layers: a frame may serve others of a higher one alone."""
        extra = bytes(source.stream.codec_context.extradata or b"")
        # The two forms of H.264 and HEVC: with the length before each unit, or a start code.
        place = {"h264": 4, "hevc": 21}.get(self.codec, 0)
        self.width = (extra[place] & 3) + 1 if extra[:1] == b"\1" and len(extra) > place else 0
        # AVI has no time stamps: those that FFmpeg makes hold where the order is that of the file.
        self.reordered = self.avi and bool(source.stream.codec_context.has_b_frames)

    def begins(self, packet: av.Packet) -> tuple[bool, bool]:
        """Of a packet that the container calls a key frame: whether decoding can begin with it.

        And whether it makes the decoder forget all frames before it.
        """
        units = [*self._units(memoryview(packet))] if self.codec in ("h264", "hevc") else []
        if self.codec == "h264":
            forgets = any(kind & 31 == IDR for kind, _ in units)
            # The message: its kind, its size, and as first bit 1 for "at once".
            recovers = any(
                kind & 31 == MESSAGES and after[0] == RECOVERY and after[2] & 128
                for kind, after in units
                if len(after) > 2
            )
            return forgets or recovers, forgets
        if self.codec == "hevc":
            kinds = [kind >> 1 & 63 for kind, _ in units]
            return any(16 <= kind <= 21 for kind in kinds), any(kind in (19, 20) for kind in kinds)
        return True, self.codec in FORGETTING

    def unseen(self, packet: av.Packet) -> bool:
        """Whether a packet is decoded and never shown."""
        if self.codec == "vp8":
            return not memoryview(packet)[0] >> 4 & 1
        if self.codec == "vp9":
            data = memoryview(packet)
            first, wide = data[0], data[0] & 0x30 == 0x30  # the fourth profile has a bit more
            one = data[-1] & 0xE0 != 0xC0  # else several frames, the last of which is shown
            again = first >> (2 if wide else 3) & 1
            return one and not again and not first >> (0 if wide else 1) & 1
        return False

    def odd(self, packet: av.Packet) -> bool:
        """Whether a packet is not one frame, or is shown at another moment than it says."""
        if self.codec == "hevc" and not self.layered:
            units = self._units(memoryview(packet))
            self.layered = any(after and after[0] & 7 > 1 for _, after in units)
        if self.codec != "mpeg4":
            return self.reordered
        data = bytes(packet)
        first = data.find(b"\0\0\1\xb6")
        if first < 0 or first + 5 > len(data):
            return True
        # Two frames in one packet, as DivX writes, or none, in a packet of a few bytes.
        packed = data.find(b"\0\0\1\xb6", first + 4) >= 0 or len(data) - first < 12
        return packed or (self.avi and data[first + 4] >> 6 == 2)

    def _units(self, data: memoryview) -> Iterator[tuple[int, bytes]]:
        """The first byte of each NAL unit, and the next few."""
        place = 0
        while place + 4 < len(data):
            if self.width:
                length = int.from_bytes(data[place : place + self.width])
                place += self.width
            else:
                begin = bytes(data[place : place + 4096]).find(b"\0\0\1")
                if begin < 0:
                    return
                place, length = place + begin + 3, 1
            if place >= len(data):
                return
            yield data[place], bytes(data[place + 1 : place + 5])
            place += length
