"""The client without an event loop, for Flask, Django, scripts and threads.

Its commands are those of `Client`: the same coroutines, over synchronous connections (blocking.py). Only the waits of
`SyncRun` and the connection to PostgreSQL are of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import redis as blocking

from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.definition import Job
from worker.job.middleware import Middleware
from worker.queue.blocking import as_async, blocking_pool, run_without_loop
from worker.queue.client import Client, settings_or_default
from worker.queue.group import CompleteWhen
from worker.queue.operations import check_database
from worker.queue.sync_operations import SyncOperations
from worker.queue.sync_run import SyncGroup, SyncRun

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from worker.ledger import Ledger
    from worker.plan import JobPlan
    from worker.settings import Settings

    BlockingSession = Session | Connection

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _BlockingClient(Client):
    """A client over synchronous connections."""

    async def _with_ledger(self, operation: Callable[[Ledger], Awaitable[T]]) -> T:
        check_database(self._settings, None)
        access = import_module("worker.queue.ledger_access")
        return cast(T, access.run_with_ledger(self._settings, self._reader, operation))


class SyncClient(SyncOperations):
    """Enqueues jobs and operates the queue: the methods of `Client`, blocking. Make one for each process.

        client = SyncClient()
        run = client.enqueue(deactivate_dormant_users, days=90)
        print(run.result())

    All threads of a process may share it; each uses a connection of its own while it waits for an answer. After a fork,
    the child opens connections of its own. There is no event loop, in this or in another thread, with one exception:
    methods that need the ledger connect to PostgreSQL in an event loop of the calling thread, which ends with the call.

    Every method raises `ServerUnavailable` if Redis does not answer, or rejects the command.

    Args:
        settings: the settings; by default from `settings.toml` and the environment.
        redis: an existing synchronous client of redis-py to use, which must return bytes; by default one is opened.
        middleware: hooks around each enqueueing, the first outermost; `worker.middleware` by default. Their `enqueue`
            may await `proceed()` and nothing else.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        redis: blocking.Redis | None = None,
        middleware: Sequence[Middleware] | None = None,
    ) -> None:
        settings = settings_or_default(settings)
        self._owns = redis is None
        self.redis = redis or blocking.Redis(connection_pool=blocking_pool(settings))
        self._client = _BlockingClient(settings, redis=as_async(self.redis), middleware=middleware)

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A Redis client that was passed stays open."""
        if self._owns:
            self.redis.close()
            self.redis.connection_pool.disconnect()

    @overload
    def enqueue(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncRun[R]: ...
    @overload
    def enqueue(self, job: str, /, *args: Any, **kwargs: Any) -> SyncRun[Any]: ...
    def enqueue(self, job: Job[..., Any] | str, /, *args: Any, **kwargs: Any) -> SyncRun[Any]:
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
        return SyncRun(run_without_loop(self._client.enqueue(cast(Any, job), *args, **kwargs)))

    def plan(self, job: Job[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> JobPlan:
        """Plan a job without changing anything; see `Client.plan`.

        The job's code and the connection to PostgreSQL use an event loop of this thread, which ends with the call.

        Args:
            job: the job.
            args: for the function, after its context.
            kwargs: for the function.
        """
        access = import_module("worker.queue.ledger_access")
        return cast("JobPlan", access.run_in_own_loop(lambda: self._client.plan(job, *args, **kwargs)))

    def enqueue_many(self, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]], /) -> list[SyncRun[R]]:
        """Enqueue many runs of a job in a few round trips; see `Client.enqueue_many`.

        Args:
            job: the job, or `job.options(delay=..., at=..., queue=...)`, or its name.
            calls: the arguments of each run, by name.

        Returns:
            The runs, in their order.

        Raises:
            InvalidArguments: the arguments of one call do not match the signature; nothing was enqueued.
            ServerUnavailable: Redis does not answer; some of the runs may have been enqueued.
        """
        return [SyncRun(run) for run in run_without_loop(self._client.enqueue_many(job, calls))]

    @overload
    def enqueue_in(
        self, session: BlockingSession, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncRun[R]: ...
    @overload
    def enqueue_in(self, session: BlockingSession, job: str, /, *args: Any, **kwargs: Any) -> SyncRun[Any]: ...
    def enqueue_in(
        self, session: BlockingSession, job: Job[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> SyncRun[Any]:
        """Enqueue a run of a job in the caller's transaction: it exists if and when that commits.

        Args:
            session: a `Session` or `Connection` of SQLAlchemy, on the database that the workers use.
            job: as for `enqueue`.
            args: as for `enqueue`.
            kwargs: as for `enqueue`.

        Returns:
            The run; see `Client.enqueue_in`.

        Raises:
            InvalidArguments: the arguments do not match the signature, or are too large; or `session` is none.
            DatabaseNotMigrated: the database of the session has no table `worker.outbox`.
        """
        _check_session(session)
        return SyncRun(run_without_loop(self._client.enqueue_in(session, cast(Any, job), *args, **kwargs)))

    def enqueue_many_in(
        self, session: BlockingSession, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]], /
    ) -> list[SyncRun[R]]:
        """Enqueue many runs of a job in the caller's transaction; see `enqueue_in` and `enqueue_many`."""
        _check_session(session)
        return [SyncRun(run) for run in run_without_loop(self._client.enqueue_many_in(session, job, calls))]

    def enqueue_by_name(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers expect
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> SyncRun[Any]:
        """Enqueue a job by its name, with JSON values by argument. The options are those of `Job.options`."""
        return SyncRun(
            run_without_loop(
                self._client.enqueue_by_name(name, arguments, id=id, delay=delay, at=at, queue=queue, priority=priority)
            )
        )

    def group(
        self,
        calls: Iterable[Call[Any]],
        /,
        *,
        then: Call[R] | None = None,
        complete_when: CompleteWhen = "all_succeeded",
        id: str | None = None,  # noqa: A002 - the name that callers expect
    ) -> SyncGroup[R]:
        """Enqueue many runs, and a callback that runs after all of them; see `Client.group`."""
        return SyncGroup(run_without_loop(self._client.group(calls, then=then, complete_when=complete_when, id=id)))

    def run(self, run_id: str, job: Job[..., R] | None = None, *, queue: str | None = None) -> SyncRun[R]:
        """Return a run by its id, for example one of another process. With `job`, its result has the job's type."""
        return SyncRun(self._client.run(run_id, job, queue=queue))

    def trigger_cron(self, job: Job[..., Any] | str, arguments: Mapping[str, Any] | None = None) -> SyncRun[Any]:
        """Enqueue one run of a cron job now; see `Client.trigger_cron`."""
        return SyncRun(run_without_loop(self._client.trigger_cron(job, arguments)))


def _check_session(session: object) -> None:
    """Raise `InvalidArguments` if a session is asynchronous: its statements need an event loop."""
    is_async = hasattr(session, "sync_session") or hasattr(session, "sync_connection")
    if is_async or inspect.iscoroutinefunction(getattr(session, "execute", None)):
        raise InvalidArguments(
            f"enqueue_in: SyncClient takes a Session or a Connection, not {type(session).__name__}: use `Client` there"
        )
