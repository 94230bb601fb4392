"""Reports to a service manager such as systemd: ready, alive, stopping (the protocol of `sd_notify`).

The manager names a datagram socket in the environment, and the time within which it must hear from the process. The
reports come from the event loop, so that a loop that no longer turns is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from worker.cancellation import cancel_and_wait
from worker.runtime.worker import Worker

logger = logging.getLogger("longhaul.worker")

#: Longest pause between two reports, in seconds: a drain is reported after it.
_LONGEST_PAUSE_SECONDS = 1.0
_REPORTS_IN_TIME = 3


class ServiceManager:
    """The service manager of this process.

    Args:
        address: path of its socket; one that begins with `@` is in Linux's abstract namespace. Without it, reports go
            nowhere.
        watchdog_seconds: time within which it must hear from the process; None for no limit.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self._watchdog_seconds = watchdog_seconds
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Return the service manager that the environment names, and remove it from there.

        Processes that this one starts must not report in its place.
        """
        address, microseconds, pid = (
            environment.pop(name, None) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        is_watched = microseconds is not None and microseconds.isdecimal() and pid in (None, str(os.getpid()))
        return cls(address or None, int(microseconds or 0) / 1e6 if is_watched else None)

    @property
    def pause_seconds(self) -> float:
        """Pause between two reports, in seconds."""
        if not self._watchdog_seconds:
            return _LONGEST_PAUSE_SECONDS
        return min(self._watchdog_seconds / _REPORTS_IN_TIME, _LONGEST_PAUSE_SECONDS)

    def report(self, text: str) -> None:
        """Send a report, e.g. `READY=1`. A manager that does not receive it is not waited for."""
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError as error:
            logger.warning("service manager not reached report=%s error=%s", text.partition("\n")[0], error)

    def start(self, worker: Worker) -> None:
        """Report the states of a worker until `stop`. A worker whose leases are not renewed does not count as alive."""
        if self._address is not None:
            self._task = asyncio.create_task(self._follow(worker), name="service manager")

    async def stop(self) -> None:
        """End the reports, and report that the process stops."""
        if self._task is not None:
            await cancel_and_wait(self._task)
            self._report_stopping()

    def _report_stopping(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self.report("STOPPING=1\nSTATUS=draining")

    async def _follow(self, worker: Worker) -> None:
        await worker.ready.wait()
        self.report(f"READY=1\nSTATUS=worker {worker.name} runs jobs")
        while True:
            if worker.is_draining:
                self._report_stopping()
            if worker.lease_stall is None:
                self.report("WATCHDOG=1")
            await asyncio.sleep(self.pause_seconds)

    def while_supervising(self, wait: Callable[[float], None] = time.sleep) -> Callable[[float], None]:
        """Return a function that waits as `wait` does, and reports this process as ready and alive."""
        next_at = 0.0
        self.report("READY=1\nSTATUS=supervises worker processes")

        def wait_and_report(seconds: float) -> None:
            nonlocal next_at
            wait(seconds)
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + self.pause_seconds
                self.report("WATCHDOG=1")

        return wait_and_report
