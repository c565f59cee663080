"""What is read before it is needed, by processes that are watched: who hangs or dies is replaced.

torch's DataLoader reads ahead too, but it raises where one of its processes dies from a signal
handler: in the middle of whatever is being done, such as one half of a step of training. Of a
process that hangs it can only say so. And what it hands over lies in /dev/shm, of which containers
have little. Here every process has a line of its own, a loss is found where an answer is waited
for, and an answer is a file in memory without a name: nothing but the memory itself limits it, and
it goes away with whoever holds it.

What is read does not depend on who reads it, so another process can read the same again.
"""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Protocol

import torch
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.frames.handover import packed, pinned, unpacked

DEPTH = 2
"""So many answers a process makes ahead."""
STUCK, STARTING = 300.0, 120.0
"""Seconds that a process may take for one sample, and at least until it begins to read."""
TRIES = 3
"""So often a sample is read whose process is lost, before it counts as one that cannot be read."""
LOSSES = 10
"""So many processes one answer may cost in all."""
GLANCE = 1.0
"""Seconds between two looks at who is waited for."""
LONGEST = 4096
"""Bytes of a sample's name."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C and a scheduler's signals reach readers too; who trains then ends them in order."""


class Reader(Protocol):
    """What stands under a number."""

    def read(self, number: Any, tell: Callable[[str], None], refused: Mapping[str, str]) -> Any:
        """Reads it; tells the name of each sample before that is read.

        The samples in `refused` are not read, because of what stands there: processes that read
        them were lost.
        """


class ReadAhead:
    """Processes that read, from the first call until `close` or the end of the program."""

    def __init__(
        self,
        reader: Reader,
        workers: int,
        *,
        stuck_seconds: float = STUCK,
        context: BaseContext | None = None,
    ) -> None:
        """Without workers the calling process reads, and nobody watches it."""
        self.reader, self.workers, self.stuck_seconds = reader, workers, stuck_seconds
        self.context = context or multiprocessing.get_context()
        self.refused: dict[str, str] = {}
        self.lines: list[_Line] = []
        self.owner = os.getpid()
        _OPEN.add(self)

    def __call__(self, numbers: Iterable[Any]) -> Iterator[Any]:
        """What the reader has under these numbers, in their order; on a GPU in pinned memory.

        A process that is busy with one sample for `stuck_seconds` or that dies is ended and
        replaced, and a line says so. Raises VideoclipError where that does not help, and what the
        reader raises.
        """
        if not self.workers:
            return (self.reader.read(number, _to_nobody, {}) for number in numbers)
        return self._read(numbers)

    def close(self) -> None:
        """Ends the processes."""
        if os.getpid() == self.owner:  # and not one of them, which has a copy of this
            for line in self.lines:
                line.end()
        self.lines = []

    def __del__(self) -> None:
        self.close()

    def _read(self, numbers: Iterable[Any]) -> Iterator[Any]:
        if not self.lines:
            self.lines = [_Line(self.reader, self.context, n) for n in range(self.workers)]
        rest, order = iter(numbers), deque[_Line]()
        opened = deque[Future]()

        def ask(line: _Line) -> None:
            for number in itertools.islice(rest, 1):
                line.ask(number, self.refused)
                order.append(line)

        try:
            with ThreadPoolExecutor(1) as pool:
                for line in self.lines * DEPTH:
                    ask(line)
                while order or opened:
                    # While one is trained on the next one is brought into pinned memory.
                    while order and (not opened or (len(opened) < 2 and order[0].pipe.poll())):
                        line = order.popleft()
                        opened.append(pool.submit(_opened, self._answer(line)))
                        ask(line)
                    yield opened.popleft().result()
        finally:
            if any(line.asked for line in self.lines):
                self.close()  # nobody waits for their answers any more

    def _answer(self, line: "_Line") -> int:
        """The next answer of a process or of those that replace it."""
        lost: Counter[str] = Counter()
        while isinstance(found := line.answer(self.stuck_seconds), str):
            name = line.doing
            lost[name] += 1
            said = f"{line.name} {found}" + (f" while it read {name}" if name else "")
            if name and lost[name] == TRIES:
                self.refused[name] = f"{TRIES} processes were lost that read it, at last: {said}"
            elif lost.total() >= LOSSES or lost[""] == TRIES:
                self.close()
                raise VideoclipError(
                    f"{said}, as others before it; where memory is short, fewer --data.workers or "
                    "a smaller batch help, where a disk is slow, more --run.stuck-seconds"
                )
            tqdm.write(f"{said}; another one reads the batch again", file=sys.stderr)
            line.restart(self.refused)
        return found


