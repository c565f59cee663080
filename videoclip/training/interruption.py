"""Signals as a wish that a training run looks at after every step.

Ctrl-C ends a run with status 130. SIGTERM and SIGUSR1 are how schedulers ask for the machine; they
end it with status 75 (EX_TEMPFAIL of sysexits.h), which says: start me again, and I go on.
"""

import signal
import threading
import time
from types import FrameType, TracebackType

PAUSE = 3.0
"""Seconds in which a second signal is taken for the first one, passed on by a launcher."""
SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Inside this context the first signal only sets `asked`; a later one acts at once.

    In a thread other than the main one signals cannot be caught, and nothing changes.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that came."""
        self._at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SCHEDULER):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > PAUSE:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
