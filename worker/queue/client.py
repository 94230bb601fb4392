"""The client: how other services enqueue runs, wait for them, and operate the queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from redis.asyncio import Redis

from worker.awaiting import track_awaits
from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.definition import EnqueueOptions, Job, check_enqueue_options
from worker.job.middleware import Middleware, configured_middleware, enqueue_hooks
from worker.job.registry import discover
from worker.queue.connection import connection_pool
from worker.queue.cron_lines import trigger_id
from worker.queue.enqueuer import Enqueuer, check_job
from worker.queue.group import CompleteWhen, Group
from worker.queue.namespace import check_prefix
from worker.queue.operations import Operations, check_database
from worker.queue.outbox import OutboxWriter
from worker.queue.payload import is_unicode
from worker.queue.run import Run
from worker.queue.run_reader import RunReader
from worker.queue.store import QueueStore

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from worker.db.engine import Database
    from worker.plan import JobPlan
    from worker.settings import Settings

    OutboxSession = AsyncSession | AsyncConnection | Session | Connection

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
        settings = settings_or_default(settings)
        self._settings = settings
        self._database = database
        chosen = configured_middleware(settings) if middleware is None else middleware
        self._owns = redis is None
        if redis is not None:
            check_prefix(redis, settings.redis.prefix)
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
        return await _enqueue(self._enqueuer, job, args, kwargs)

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

    async def plan(self, job: Job[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> JobPlan:
        """Plan a job without changing anything: what `worker plan` shows. Needs the database of its loops.

        The job's code runs in this process, up to its first loop whose rows decide what follows; see `make_plan`.

        Args:
            job: the job.
            args: for the function, after its context.
            kwargs: for the function.

        Raises:
            InvalidArguments: the arguments do not match the signature.
            UsageError: the job has no durable loop, and its code is not run.
            ServerUnavailable: PostgreSQL does not answer.
        """
        check_database(self._settings, self._database)
        values = job.decode_arguments([], job.encode_arguments(args, kwargs))
        made: JobPlan = await import_module("worker.plan").make_plan(job, self._settings, **values)
        return made

    @overload
    async def enqueue_in(
        self, session: OutboxSession, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Run[R]: ...
    @overload
    async def enqueue_in(self, session: OutboxSession, job: str, /, *args: Any, **kwargs: Any) -> Run[Any]: ...
    async def enqueue_in(
        self, session: OutboxSession, job: Job[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> Run[Any]:
        """Enqueue a run of a job in the caller's transaction: it exists if and when that commits.

            async with sessions.begin() as session:
                session.add(user)
                await session.flush()
                await client.enqueue_in(session, send_welcome_mail, user_id=user.id)

        The run waits in the table `worker.outbox`, and a worker moves it to the queue as soon as the transaction has
        committed. Redis may be away: the client sends nothing to it.

        Args:
            session: an `AsyncSession`, `AsyncConnection`, `Session` or `Connection` of SQLAlchemy, on the database that
                the workers use. A synchronous one blocks the event loop for one statement.
            job: as for `enqueue`.
            args: as for `enqueue`.
            kwargs: as for `enqueue`.

        Returns:
            The run. Whether its id or, of a unique job, its arguments are known is decided when it is moved to the
            queue, so `is_new` is always True. A run that was known is dropped then.

        Raises:
            InvalidArguments: the arguments do not match the signature, or are too large; or `session` is none.
            DatabaseNotMigrated: the database of the session has no table `worker.outbox`.
        """
        return await _enqueue(self._writing_to(session, job), job, args, kwargs)

    async def enqueue_many_in(
        self, session: OutboxSession, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]], /
    ) -> list[Run[R]]:
        """Enqueue many runs of a job in the caller's transaction; see `enqueue_in` and `enqueue_many`."""
        return await self._writing_to(session, job).enqueue_many(job, calls)

    def _writing_to(self, session: OutboxSession, job: Job[..., Any] | str) -> Enqueuer:
        return replace(self._enqueuer, outbox=OutboxWriter(session, job.name if isinstance(job, Job) else job))

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
        options = EnqueueOptions(id, delay, at, queue, priority=priority)
        check_enqueue_options(f"job {name}", options)
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
        if not isinstance(run_id, str) or not is_unicode(run_id):
            raise InvalidArguments(f"{run_id!r:.100} is not the id of a run")
        return Run(self._reader, run_id, queue or self._settings.worker.queue, job, is_new=False)

    async def trigger_cron(self, job: Job[..., Any] | str, arguments: Mapping[str, Any] | None = None) -> Run[Any]:
        """Enqueue one run of a cron job now, by the rules of the job. Its due times do not change.

        Args:
            job: the job, or its name, which must be that of a job in `worker.packages`.
            arguments: JSON values by name, instead of the defaults.

        Raises:
            InvalidArguments: the job has no cron line, or the arguments do not match its signature.
            UnknownJob: there is no job of this name.
        """
        known = job if isinstance(job, Job) else discover(self._settings.worker.packages).find(job)
        if not known.schedule:
            raise InvalidArguments(f"{known.name} has no cron line; `worker enqueue {known.name}` runs it")
        given = arguments or {}
        values = known.decode_arguments([], given)
        run_id = None if known.rules.once else trigger_id(known.name)  # the id of a data migration is its name
        return await self.enqueue(known.options(id=run_id), **{name: values[name] for name in given})

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


async def _enqueue(
    enqueuer: Enqueuer, job: Job[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Run[Any]:
    if isinstance(job, Job):
        return await enqueuer.enqueue(job, args, kwargs)
    check_job(job)
    return await enqueuer.enqueue_name(job, args, kwargs, EnqueueOptions())


def settings_or_default(settings: Settings | None) -> Settings:
    """Return the settings that a client was given, or those of `settings.toml` and the environment."""
    if settings is not None:
        return settings
    from worker.settings import load_settings  # loads pydantic-settings, which a client with settings does not need

    return load_settings()
