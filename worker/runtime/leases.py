"""Leases: the in-progress keys of this worker's jobs, kept alive by a thread.

It is a thread and not a task because a job that blocks the event loop with a long computation must not lose its lease.
A job that hangs for ever must not keep it either, so the thread looks at the loop's pulse, and renews nothing once the
loop has been blocked for `worker.loop_block_tolerance_seconds`. A process that is killed or frozen renews nothing, and
other workers claim its jobs within `worker.lease_seconds`. If this judgement is wrong, the ledger's fence makes the
mistake harmless.

A renewal is under way while the event loop goes on: what it finds out counts only for jobs that are still held as they
were when it was asked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from redis.exceptions import RedisError

from worker.cancellation import cancel_and_wait
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.connection import blocking_client
from worker.queue.outage_log import OutageLog
from worker.queue.scripts import script
from worker.settings import Settings

logger = logging.getLogger("longhaul.leases")

_PULSE_SECONDS = 0.5
#: Pause between two attempts while Redis is away: a worker that comes back late finds its jobs taken.
_RETRY_SECONDS = 0.5
_RENEWING = "leases cannot be renewed"

#: Called in the event loop with the id of a job.
Listener = Callable[[str], None]


class Leases:
    """The thread that renews, for the jobs that are added to it.

    Args:
        settings: for Redis, queue and the times.
        owner: value of the leases.
        outage: logs that Redis is away.
    """

    def __init__(self, settings: Settings, owner: str, outage: OutageLog) -> None:
        self._settings = settings
        self._rules = settings.worker
        self._owner = owner
        self._outage = outage
        self._held: dict[str, Claim] = {}
        #: What jobs hold beside their leases: kind and key of each mark, by run.
        self._marks: dict[str, list[tuple[str, str]]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._now = threading.Event()
        self._renewed_at = time.monotonic()
        self._away = False
        self._pulse = time.monotonic()
        self._thread: threading.Thread | None = None
        self._heart: asyncio.Task[None] | None = None

    def start(self, *, on_lost: Listener, on_gone: Listener) -> None:
        """Start the thread, and the task that shows it the loop's pulse.

        Args:
            on_lost: called in the event loop with the id of a job that another worker has.
            on_gone: called in the event loop with the id of a job that Redis does not know any more.
        """
        loop = asyncio.get_running_loop()
        self._pulse = time.monotonic()
        self._heart = loop.create_task(self._beat())

        def report(claim: Claim, *, lost: bool) -> None:
            """Report an answer, in the event loop: unless the job has ended, or is another attempt by now."""
            if self._held.get(claim.run_id) is claim:
                (on_lost if lost else on_gone)(claim.run_id)

        def tell(claim: Claim, lost: bool) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: report(claim, lost=lost))

        self._thread = threading.Thread(target=self._renew_until_stopped, args=(tell,), name="leases", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End both."""
        self._stopped = True
        self._now.set()
        if self._heart is not None:
            await cancel_and_wait(self._heart)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def renew_now(self) -> None:
        """Do not wait for the next time: Redis was away."""
        self._now.set()

    def add(self, claim: Claim) -> None:
        """Renew the lease of a job from now on."""
        with self._lock:
            self._held[claim.run_id] = claim
            self._marks.pop(claim.run_id, None)

    @property
    def count(self) -> int:
        """Number of jobs whose leases are renewed."""
        return len(self._held)

    def is_held(self, run_id: str) -> bool:
        """Tell whether the lease of a job is renewed."""
        with self._lock:
            return run_id in self._held

    def remove(self, run_id: str) -> None:
        """Renew the lease of a job no more."""
        with self._lock:
            self._held.pop(run_id, None)
            self._marks.pop(run_id, None)

    def keep(self, run_id: str, kind: Literal["place", "unique"], key: str) -> None:
        """Renew a mark of a job together with its lease, and put it back if Redis has lost it.

        Args:
            run_id: of the job.
            kind: a place under a limit, or the mark of a unique run.
            key: of the mark.
        """
        with self._lock:
            if run_id in self._held:
                self._marks.setdefault(run_id, []).append((kind, key))

    def forget(self, run_id: str) -> None:
        """Renew the marks of a job no more: it gives its place back."""
        with self._lock:
            self._marks.pop(run_id, None)

    async def _beat(self) -> None:
        while True:
            self._pulse = time.monotonic()
            await asyncio.sleep(_PULSE_SECONDS)

    # --- in the thread

    def _renew_until_stopped(self, tell: Callable[[Claim, bool], None]) -> None:
        pause = self._rules.lease_seconds / 3
        client: Any = None
        while True:
            self._now.wait(min(pause, _RETRY_SECONDS) if self._away else pause)
            self._now.clear()
            if self._stopped:
                break
            blocked = time.monotonic() - self._pulse
            if blocked > self._rules.loop_block_tolerance_seconds:
                logger.error("event loop blocked seconds=%.0f: the leases of its jobs are not renewed", blocked)
                continue
            with self._lock:
                held = list(self._held.values())
            try:
                if held:
                    if client is None:
                        timeout = min(self._settings.redis.command_timeout_seconds, pause)
                        client = blocking_client(self._settings, command_timeout=timeout)
                    self._renew(client, held, tell)
                self._outage.answered(_RENEWING)
            except (RedisError, OSError) as error:
                self._outage.failed(_RENEWING, error)
                if client is not None:
                    client.close()  # the next one may lead to another server
                client = None
                self._away = True
                continue
            self._away, self._renewed_at = False, time.monotonic()
        if client is not None:
            client.close()

    def _renew(self, client: Any, held: list[Claim], tell: Callable[[Claim, bool], None]) -> None:
        # Frozen, or the loop was blocked, and Redis was there all the time: jobs that it does not know were ended by
        # other workers.
        late = not self._away and time.monotonic() - self._renewed_at > self._rules.lease_seconds
        arguments: list[Any] = [self._owner, round(self._rules.lease_seconds * 1000)]
        arguments += (keys.IN_PROGRESS, keys.RESULT)
        queues = sorted({claim.queue for claim in held})
        for claim in held:
            arguments += (claim.run_id, queues.index(claim.queue) + 1)
        renew = client.register_script(script("renew"))
        for claim, answer in zip(held, renew(keys=queues, args=arguments), strict=True):
            if answer != b"held":
                tell(claim, answer == b"lost" or late)
        with self._lock:
            marks = [part for run_id, kept in self._marks.items() for mark in kept for part in (run_id, *mark)]
        if marks:
            client.register_script(script("keep_marks"))(args=[self._owner, keys.IN_PROGRESS, *marks])