_OPEN: "weakref.WeakSet[ReadAhead]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Readers ignore signals: a program that ends with an error would wait for them forever.

    What is registered last is called first, so this comes before multiprocessing's own wait.
    """
    for one in list(_OPEN):
        one.close()


class _Line:
    """A process that reads, and the line to it."""

    def __init__(self, reader: Reader, context: BaseContext, place: int) -> None:
        self.reader, self.context, self.place = reader, context, place
        self.asked: deque[Any] = deque()
        """The numbers whose answers have not come yet."""
        self._start()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"reader {self.place} (process {self.process.pid})"

    @property
    def doing(self) -> str:
        """The sample that it reads."""
        return self.told.value[1:].decode(errors="replace")

    def ask(self, number: Any, refused: Mapping[str, str]) -> None:
        """Gives it one more number to read."""
        self.asked.append(number)
        self._send(number, refused)

    def answer(self, seconds: float) -> int | str:
        """An answer as a file in memory; or what has become of the process."""
        before, since = self.told.value, time.monotonic()
        glance = min(GLANCE, seconds / 4)
        while True:
            if wait([self.pipe, self.process.sentinel], glance):
                with contextlib.suppress(EOFError, ConnectionError):
                    if self.pipe.poll():
                        handle = recv_handle(self.pipe)
                        self.asked.popleft()
                        return handle
                self.process.join(GLANCE)
                return f"has ended {_ending(self.process.exitcode)}"
            if self.told.value != before:
                before, since = self.told.value, time.monotonic()
            if time.monotonic() - since > (seconds if before else max(seconds, STARTING)):
                return f"has been stuck for {seconds:g} s"

    def restart(self, refused: Mapping[str, str]) -> None:
        """Another process, which is asked the same."""
        self.end()
        self._start()
        for number in self.asked:
            self._send(number, refused)

    def end(self) -> None:
        """Ends the process, whatever it does: it holds nothing that others need."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _start(self) -> None:
        self.told = self.context.RawArray("c", LONGEST)
        self.pipe, end = self.context.Pipe()
        arguments = (self.reader, end, self.told)
        self.process = self.context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        end.close()  # now it is the process alone that holds its end

    def _send(self, number: Any, refused: Mapping[str, str]) -> None:
        with contextlib.suppress(ConnectionError):  # found where its answer is waited for
            self.pipe.send((number, refused))


def _work(reader: Reader, pipe: Connection, told: Any) -> None:
    """What a process does until it is ended, or the one that started it is no more."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)

    def tell(name: str) -> None:
        told.value = b">" + name.encode(errors="backslashreplace")[: LONGEST - 2]

    while True:
        tell("")
        try:
            number, refused = pipe.recv()
            handle = _outcome(partial(reader.read, number, tell, refused))
            send_handle(pipe, handle, None)
            os.close(handle)
        except (EOFError, ConnectionError):
            return


def _end_with_parent() -> None:
    """Ends this process, also while it hangs, when the one that started it is no more.

    Or when the server is no more that has started it for the other one, and that ends with it.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(GLANCE)
    os._exit(1)


def _outcome(read: Callable[[], Any]) -> int:
    """A file that says whether something could be read, and what was read or the error."""
    try:
        return packed((True, read()))
    except VideoclipError as error:
        return packed((False, error))
    except Exception:
        return packed((False, RuntimeError(f"a reader failed:\n{traceback.format_exc()}")))


def _opened(handle: int) -> Any:
    is_read, value = unpacked(handle)
    if not is_read:
        raise value
    return pinned(value) if torch.cuda.is_available() else value


def _to_nobody(name: str) -> None:
    pass


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"with {name}" + (" (often memory is short)" if name == "SIGKILL" else "")
    return f"with status {code}"
