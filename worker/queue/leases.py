"""Leases: the in-progress keys of this worker's jobs, kept alive by a thread.

A thread, not a task: a job that blocks the event loop with a long computation must not lose its lease. But a job
that hangs for ever must not keep it either, so the thread looks at the loop's pulse, and stops to renew when the
loop has not turned for `worker.blocked_loop_seconds`. A process that is killed or frozen renews nothing, and its
jobs are another worker's within `worker.lease_seconds`. Where this judges wrongly, the ledger's fence makes the
mistake harmless.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from worker.queue import keys
from worker.queue.scripts import script
from worker.settings import Settings
from worker.tasks import end

logger = logging.getLogger("worker.leases")

_PULSE_SECONDS = 0.5


class Leases:
    """The thread that renews, for the jobs that are added to it.

    Args:
        settings: for Redis, queue and the times.
        owner: value of the leases.
        on_lost: called in the event loop with the id of a job that another worker has.
        on_gone: called in the event loop with the id of a job that Redis does not know any more.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        *,
        on_lost: Callable[[str], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._on_lost = on_lost
        self._on_gone = on_gone
        self._held: dict[str, tuple[str, int]] = {}  # queue and due time of each
        self._lock = threading.Lock()
        self._stop = threading.Event()
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
        self._stop.set()
        if self._heart is not None:
            await end(self._heart)
        await asyncio.to_thread(self._thread.join)

    def add(self, run_id: str, queue: str, due_ms: int) -> None:
        """Renew the lease of a job from now on.

        Args:
            run_id: its id.
            queue: where it is.
            due_ms: when it is due again, which tells it from one that was put back meanwhile.
        """
        with self._lock:
            self._held[run_id] = (queue, due_ms)

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
        settings = self._settings
        connection = redis.Redis.from_url(
            settings.redis.url,
            socket_connect_timeout=settings.redis.connect_timeout_seconds,
            socket_timeout=min(settings.redis.command_timeout_seconds, settings.worker.lease_seconds / 3),
        )
        renew = connection.register_script(script("renew"))
        failing = False
        while not self._stop.wait(settings.worker.lease_seconds / 3):
            blocked = time.monotonic() - self._pulse
            if blocked > settings.worker.blocked_loop_seconds:
                logger.error("the event loop has been blocked for %.0f s: its jobs' leases are given up", blocked)
                continue
            with self._lock:
                held = dict(self._held)
            if not held:
                continue
            arguments: list[Any] = [
                self._owner,
                round(settings.worker.lease_seconds * 1000),
                keys.IN_PROGRESS,
                keys.RESULT,
            ]
            queues = sorted({queue for queue, _ in held.values()})
            for run_id, (queue, due_ms) in held.items():
                arguments += (run_id, queues.index(queue) + 1, due_ms)
            try:
                again, *answers = renew(keys=queues, args=arguments)
                failing = False
            except redis.RedisError as error:
                if not failing:
                    logger.warning("leases cannot be renewed: %s", error)
                failing = True
                continue
            for run_id, answer in zip(held, answers, strict=True):
                if answer == b"held":
                    with self._lock:
                        if self._held.get(run_id) == held[run_id]:
                            self._held[run_id] = (held[run_id][0], int(again))
                else:
                    self._tell(self._on_lost if answer == b"lost" else self._on_gone, run_id)
        connection.close()

    def _tell(self, hear: Callable[[str], None], run_id: str) -> None:
        if self.holds(run_id) and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hear, run_id)
