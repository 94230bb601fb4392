"""Leases: the in-progress keys of this worker's jobs, kept alive by a thread.

A thread, not a task: a job that blocks the event loop with a long computation must not lose its lease. But a job
that hangs for ever must not keep it either, so the thread looks at the loop's pulse, and stops to renew when the
loop has not turned for `worker.loop_block_tolerance_seconds`. A process that is killed or frozen renews nothing, and
its jobs are another worker's within `worker.lease_seconds`. Where this judges wrongly, the ledger's fence makes the
mistake harmless.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from worker.cancellation import cancel_and_wait
from worker.queue import keys
from worker.queue.connection import blocking_client
from worker.queue.outage_log import OutageLog
from worker.queue.scripts import script
from worker.settings import Settings

logger = logging.getLogger("longhaul.leases")

_PULSE_SECONDS = 0.5
#: Pause between two tries while Redis is away: who comes back late finds his jobs taken.
_AGAIN_SECONDS = 0.5
_RENEWING = "leases cannot be renewed"


class Leases:
    """The thread that renews, for the jobs that are added to it.

    Args:
        settings: for Redis, queue and the times.
        owner: value of the leases.
        on_lost: called in the event loop with the id of a job that another worker has.
        on_gone: called in the event loop with the id of a job that Redis does not know any more.
        outage: says that Redis is away.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        *,
        on_lost: Callable[[str], None],
        on_gone: Callable[[str], None],
        outage: OutageLog,
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._on_lost = on_lost
        self._on_gone = on_gone
        self._outage = outage
        self._held: dict[str, str] = {}  # the queue of each
        self._lock = threading.Lock()
        self._stopped = False
        self._now = threading.Event()
        self._renewed_at = time.monotonic()
        self._away = False
        self._pulse = time.monotonic()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="leases", daemon=True)
        self._heart: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread, and the task that shows it the loop's pulse."""
        self._loop = asyncio.get_running_loop()
        self._heart = self._loop.create_task(self._beat())
        self._thread.start()

    async def stop(self) -> None:
        """End both."""
        self._stopped = True
        self._now.set()
        if self._heart is not None:
            await cancel_and_wait(self._heart)
        await asyncio.to_thread(self._thread.join)

    def renew_now(self) -> None:
        """Do not wait for the next time: Redis was away."""
        self._now.set()

    def add(self, run_id: str, queue: str) -> None:
        """Renew the lease of a job from now on.

        Args:
            run_id: its id.
            queue: where it is.
        """
        with self._lock:
            self._held[run_id] = queue

    def holds(self, run_id: str) -> bool:
        """Whether the lease of a job is still renewed."""
        with self._lock:
            return run_id in self._held

    def remove(self, run_id: str) -> None:
        """Leave the lease of a job alone."""
        with self._lock:
            self._held.pop(run_id, None)

    async def _beat(self) -> None:
        while True:
            self._pulse = time.monotonic()
            await asyncio.sleep(_PULSE_SECONDS)

    def _renew_until_stopped(self) -> None:
        pause = self._settings.worker.lease_seconds / 3
        connection: Any = None
        renew: Any = None
        while True:
            self._now.wait(min(pause, _AGAIN_SECONDS) if self._away else pause)
            self._now.clear()
            if self._stopped:
                break
            blocked = time.monotonic() - self._pulse
            if blocked > self._settings.worker.loop_block_tolerance_seconds:
                logger.error("the event loop has been blocked for %.0f s: its jobs' leases are given up", blocked)
                continue
            with self._lock:
                held = dict(self._held)
            try:
                if held:
                    if connection is None:
                        timeout = min(self._settings.redis.command_timeout_seconds, pause)
                        connection = blocking_client(self._settings, command_timeout=timeout)
                        renew = connection.register_script(script("renew"))
                    self._renew(renew, held)
                self._outage.answered(_RENEWING)
            except (RedisError, OSError) as error:
                self._outage.failed(_RENEWING, error)
                if connection is not None:
                    connection.close()  # the next one may lead to another server
                connection = None
                self._away = True
                continue
            self._away, self._renewed_at = False, time.monotonic()
        if connection is not None:
            connection.close()

    def _renew(self, renew: Any, held: dict[str, str]) -> None:
        # Frozen, or the loop was blocked, and Redis was there all the time: what it does not know, others have ended.
        late = not self._away and time.monotonic() - self._renewed_at > self._settings.worker.lease_seconds
        arguments: list[Any] = [self._owner, round(self._settings.worker.lease_seconds * 1000)]
        arguments += (keys.IN_PROGRESS, keys.RESULT)
        queues = sorted(set(held.values()))
        for run_id, queue in held.items():
            arguments += (run_id, queues.index(queue) + 1)
        for run_id, answer in zip(held, renew(keys=queues, args=arguments), strict=True):
            if answer != b"held":
                self._tell(self._on_lost if answer == b"lost" or late else self._on_gone, run_id)

    def _tell(self, hear: Callable[[str], None], run_id: str) -> None:
        if self.holds(run_id) and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hear, run_id)
