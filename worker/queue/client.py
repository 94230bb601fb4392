"""The client: how other services enqueue runs, wait for them, and operate the queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from redis.asyncio import Redis

from worker.awaiting import track_awaits
from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.definition import EnqueueOptions, Job, check_priority
from worker.job.middleware import Middleware, enqueue_hooks, load_middleware
from worker.queue import commands
from worker.queue.conditions import make_entry
from worker.queue.connection import connection_pool
from worker.queue.dead_letters import DeadLetter, DeadLetterFilter, list_dead_letters
from worker.queue.enqueuer import Enqueuer
from worker.queue.group import CompleteWhen, Group
from worker.queue.overview import RunSummary, list_runs
from worker.queue.run import Run, Status
from worker.queue.run_reader import RunReader
from worker.queue.store import QueueStore

if TYPE_CHECKING:
    from worker.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


@track_awaits("client")
class Client:
    """Enqueues jobs and operates the queue. Make one for each process.

        async with Client() as client:
            run = await client.enqueue(deactivate_dormant_users, days=90)
            print(await run.result())

    Every method raises `ServerUnavailable` if Redis does not answer, or rejects the command.

    Args:
        settings: the settings; by default from `settings.toml` and the environment.
        redis: an existing connection to use, which must return bytes; by default the client opens one.
        middleware: hooks around each enqueueing, the first outermost; `worker.middleware` by default.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        redis: Redis | None = None,
        middleware: Sequence[Middleware] | None = None,
    ) -> None:
        if settings is None:
            from worker.settings import (
                load_settings,  # imported late: it loads pydantic-settings, which `import worker` does not need
            )

            settings = load_settings()
        self._settings = settings
        chosen = load_middleware(settings.worker.middleware) if middleware is None else middleware
        self._owns = redis is None
        self.redis = redis or Redis.from_pool(connection_pool(settings))
        self._reader = RunReader(settings, self.redis, listens=self._owns)
        self._enqueuer = Enqueuer(
            self._reader, settings.worker.queue, enqueue_hooks(chosen), settings.worker.max_payload_bytes
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A connection that was passed to the client stays open."""
        await self._reader.close()
        if self._owns:
            await self.redis.aclose()

    # --- enqueue

    @overload
    async def enqueue(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    async def enqueue(self, job: str, /, *args: Any, **kwargs: Any) -> Run[Any]: ...
    async def enqueue(self, job: Job[..., Any] | str, /, *args: Any, **kwargs: Any) -> Run[Any]:
        """Enqueue a run of a job.

        Args:
            job: the job, or `job.options(id=..., delay=..., at=..., queue=...)`; or its name, if the jobs cannot be
                imported here. Only the worker validates the arguments of a name.
            args: for the function, after its context.
            kwargs: for the function.

        Returns:
            The run. Its `is_new` is False if the id was already known.

        Raises:
            InvalidArguments: the arguments do not match the signature, or are too large; nothing was enqueued.
            ServerUnavailable: Redis rejects the command, and nothing was enqueued; or it does not answer, and the run
                may have been enqueued. If the run has an id, enqueue it again.
        """
        if isinstance(job, Job):
            return await self._enqueuer.enqueue(job, args, kwargs)
        if not isinstance(job, str):
            name = getattr(job, "__name__", repr(job))
            raise InvalidArguments(f"{name} is not a job: decorate its function with @job, or give the name of a job")
        return await self._enqueuer.enqueue_name(job, args, kwargs, EnqueueOptions())

    async def enqueue_many(self, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]], /) -> list[Run[R]]:
        """Enqueue many runs of a job in a few round trips: `client.enqueue_many(resize, [{"id": 1}, {"id": 2}])`.

        Args:
            job: the job, or `job.options(delay=..., at=..., queue=...)`, or its name.
            calls: the arguments of each run, by name.

        Returns:
            The runs, in their order.

        Raises:
            InvalidArguments: the arguments of one call do not match the signature; nothing was enqueued.
            ServerUnavailable: Redis does not answer; some of the runs may have been enqueued.
        """
        return await self._enqueuer.enqueue_many(job, calls)

    async def enqueue_by_name(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers expect
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> Run[Any]:
        """Enqueue a job by its name, with JSON values by argument. The options are those of `Job.options`."""
        check_priority(f"job {name}", priority)
        options = EnqueueOptions(id, delay, at, queue, priority=priority)
        return await self._enqueuer.enqueue_name(name, (), arguments or {}, options)

    async def group(
        self,
        calls: Iterable[Call[Any]],
        /,
        *,
        then: Call[R] | None = None,
        complete_when: CompleteWhen = "all_succeeded",
        id: str | None = None,  # noqa: A002 - the name that callers expect
    ) -> Group[R]:
        """Enqueue many runs, and a callback that runs after all of them:
        `client.group([resize.call(id=n) for n in ids], then=publish.call(sizes=PREVIOUS_RESULT))`.

        Args:
            calls: the members. A member with a `then` of its own is complete when the last run of its chain is.
            then: the callback. It runs once; its `PREVIOUS_RESULT` is the list of the members' results in their order,
                with null for a member that has none.
            complete_when: `all_succeeded`: if a member fails permanently, the callback waits until an operator retries
                that member successfully. `all_finished`: a failed or cancelled member counts as complete, too.
            id: id of the group. If you enqueue a group again under its id, for example after an error, no member is
                enqueued twice.

        Raises:
            InvalidArguments: there are no members, or a member or the callback cannot work; nothing was enqueued.
            ServerUnavailable: Redis does not answer. Some members may have been enqueued: repeat the call with its id.
        """
        return await self._enqueuer.form_group(list(calls), then, complete_when=complete_when, group_id=id)

    def run(self, run_id: str, job: Job[..., R] | None = None, *, queue: str | None = None) -> Run[R]:
        """Return a run by its id, for example one of another process. With `job`, its result has the job's type."""
        return Run(self._reader, run_id, queue or self._settings.worker.queue, job, is_new=False)

    # --- operate

    async def pause(self, *targets: str, where: Mapping[str, Any] | None = None) -> None:
        """Pause runs, jobs, queues, or everything.

        Args:
            targets: run ids, names of jobs or queues, or `*` for everything. A running walk stops at its next batch
                boundary; a waiting run does not begin.
            where: values of arguments by name: of the jobs that `targets` names, only runs with these values.
        """
        await commands.pause(self._reader, _with_arguments(targets, where))

    async def resume(self, *targets: str, where: Mapping[str, Any] | None = None) -> int:
        """Remove pauses that `pause` set, with the same `where`. Returns how many of the targets were paused."""
        return await commands.resume(self._reader, _with_arguments(targets, where))

    async def pace(self, *targets: str, rows_per_second: float | None) -> None:
        """Limit the pace of running and future walks.

        Args:
            targets: run ids, names of jobs, or `*` for every walk.
            rows_per_second: the limit; None removes it, and the settings and the job apply again.
        """
        await commands.pace(self._reader, targets, rows_per_second)

    async def cancel(self, *run_ids: str, queue: str | None = None) -> list[str]:
        """Cancel runs: a running walk at its next batch boundary, a waiting run at once.

        Args:
            run_ids: ids of the runs.
            queue: their queue; `worker.queue` by default.

        Returns:
            The ids that are neither waiting nor running. Nothing was changed for them.
        """
        return await commands.cancel(self._reader, run_ids, queue=queue or self._settings.worker.queue)

    async def retry(self, *run_ids: str) -> None:
        """Request that workers run ended runs and dead letters again, each from its last checkpoint.

        A worker obeys within a second. It logs a warning for an id that is neither an ended run nor a dead letter.

        Args:
            run_ids: ids of the runs.
        """
        await commands.request_retry(self._reader, run_ids)

    async def drain(self, *workers: str) -> None:
        """Drain workers, as SIGTERM does: jobs stop at their next boundary and return to the queue.

        Args:
            workers: names of the workers, as listed in `worker:workers`.
        """
        await commands.drain(self._reader, workers)

    async def runs(self, *, job: str | None = None, state: Status | None = None, limit: int = 100) -> list[RunSummary]:
        """Return the runs in Redis: first runs in the queue by due time, then ended runs.

        Ended runs are known for `worker.result_ttl_seconds`. They are found by a scan of the keys of Redis, which takes
        about a second for a million keys.

        Args:
            job: only runs of this job.
            state: only runs in this state.
            limit: number of runs, at most.
        """
        return await self._reader.command(list_runs(self.redis, self._settings, job=job, state=state, limit=limit))

    async def dead_letters(
        self, *, job: str | None = None, before: datetime | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        """Return runs that have failed permanently, the newest first.

        Args:
            job: only runs of this job.
            before: only runs that failed before this aware time.
            limit: number of runs, at most.
        """
        chosen = DeadLetterFilter(job=job, before=before)
        return await self._reader.command(list_dead_letters(self.redis, chosen, limit=limit))

    # --- for modules of this package

    @property
    def reader(self) -> RunReader:
        """The reader that runs and operator commands use."""
        return self._reader

    @property
    def store(self) -> QueueStore:
        """The store that moves jobs in Redis."""
        return self._reader.store

    async def command(self, operation: Any) -> Any:
        """Await a command of Redis.

        Raises:
            ServerUnavailable: Redis does not answer, or rejects the command.
        """
        return await self._reader.command(operation)


def _with_arguments(targets: Sequence[str], where: Mapping[str, Any] | None) -> list[str]:
    return [make_entry(target, where) for target in targets] if where else list(targets)
