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
from worker.job.registry import discover
from worker.queue.connection import connection_pool
from worker.queue.cron_lines import trigger_id
from worker.queue.enqueuer import Enqueuer
from worker.queue.group import CompleteWhen, Group
from worker.queue.operations import Operations
from worker.queue.run import Run
from worker.queue.run_reader import RunReader
from worker.queue.store import QueueStore

if TYPE_CHECKING:
    from worker.db.engine import Database
    from worker.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


@track_awaits("client")
class Client(Operations):
    """Enqueues jobs and operates the queue. Make one for each process and event loop.

        async with Client() as client:
            run = await client.enqueue(deactivate_dormant_users, days=90)
            print(await run.result())

    Every method raises `ServerUnavailable` if Redis does not answer, or rejects the command.

    Args:
        settings: the settings; by default from `settings.toml` and the environment.
        redis: an existing connection to use, which must return bytes; by default the client opens one.
        middleware: hooks around each enqueueing, the first outermost; `worker.middleware` by default.
        database: an open database with the ledger, for the methods that need it; by default the client opens one for
            `database.url`, when it first needs it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        redis: Redis | None = None,
        middleware: Sequence[Middleware] | None = None,
        database: Database | None = None,
    ) -> None:
        if settings is None:
            from worker.settings import (
                load_settings,  # imported late: it loads pydantic-settings, which `import worker` does not need
            )

            settings = load_settings()
        self._settings = settings
        self._database = database
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
        """Close the connections. A connection or database that was passed to the client stays open."""
        await self._reader.close()
        if self._access is not None:
            await self._access.close()
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

    async def trigger_cron(self, job: Job[..., Any] | str) -> Run[Any]:
        """Enqueue one run of a cron job now. Its due times do not change.

        Args:
            job: the job, or its name, which must be that of a job in `worker.packages`.

        Raises:
            InvalidArguments: the job has no cron line.
            UnknownJob: there is no job of this name.
        """
        known = job if isinstance(job, Job) else discover(self._settings.worker.packages).find(job)
        if not known.schedule:
            raise InvalidArguments(f"{known.name} has no cron line; `worker enqueue {known.name}` runs it")
        return await self.enqueue_by_name(known.name, {}, id=trigger_id(known.name))

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
