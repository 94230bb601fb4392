"""Leases: the in-progress keys of this worker's jobs, kept alive by a thread.

A thread renews them, and not a task, because a job that blocks the event loop with a long computation must not lose its
lease. A job that hangs forever must not keep its lease, so the thread checks the loop's heartbeat and stops renewing
once the loop has been blocked for `worker.loop_block_tolerance_seconds`. A process that is killed or frozen renews
nothing, and other workers claim its jobs within `worker.lease_seconds`. If the first worker still runs such a job, the
ledger's fence rejects its writes.

The same thread logs a loop that has been blocked for a second, with the stack of the code that blocks it.

The event loop runs during a renewal, so a job may end or be claimed again before the answer arrives. The answer applies
only if the lease is still the one that was renewed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from redis import Redis
from redis.exceptions import RedisError

from worker.cancellation import cancel_and_wait
from worker.queue import keys
from worker.queue.blocking import blocking_pool
from worker.queue.claims import Claim
from worker.queue.outage_log import OutageLog
from worker.queue.scripts import script
from worker.settings import Settings

logger = logging.getLogger("longhaul.leases")

_PULSE_SECONDS = 0.25
#: Pause between two renewals during an outage of Redis: a worker that renews late loses its jobs to others.
_RETRY_SECONDS = 0.5
_RENEWING = "leases cannot be renewed"
#: A loop that is blocked for this long is logged.
_BLOCKED_SECONDS = 1.0
_WATCH_SECONDS = 0.25
#: Shortest time between two such lines, and between two with the same stack: a job may block the loop repeatedly.
_LOG_NEXT_SECONDS, _LOG_SAME_SECONDS = 5.0, 60.0
_MOST_STACKS = 100
#: Most runs that a line names.
_NAMED_RUNS = 5


class BlockedLoopLog:
    """Logs an event loop that does not respond, with the stack of its thread.

    Args:
        thread_id: identifier of the thread that runs the loop.
    """

    def __init__(self, thread_id: int) -> None:
        self._thread_id = thread_id
        self._checked_at, self._cpu = time.monotonic(), time.process_time()
        self._logged_at = -_LOG_NEXT_SECONDS
        #: When each stack was last logged.
        self._stacks: dict[str, float] = {}
        #: The heartbeat before the block that was handled last.
        self._handled: float | None = None
        self._omitted = 0

    def check(self, pulse: float, running: str = "") -> None:
        """Log the loop if its last heartbeat is too old, once for each block.

        Args:
            pulse: the monotonic time of the last heartbeat.
            running: the running jobs.
        """
        now, cpu = time.monotonic(), time.process_time()
        since, used = now - self._checked_at, cpu - self._cpu
        self._checked_at, self._cpu = now, cpu
        # If this thread was late as well, the process was frozen, unless it computed: then code held the interpreter.
        was_frozen = since > _BLOCKED_SECONDS and used < since / 2
        if now - pulse < _BLOCKED_SECONDS or was_frozen or pulse == self._handled:
            return
        self._handled = pulse
        stack = format_thread_stack(self._thread_id)
        is_repeated = now - self._stacks.get(stack, -_LOG_SAME_SECONDS) < _LOG_SAME_SECONDS
        if is_repeated or now - self._logged_at < _LOG_NEXT_SECONDS:
            self._omitted += 1
            return
        if len(self._stacks) >= _MOST_STACKS:
            self._stacks.clear()
        self._stacks[stack] = self._logged_at = now
        text = (
            "event loop blocked seconds=%.1f running=%s omitted=%d: a job calls code that does not await; use a plain "
            "`def` job, or asyncio.to_thread. Stack of the loop's thread:\n%s"
        )
        logger.warning(text, now - pulse, running or "nothing", self._omitted, stack)
        self._omitted = 0


def format_thread_stack(thread_id: int) -> str:
    """Return the stack of another thread, the innermost call last."""
    frame = sys._current_frames().get(thread_id)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "(the thread has ended)"


#: Called in the event loop with the id of a job.
Listener = Callable[[str], None]


class Leases:
    """Renews, in a thread, the leases of the jobs that are added to it.

    Args:
        settings: the settings of Redis, the queue, and the intervals.
        owner: the value of the lease keys.
        outage: logs outages of Redis.
    """

    def __init__(self, settings: Settings, owner: str, outage: OutageLog) -> None:
        self._settings = settings
        self._rules = settings.worker
        self._owner = owner
        self._outage = outage
        self._held: dict[str, Claim] = {}
        #: Marks that jobs hold in addition to their leases: kind, key, and number of the claim, by run.
        self._marks: dict[str, list[tuple[str, str, int]]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._now = threading.Event()
        self._renewed_at = self._looked_at = time.monotonic()
        self._away = False
        self._pulse = time.monotonic()
        self._thread: threading.Thread | None = None
        self._heart: asyncio.Task[None] | None = None

    def start(self, *, on_lost: Listener, on_gone: Listener) -> None:
        """Start the thread, and the task that updates the loop's heartbeat.

        Args:
            on_lost: called in the event loop with the id of a job that another worker has claimed.
            on_gone: called in the event loop with the id of a job that Redis no longer has.
        """
        loop = asyncio.get_running_loop()
        self._pulse = time.monotonic()
        self._heart = loop.create_task(self._beat())

        def report(claim: Claim, *, lost: bool) -> None:
            """Report an answer in the event loop, unless the job has ended or another attempt of it runs."""
            if self._held.get(claim.run_id) is claim:
                (on_lost if lost else on_gone)(claim.run_id)

        def tell(claim: Claim, lost: bool) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: report(claim, lost=lost))

        blocked_log = BlockedLoopLog(threading.get_ident())
        self._thread = threading.Thread(
            target=self._renew_until_stopped, args=(tell, blocked_log), name="leases", daemon=True
        )
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
        """Renew at once, for example after an outage of Redis."""
        self._now.set()

    def add(self, claim: Claim) -> None:
        """Start to renew the lease of a job."""
        with self._lock:
            self._held[claim.run_id] = claim
            self._marks.pop(claim.run_id, None)

    @property
    def count(self) -> int:
        """Number of jobs whose leases are renewed."""
        return len(self._held)

    def is_held(self, run_id: str) -> bool:
        """Return whether the lease of a job is renewed."""
        with self._lock:
            return run_id in self._held

    def is_replaced(self, claim: Claim) -> bool:
        """Return whether this worker has lost a job since this claim of it, and has claimed it again."""
        held = self._held.get(claim.run_id)
        return held is not None and held.number != claim.number

    def remove(self, claim: Claim) -> bool:
        """Stop renewing the lease of a job. Return False, and do nothing, if this worker has claimed it again."""
        held = self._held.get(claim.run_id)  # only the loop's thread, in which this runs, adds and removes
        if held is None:
            return True
        if held.number != claim.number:
            return False
        with self._lock:
            del self._held[claim.run_id]
            self._marks.pop(claim.run_id, None)
        return True

    def keep(self, claim: Claim, kind: Literal["place", "unique"], key: str) -> None:
        """Renew a mark of a job together with its lease, and restore it if Redis has lost it.

        Args:
            claim: the job.
            kind: a place under a limit, or the mark of a unique run.
            key: key of the mark.
        """
        with self._lock:
            if claim.run_id in self._held and not self.is_replaced(claim):
                self._marks.setdefault(claim.run_id, []).append((kind, key, claim.number))

    def forget(self, claim: Claim) -> None:
        """Stop renewing the marks of a job, because it releases its place."""
        with self._lock:
            if not self.is_replaced(claim):
                self._marks.pop(claim.run_id, None)

    @property
    def stall(self) -> str | None:
        """Why the leases may expire although this process runs; None if they are renewed.

        An outage of Redis is no stall: the thread retries, and a new process could not renew them either.
        """
        if self._thread is None or self._stopped:
            return None
        if not self._thread.is_alive():
            return "the thread that renews leases has ended"
        silent = time.monotonic() - self._looked_at
        return f"leases were not renewed for {silent:.0f} s" if silent > self.stall_seconds else None

    @property
    def stall_seconds(self) -> float:
        """Time without an attempt to renew leases that counts as a stall; longer than an attempt can take."""
        return 2 * self._rules.lease_seconds + self._settings.redis.connect_timeout_seconds

    async def _beat(self) -> None:
        while True:
            self._pulse = time.monotonic()
            await asyncio.sleep(_PULSE_SECONDS)

    # --- in the thread

    def _wait(self, seconds: float, blocked_log: BlockedLoopLog) -> None:
        """Wait until the next renewal, and check the event loop meanwhile."""
        ends_at = time.monotonic() + seconds
        while (remaining := ends_at - time.monotonic()) > 0 and not self._now.wait(min(remaining, _WATCH_SECONDS)):
            blocked_log.check(self._pulse, self._describe_running())
        self._now.clear()

    def _describe_running(self) -> str:
        with self._lock:
            held = list(self._held)
        return ",".join(held) if len(held) <= _NAMED_RUNS else f"{len(held)} runs"

    def _renew_until_stopped(self, tell: Callable[[Claim, bool], None], blocked_log: BlockedLoopLog) -> None:
        pause = self._rules.lease_seconds / 3
        client: Any = None
        while True:
            self._wait(min(pause, _RETRY_SECONDS) if self._away else pause, blocked_log)
            self._looked_at = time.monotonic()
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
                        client = Redis.from_pool(blocking_pool(self._settings, command_timeout=timeout))
                    self._renew(client, held, tell)
                self._outage.answered(_RENEWING)
            except (RedisError, OSError) as error:
                self._outage.failed(_RENEWING, error)
                if client is not None:
                    client.close()  # the next client may reach another server after a failover
                client = None
                self._away = True
                continue
            self._away, self._renewed_at = False, time.monotonic()
        if client is not None:
            client.close()

    def _renew(self, client: Any, held: list[Claim], tell: Callable[[Claim, bool], None]) -> None:
        # If this process was frozen, or its loop blocked, while Redis was available, other workers have ended the jobs
        # that Redis no longer has.
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
            first = f"{keys.IN_PROGRESS}{marks[0]}"
            client.register_script(script("keep_marks"))(keys=[first], args=[self._owner, keys.IN_PROGRESS, *marks])
