"""File -> the frames asked for, and as little else as possible is decoded.

From the packets a plan is made (`plan.py`). The asked frames are grouped by the key frame before
them; for each group the file is wound there, and decoded up to the last one asked for. Frames that
no other refers to, half of a usual file, are left out by the decoder unless somebody asked.
"""

import itertools
from collections.abc import Iterator, Sequence

import av
import numpy as np

from videoclip.frames.container import Source
from videoclip.frames.plan import Plan
from videoclip.frames.whole import Painter, read_whole, scaled_size

NEAR = 12
"""Packets that are rather read over than wound over."""


class Planned:
    """The reader of all files that have a plan."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self.source, self.plan = source, plan
        self.rate = source.rate
        shown = plan.stamps[plan.shown]
        self.timestamps = (shown - shown[:1]) * float(source.stream.time_base)
        self.place = {stamp: packet for packet, stamp in enumerate(plan.stamps.tolist())}
        self.reached = len(plan.stamps)
        """The packet that the container gives next."""

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> np.ndarray:
        """The frames at these indices, exact; or scaled to a short side, which is faster."""
        packets = self.plan.shown[np.asarray(indices, dtype=np.intp)]
        context = self.source.stream.codec_context
        painter, found = Painter(short_side), {}
        painter.size = scaled_size(context.width, context.height, short_side)
        for start, wanted in self._groups(np.unique(packets)):
            # Some open groups of pictures say what to do with frames that are not there, which is
            # an error to the strict decoder; not so from a key frame on that forgets all others.
            for begin in dict.fromkeys((start, self.plan.closed_start(start))):
                if not wanted <= found.keys():
                    self._find(begin, wanted, painter, found)
            if not wanted <= found.keys():  # damage is what also fails when everything is decoded
                return read_whole(self.source.path, indices, short_side)
        return np.stack([found[packet] for packet in packets])

    def _find(
        self, start: int, wanted: set[int], painter: Painter, found: dict[int, np.ndarray]
    ) -> None:
        """Adds those of the wanted frames that come out of the decoder without an error."""
        try:
            for frame in self._decode(start, wanted):
                packet = self.place.get(frame.pts, -1)
                if packet in wanted and not frame.is_corrupt:
                    found[packet] = painter.paint(frame)
        except (av.FFmpegError, OSError, LookupError):
            self.reached = len(self.plan.stamps)  # to be wound before anything else

    def _groups(self, packets: np.ndarray) -> list[tuple[int, set[int]]]:
        """Where decoding begins, and which packets are wanted from there on."""
        groups: list[tuple[int, set[int]]] = []
        for packet in packets.tolist():
            start = self.plan.start(packet)
            if groups and start <= max(groups[-1][1]):
                before, wanted = groups.pop()
                groups.append((min(before, start), wanted | {packet}))
            else:
                groups.append((start, {packet}))
        return groups

    def _decode(self, start: int, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """The frames of a group, among others, in any order."""
        context, last = self.source.stream.codec_context, max(wanted)
        begins = self.plan.stamps[start]
        for number, packet in self._packets_from(start):
            if number > start and packet.pts < begins and number not in wanted:
                continue  # what is shown before the key frame refers to what was not decoded
            whole = number in wanted or not self.plan.skips
            context.skip_frame = "DEFAULT" if whole else "NONREF"
            yield from context.decode(packet)
            if number == last:
                break
        yield from context.decode(None)  # what the decoder holds back
        context.flush_buffers()

    def _packets_from(self, start: int) -> Iterator[tuple[int, av.Packet]]:
        """The packets from one on, with their numbers. Raises LookupError where it is not found."""
        near = 0 <= start - self.reached <= NEAR
        for number, packet in self._next_packets() if near else self._wound(start):
            if near and number != self.reached:
                raise LookupError(f"packet {number} comes after packet {self.reached - 1}")
            near, self.reached = True, number + 1
            if number >= start:
                yield number, packet

    def _wound(self, start: int) -> Iterator[tuple[int, av.Packet]]:
        """The packets from one on, or from one before it."""
        second = round(1 / self.source.stream.time_base)
        for back in range(4):  # a container may find a later one than is asked for
            moment = int(self.plan.stamps[start]) - back * back * second
            self.source.container.seek(moment, stream=self.source.stream)
            packets = self._next_packets()
            first = next(packets, None)
            if first and first[0] <= start:
                return itertools.chain([first], packets)
        raise LookupError(f"packet {start} is not found again")

    def _next_packets(self) -> Iterator[tuple[int, av.Packet]]:
        for packet in self.source.container.demux(self.source.stream):
            if packet.size:
                yield self.place[packet.pts], packet
