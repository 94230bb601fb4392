"""Supervises several worker processes: starts them, restarts them when they die, and drains them together.

Each process is `worker run` without `--processes`, in a session of its own, so that it receives a signal of the
terminal once, from the supervisor. On Linux, each process drains if the supervisor is killed.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

logger = logging.getLogger("longhaul.supervisor")

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
#: A process that ran for this long counts as healthy: the backoff starts again.
_WELL_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """Keeps worker processes running.

    Args:
        command: the command of each process; `{number}` in an argument is replaced by the number from 1.
        processes: the number of processes.
        hopeless: exit codes after which a restart would fail in the same way, e.g. for wrong settings.
        wait: waits for some seconds between two looks at the processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        hopeless: Sequence[int] = (),
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._command = command
        self._wait = wait
        self._hopeless = hopeless
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._due = dict.fromkeys(range(1, processes + 1), 0.0)
        self._pauses = dict.fromkeys(range(1, processes + 1), _FIRST_PAUSE_SECONDS)
        self._signals = 0
        self._code = 0

    def run(self) -> int:
        """Run until a signal, or until every process has ended without one. Return the exit code."""
        before = {signum: signal.signal(signum, self._pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self._running or (self._due and not self._signals):
                if not self._signals:
                    self._start_what_is_due()
                self._wait(_LOOK_SECONDS)
                self._look()
        finally:
            for process, _ in self._running.values():
                process.send_signal(signal.SIGTERM)
            for signum, handler in before.items():
                signal.signal(signum, handler)
        return self._code

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            command = [part.replace("{number}", str(number)) for part in self._command]
            process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)  # noqa: S603
            self._running[number] = (process, now)
            logger.info("process %d: started as %d", number, process.pid)

    def _look(self) -> None:
        for number, (process, started) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[number]
            if code == 0 or self._signals:
                logger.info("process %d: ended with %d", number, code)
                self._code = self._code or max(code, 0)
            elif code in self._hopeless:
                logger.error("process %d: ended with %d; a restart would fail in the same way: giving up", number, code)
                self._code = code
                self._due.clear()
                self._pass_on(signal.SIGTERM, None)
            else:
                lived = time.monotonic() - started
                pause = _FIRST_PAUSE_SECONDS if lived > _WELL_SECONDS else self._pauses[number]
                self._pauses[number] = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._due[number] = time.monotonic() + pause
                logger.warning("process %d: ended with %d after %.0f s; restart in %.0f s", number, code, lived, pause)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        for process, _ in self._running.values():
            process.send_signal(signum)


def _end_with_parent() -> None:
    """Request SIGTERM from Linux for the death of the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
