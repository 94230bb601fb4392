"""The worker process, from the first claim to the last acknowledgement of a drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from signal import Signals

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.attempt.offload import JobPools
from worker.db.engine import Database
from worker.queue import keys
from worker.queue.invalidations import InvalidationListener
from worker.queue.store import QueueStore
from worker.runtime.execution import Execution
from worker.runtime.executor import JobExecutor
from worker.runtime.fetcher import Fetcher
from worker.runtime.health import Counters, HealthRecorder
from worker.runtime.job_completer import JobCompleter
from worker.runtime.leases import Leases
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.runtime.periodic_tasks import PeriodicTasks
from worker.runtime.relay import Relay
from worker.runtime.running_jobs import RunningJobs
from worker.runtime.scheduler import Scheduler
from worker.runtime.server_retry import WorkerState
from worker.runtime.supervision import end_tasks, finish_steps, supervise
from worker.runtime.unparker import Unparker
from worker.settings import Settings

logger = logging.getLogger("longhaul.worker")

_TICK_SECONDS = 0.1
#: Shortest time, in seconds, for a cancelled job to roll back and return to the queue.
_MIN_GRACE_SECONDS = 5.0
#: Longest time, in seconds, for each step of the shutdown: ending cancelled tasks, and closing connections.
_STOP_SECONDS = 5.0


class Worker:
    """Runs jobs until it is drained. `wiring.build_worker` makes one from settings.

    Args:
        settings: the settings of this process.
        state: the state that all parts of the worker share.
        redis: the connection for operator commands and health; closed at the end.
        database: the database; closed at the end.
        store: the queue.
        listener: receives changes of keys in Redis.
        operator_state: the operator commands.
        leases: renews the leases of running jobs.
        fetcher: claims jobs.
        executor: runs the jobs.
        completer: writes their outcomes.
        observer: receives the worker's events.
        periodic_tasks: runs the periodic tasks.
        scheduler: the scheduler of cron jobs, started before the first claim.
        health: writes the health line and deletes it at the end; None if another worker writes it.
        counters: the counts of ended executions.
        log: sampled logger for lines that are written for each job.
        job_names: the names of its jobs, for the log.
        pools: the threads and processes that run plain functions; closed at the end.
        relay: moves runs from the outbox to the queue, as a periodic task; None if another worker does. Closed at
            the end.
        check_servers: raises unless the servers answer and the ledger is migrated.
        burst: whether to end when nothing is due.
        cap_slots: lowers the number of jobs that may be claimed.
        is_burst_over: returns whether an idle burst is over.
        log_level: the level of the lines about its start and its end.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        state: WorkerState,
        redis: Redis,
        database: Database,
        store: QueueStore,
        listener: InvalidationListener,
        operator_state: OperatorState,
        leases: Leases,
        fetcher: Fetcher,
        executor: JobExecutor,
        completer: JobCompleter,
        observer: Observer,
        periodic_tasks: PeriodicTasks,
        scheduler: Scheduler,
        health: HealthRecorder | None,
        counters: Counters,
        log: SampledLogger,
        job_names: Sequence[str],
        pools: JobPools,
        relay: Relay | None,
        check_servers: Callable[[], Awaitable[None]],
        burst: bool = False,
        cap_slots: Callable[[int], int] = lambda slots: slots,
        is_burst_over: Callable[[bool], Awaitable[bool]] | None = None,
        log_level: int = logging.INFO,
    ) -> None:
        self.settings = settings
        self.state = state
        self.database = database
        self.counters = counters
        self.scheduler = scheduler
        self.operator_state = operator_state
        self.listener = listener
        self._rules = settings.worker
        self._redis = redis
        self._store = store
        self._leases = leases
        self._fetcher = fetcher
        self._jobs = RunningJobs(
            executor=executor, completer=completer, leases=leases, counters=counters, on_end=self._job_ended
        )
        self._observer = observer
        self._periodic_tasks = periodic_tasks
        self._health = health
        self._log = log
        self._job_names = job_names
        self._pools = pools
        self._relay = relay
        self._check_servers = check_servers
        self._burst = burst
        self._cap_slots = cap_slots
        self._is_burst_over = is_burst_over
        self._log_level = log_level
        #: Set when the worker starts to claim jobs.
        self.ready = asyncio.Event()
        self._unparker = Unparker(store, operator_state, fetcher.served_queues, job_names)
        self._restoring: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Name of the worker, as operators see it."""
        return self.state.name

    @property
    def owner(self) -> str:
        """The value of its leases, unique to this process."""
        return self._store.owner

    @property
    def is_draining(self) -> bool:
        """Whether the worker is draining."""
        return self.state.is_draining

    @property
    def lease_stall(self) -> str | None:
        """Why the leases of its jobs may expire although it runs; None if they are renewed."""
        return self._leases.stall

    @property
    def abandoned_tasks(self) -> int:
        """Number of abandoned jobs whose code still runs."""
        return self._jobs.abandoned_count

    @property
    def tasks(self) -> dict[str, asyncio.Task[None]]:
        """The task of each claimed job, by run id."""
        return self._jobs.tasks

    @property
    def shutdown_seconds(self) -> float:
        """The longest time, in seconds, that a drain takes, even if a job or a server hangs."""
        timeout = self._rules.drain_timeout_seconds
        return timeout + max(timeout, _MIN_GRACE_SECONDS) + 3 * _STOP_SECONDS

    def execution(self, run_id: str) -> Execution | None:
        """Return the execution of a job; None if this worker does not have the job."""
        return self._jobs.get(run_id)

    # --- life cycle

    async def run(self) -> None:
        """Run jobs until drained or, in a burst, until nothing is due.

        Raises:
            ServerUnavailable: PostgreSQL or Redis does not answer at the start.
            DatabaseNotMigrated: `worker migrate` has not been run.
        """
        self.state.main = asyncio.current_task()
        self._observer.worker_started()
        beside: list[asyncio.Task[None]] = []
        try:
            await self._check_servers()
            await self.scheduler.start()
            await self.listener.start(self._keys_changed)
            await self.operator_state.refresh(now=True)
            await self._unparker.unpark_known()
            self._leases.start(on_lost=self._lease_lost, on_gone=self._job_gone)
            queues, jobs = ",".join(self._fetcher.queues), ",".join(self._job_names)
            logger.log(self._log_level, "worker started worker=%s queues=%s jobs=%s", self.name, queues, jobs)
            beside += self._periodic_tasks.start()
            keepers = {"operators": self._keep_operator_state, "clock": self._keep_time, "observer": self._observer.run}
            beside += [asyncio.create_task(supervise(name, work), name=name) for name, work in keepers.items()]
            self.ready.set()
            await self._work()
        finally:
            await self._stop(beside)

    async def _stop(self, beside: Sequence[asyncio.Task[None]]) -> None:
        for task in await end_tasks(beside, seconds=_STOP_SECONDS / 2):
            logger.error("task still runs task=%s: it ignores its cancellation", task.get_name())
        self._log.flush()
        self._observer.worker_stopped()
        steps = [
            ("leases", self._leases.stop()),
            ("drain command", self._remove_drain_command()),
            ("observer", self._observer.close()),
            ("listener", self.listener.stop()),
            ("queue", self._store.close()),
            ("processes", asyncio.to_thread(self._pools.close)),
        ]
        await finish_steps(steps, seconds=_STOP_SECONDS)
        count = self.counters.complete + self.counters.failed
        logger.log(self._log_level, "worker stopped worker=%s jobs=%d", self.name, count)

    async def close(self) -> None:
        """Close the connections of the worker."""
        steps = [("database", self.database.close())]
        if self._relay is not None:
            steps.append(("relay", self._relay.close()))
        if self._health is not None:
            steps.append(("health key", self._health.clear()))
        steps.append(("Redis", self._redis.aclose(close_connection_pool=True)))
        await finish_steps(steps, seconds=_STOP_SECONDS)

    async def _work(self) -> None:
        draining: asyncio.Task[None] | None = None
        fetcher, timer = self._fetcher, self._fetcher.timer
        while draining is None or not draining.done() or fetcher.acks.waiting:
            if self.state.is_draining and draining is None:
                draining = asyncio.create_task(self._drain())
                draining.add_done_callback(lambda _: timer.wake())
            if draining is not None and draining.done() and fetcher.is_failing:
                break  # Redis is unavailable: the leases of these jobs expire
            slots = self.state.free_slots = self._free_slots()
            if fetcher.has_work(slots):
                for claim in await fetcher.fetch(slots):
                    self._jobs.start(claim)
            elif self._burst and not self._jobs and await self._has_burst_ended():
                return
            else:
                await timer.wait(slots)
        await draining

    async def _has_burst_ended(self) -> bool:
        may_be_due = self._fetcher.timer.may_be_due
        if self._is_burst_over is not None:
            return await self._is_burst_over(may_be_due)
        if may_be_due or self._relay is None or not await self._relay.try_relay():
            return not may_be_due
        self._fetcher.timer.queues_changed()
        self._fetcher.timer.wake()
        return False

    def _free_slots(self) -> int:
        """Return the number of jobs to claim. Ended jobs that are not acknowledged yet take no slot."""
        if self.state.is_draining:
            return 0
        return self._cap_slots(self._fetcher.claimable(self._rules.max_jobs - len(self._jobs)))

    def _job_ended(self) -> None:
        timer = self._fetcher.timer
        timer.may_be_due = timer.may_be_due or self._burst
        timer.wake()

    def _keys_changed(self, written: frozenset[str] | None) -> None:
        """Handle a change of keys; None means that any key may have changed."""
        if written is None or not self.operator_state.keys.isdisjoint(written):
            self.operator_state.changed()
        if written is None or not written.isdisjoint(self._fetcher.queues):
            self._fetcher.timer.queues_changed()
        self._fetcher.timer.wake()

    # --- operator commands, clock and lost jobs

    async def _keep_operator_state(self) -> None:
        """Obey commands for jobs outside of a loop, and for this worker. A slow Redis does not stop the clock."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self.operator_state.refresh()
            if self.name in self.operator_state.drained and not self.state.is_draining:
                self.drain(why="worker:drain")
            for execution in self._jobs if self.operator_state.cancelled else ():
                given = execution.claim.run_id, execution.info.job, execution.read_arguments
                if execution.is_between_batches and self.operator_state.is_cancelled(*given):
                    execution.interrupt("cancel")
            self._fetcher.check_served_queues()
            await self._unparker.unpark_ordered()
            if self._free_slots():
                await self._unparker.unpark_known()

    async def _keep_time(self) -> None:
        """Check timeouts and stalls: one clock for all jobs."""
        loop = asyncio.get_running_loop()
        while True:
            await self._jobs.wait_for_any()
            await asyncio.sleep(_TICK_SECONDS)
            now = loop.time()
            for execution in self._jobs:
                execution.check_time(now)
                if execution.is_overdue(now):
                    self._jobs.abandon(execution)

    def _lease_lost(self, run_id: str) -> None:
        execution = self._jobs.get(run_id)
        if execution is not None:
            execution.interrupt("lost")

    def _job_gone(self, run_id: str) -> None:
        """Restore a job that Redis has lost, unless its end is being acknowledged."""
        execution = self._jobs.get(run_id)
        if execution is None or self._fetcher.acks.is_pending(run_id):
            return

        async def restore() -> None:
            try:
                if await self._store.restore(execution.claim):
                    logger.warning("job restored run=%s: Redis had lost it; it continues here", run_id)
                else:
                    execution.interrupt("lost")
            except RedisError as error:
                logger.debug("job not restored run=%s error=%s: the next renewal retries", run_id, error)

        task = asyncio.get_running_loop().create_task(restore())
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    # --- shutdown

    def drain(self, signum: int = signal.SIGTERM, *, why: str | None = None) -> None:
        """Drain: jobs return to the queue at their next boundary. A second call cancels them at once.

        Args:
            signum: the signal that requested it, for the log.
            why: the reason, if it was not a signal.
        """
        reason = why or Signals(signum).name
        if not self.state.is_draining:
            logger.info("drain started reason=%s jobs=%d: a second signal cancels them", reason, len(self._jobs))
            self.state.drain_started.set()
        else:
            logger.warning("shutdown forced reason=%s jobs=%d", reason, len(self._jobs))
            self.state.is_shutdown_forced = True
            self._jobs.interrupt("drain")
        self._fetcher.timer.wake()

    async def _remove_drain_command(self) -> None:
        """Remove the command to drain, so that it does not drain the next worker of this name."""
        if self.name in self.operator_state.drained:
            try:
                await self._redis.srem(keys.DRAINED, self.name)  # type: ignore[misc]
            except RedisError as error:
                logger.warning("drain command left in worker:drain worker=%s error=%s", self.name, error)

    async def _drain(self) -> None:
        loop, jobs, timeout = asyncio.get_running_loop(), self._jobs, self._rules.drain_timeout_seconds
        deadline = loop.time() + timeout
        while jobs and loop.time() < deadline and not self.state.is_shutdown_forced:
            await jobs.wait(min(0.2, deadline - loop.time()))
        if jobs:
            logger.warning("drain timeout jobs=%d: cancelling them", len(jobs))
            deadline = loop.time() + max(timeout, _MIN_GRACE_SECONDS)
            while jobs and loop.time() < deadline:
                jobs.interrupt("drain")
                await jobs.wait(1.0)
        jobs.abandon_all()
        await jobs.wait(_MIN_GRACE_SECONDS)
        for task in await end_tasks(jobs.tasks.values(), seconds=_STOP_SECONDS):
            logger.error("job still runs run=%s: its task ignores its cancellation", task.get_name())
