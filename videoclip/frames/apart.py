"""Files that nobody vouched for are opened apart: in a process that costs nothing to lose.

`check` and `pack` write a line of JSON to it and read the answer; one that hangs is ended after
some time, and the next question starts another.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoclip.errors import VideoclipError

START, STARTS = 60.0, 3
"""Seconds that a new process may take until it is ready, and how often it is tried."""
TRIES = {"timeout": 2, "crash": 4}
"""How often a file is tried whose process may have been stopped or ended by somebody else."""
GLANCE = 0.2
"""Seconds after which it is looked whether the run was stopped."""


def run_module(module: str) -> tuple[str, ...]:
    """How a module is run apart. -P: what lies in the current folder is not imported."""
    return (sys.executable, "-P", "-m", module)


class Apart:
    """A process that opens files, started again whenever it was lost.

    It says `{}` when it is ready, and while it works as often as it likes; every other line is an
    answer, an object with `kind`.
    """

    def __init__(
        self,
        program: Sequence[str],
        settings: Mapping[str, Any],
        stop: threading.Event,
        *,
        timeout: float,
    ) -> None:
        self.command, self.stop, self.timeout = [*program, json.dumps(settings)], stop, timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.rest = b""

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, question: Any) -> dict[str, Any] | None:
        """The answer, its `kind` called `status`; None where the run was stopped.

        What hangs or crashes is asked again, and then is of the class timeout or crash. Raises
        VideoclipError where the process does not start.
        """
        answer = self._ask(question)
        tries = 1
        while answer and tries < TRIES.get(answer["status"], 1):
            answer, tries = self._ask(question), tries + 1
        return answer

    def _ask(self, question: Any) -> dict[str, Any] | None:
        process = self.process or self._start()
        assert process.stdin
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = self._line(self.timeout)
            while line == b"{}":
                line = self._line(self.timeout)
        except BrokenPipeError:
            line = b""
        if line:
            try:
                answer = json.loads(line)
                return {"status": answer.pop("kind"), **answer}
            except (ValueError, KeyError, AttributeError):
                pass  # cut off in the middle: it ended while it wrote
        if line is None and self.stop.is_set():
            return None
        if line is None:
            self._end()
            return {"status": "timeout", "detail": f"not done after {self.timeout:g} s"}
        code = process.wait()
        self._end()
        return {"status": "crash", "detail": f"the decoder ended {_ending(code)}"}

    def _start(self) -> subprocess.Popen[bytes]:
        search = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        for _ in range(STARTS):
            self.rest = b""
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))},
            )
            if self._line(START) or self.stop.is_set():
                return self.process
            self._end()
        raise VideoclipError(
            "the process that opens the files does not start; give it more memory (--memory), or "
            f"look what this says: {' '.join(self.command[:-1])} '{self.command[-1]}'"
        )

    def _line(self, seconds: float) -> bytes | None:
        """The next line; None where none came in time, b"" where the process has ended."""
        assert self.process
        assert self.process.stdout
        pipe = self.process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            if time.monotonic() > end or self.stop.is_set():
                return None
            if not select.select([pipe], [], [], GLANCE)[0]:
                continue
            data = os.read(pipe, 1 << 16)
            if not data:
                return b""
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return line

    def _end(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was still to be written to it does not matter any more


def _ending(code: int) -> str:
    if code < 0:
        return f"with {signal.Signals(-code).name}"
    return f"with status {code}"
