"""The client: how other services enqueue jobs."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.definition import EnqueueOptions, Job, check_priority
from worker.job.middleware import EnqueueCall, Middleware, enqueue_hooks, load_middleware, through
from worker.job.propagation import current_headers
from worker.queue.chain import make_next_calls
from worker.queue.connection import connection_pool
from worker.queue.group import Group, Need, form
from worker.queue.invalidations import InvalidationListener
from worker.queue.outage_log import unavailable
from worker.queue.payload import Payload, now_ms, payload_text, to_seconds
from worker.queue.run import Run
from worker.queue.store import Lock, QueueStore

if TYPE_CHECKING:
    from worker.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

_AT_ONCE = 500  # jobs in one call
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


class Client:
    """Enqueues jobs; made once a process.

        async with Client() as client:
            run = await client.enqueue(deactivate_dormant_users, days=90)
            print(await run.result())

    Args:
        settings: or those of `settings.toml` and the environment.
        redis: a connection of yours (returning bytes) to use instead of one of its own.
        middleware: around each enqueueing, the first outermost; that of `worker.middleware` by default.
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
                load_settings,  # with it comes pydantic-settings, which the import can do without
            )

            settings = load_settings()
        self._settings = settings
        around = load_middleware(self._settings.worker.middleware) if middleware is None else middleware
        self.hooks = enqueue_hooks(around)
        self._owns = redis is None
        self.redis = redis or Redis.from_pool(connection_pool(self._settings))
        self.store = QueueStore(self.redis)
        self._watch: InvalidationListener | None = None
        self._waiting: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.stop()
        if self._owns:
            await self.redis.aclose()

    @overload
    async def enqueue(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    async def enqueue(self, job: str, /, *args: Any, **kwargs: Any) -> Run[Any]: ...
    async def enqueue(self, job: Job[..., Any] | str, /, *args: Any, **kwargs: Any) -> Run[Any]:
        """Put a job into the queue.

        Args:
            job: the job, or `job.options(id=..., delay=..., at=..., queue=...)`; or its name, where the jobs
                are not importable: the worker then validates alone.
            args: for the function, after its context.
            kwargs: for the function.

        Returns:
            The run; `is_new` is False when its id was known already.

        Raises:
            InvalidArguments: they do not fit the signature; nothing was enqueued.
            ServerUnavailable: Redis refuses, as a replica, or with its memory full: nothing was enqueued. Or it does
                not answer: where it was cut off in between, the job may be there. With an id, enqueue it again.
        """
        headers = current_headers()
        if isinstance(job, Job):
            arguments = job.encode_arguments_json(args, kwargs)
            if self.hooks:
                queue = job.enqueue_options.queue or self._settings.worker.queue
                call = EnqueueCall(job.name, arguments, queue, headers)
                return await self.around(call, lambda: self._enqueue(job, arguments, headers))
            return await self._enqueue(job, arguments, headers)
        if not isinstance(job, str):
            name = getattr(job, "__name__", repr(job))
            raise InvalidArguments(f"{name} is no job: decorate its function with @job, or give the name of one")
        try:
            values = {"args": list(args), "kwargs": kwargs}
            plain = _ANY.dump_python(values, mode="json")
        except PydanticSerializationError as error:
            raise InvalidArguments(f"job {job}: {error}") from None
        payload = Payload(job, plain["args"], plain["kwargs"], now_ms(), headers=headers)
        return await self._put_plain(payload, EnqueueOptions())

    async def _enqueue(self, job: Job[..., Any], arguments: str, headers: Mapping[str, str]) -> Run[Any]:
        """Enqueue a job with validated arguments."""
        unique = job.unique
        lock = None
        if unique is not None:
            lock = Lock(job.unique_key(json.loads(arguments)), unique.counts, round(unique.seconds * 1000))
        text, follows = self._payload(job, arguments, headers)
        return await self._put(text, job.enqueue_options, job, lock, follows)

    async def _put_plain(self, payload: Payload, options: EnqueueOptions) -> Run[Any]:
        """Enqueue a job by its name."""
        if not self.hooks:
            return await self._put(payload.to_json(), options, None)
        # What hooks add, they add to the payload's own headers.
        payload = payload._replace(headers=dict(payload.headers))
        text = json.dumps(payload.args or payload.kwargs)
        queue = options.queue or self._settings.worker.queue
        call = EnqueueCall(payload.function, text, queue, cast(dict[str, str], payload.headers))
        return await self.around(call, lambda: self._put(payload.to_json(), options, None))

    async def around(self, call: EnqueueCall, put: Callable[[], Awaitable[Run[Any]]]) -> Run[Any]:
        """Enqueue a run within the hooks of the middleware."""
        run: Run[Any] = await through(self.hooks, call, put)
        return run

    async def enqueue_many(self, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]], /) -> list[Run[R]]:
        """Put a job into the queue many times, in a few round trips: `client.enqueue_many(resize, [{"id": 1}, ...])`.

        Args:
            job: the job, or `job.options(delay=..., at=..., queue=...)`, or its name.
            calls: the arguments of each run, by name.

        Returns:
            The runs, in their order.

        Raises:
            InvalidArguments: those of one call do not fit the signature; nothing was enqueued.
            ServerUnavailable: Redis does not answer; a part may have been enqueued.
        """
        options = job.enqueue_options if isinstance(job, Job) else EnqueueOptions()
        if options.id is not None:
            raise InvalidArguments("enqueue_many: many runs cannot have one id: leave id= out of the options")
        if self.hooks or (isinstance(job, Job) and job.unique is not None):
            return [await self.enqueue(job, **call) for call in calls]
        headers = current_headers()
        texts: list[str] = []
        followers: dict[int, Sequence[Run[Any]]] = {}
        for place, call in enumerate(calls):
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # others have their turn
            try:
                if isinstance(job, Job):
                    arguments = job.encode_arguments_json((), call)
                    text, follows = self._payload(job, arguments, headers)
                    texts.append(text)
                    if follows:
                        followers[place] = follows
                else:
                    plain = _ANY.dump_python(dict(call), mode="json")
                    texts.append(Payload(job, [], plain, now_ms(), headers=headers).to_json())
            except (InvalidArguments, PydanticSerializationError) as error:
                raise InvalidArguments(f"enqueue_many: call {place}: {error}") from None
        queue = options.queue or self._settings.worker.queue
        known_job = job if isinstance(job, Job) else None
        runs: list[Run[R]] = []
        for first in range(0, len(texts), _AT_ONCE):
            part = texts[first : first + _AT_ONCE]
            marks = os.urandom(16 * len(part)).hex()
            ids = [marks[at : at + 32] for at in range(0, len(marks), 32)]
            known = await self.command(
                self.store.enqueue_many(
                    list(zip(ids, part, strict=True)),
                    queue=queue,
                    delay=to_seconds(options.delay),
                    at=options.at,
                    priority=job.priority if isinstance(job, Job) else 0,
                )
            )
            for place, run_id in enumerate(ids):
                then = followers.get(first + place, ()) if place not in known else ()
                runs.append(Run(self, run_id, queue, known_job, is_new=place not in known, then=then))
        return runs

    async def group(
        self,
        calls: Iterable[Call[Any]],
        /,
        *,
        then: Call[R] | None = None,
        need: Need = "succeeded",
        id: str | None = None,  # noqa: A002 - the name that callers expect
    ) -> Group[R]:
        """Enqueue many runs, and one that follows when all of them are done:
        `client.group([resize.call(id=n) for n in ids], then=publish.call(sizes=PREVIOUS_RESULT))`.

        Args:
            calls: the members; one that has a `then` of its own is done when its last one is.
            then: what follows, once; its `PREVIOUS_RESULT` is the list of the members' results, in their order, null
            for one
                that has none.
            need: "succeeded": a member that fails for good keeps it waiting, until an operator's retry of that one
                succeeds; "ended": one that has failed, or was cancelled, is done as well.
            id: of the group; again with the same one, after an error for example, no member is enqueued twice.

        Raises:
            InvalidArguments: there are no members, or one of them or the callback makes no sense; nothing was enqueued.
            ServerUnavailable: Redis does not answer; a part may have been enqueued: repeat it with its id.
        """
        return await form(self, list(calls), then, need=need, group_id=id, queue=self._settings.worker.queue)

    def _payload(
        self, job: Job[..., Any], arguments: str, headers: Mapping[str, str]
    ) -> tuple[str, Sequence[Run[Any]]]:
        """Return the payload of a job, and the runs that follow it."""
        options = job.enqueue_options
        then = make_next_calls(options.then) if options.then else ()
        text = payload_text(
            job.name,
            arguments,
            version=job.version,
            until_ms=_moment_ms(options.expires),
            deadline_ms=_moment_ms(options.deadline),
            then=then,
            headers=headers,
        )
        if not then:
            return text, ()
        queue = options.queue or self._settings.worker.queue
        follows: list[Run[Any]] = []
        for plain, call in zip(then, (later for first in options.then for later in first.chain), strict=True):
            queue = plain.get("q", queue)  # that of the one before, unless it says another
            follows.append(Run(self, plain["id"], queue, call.job))
        return text, follows

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
        """Put a job into the queue by its name, with JSON values by argument; see `enqueue` and `Job.options`."""
        check_priority(f"job {name}", priority)
        plain = _ANY.dump_python(arguments or {}, mode="json")
        options = EnqueueOptions(id, delay, at, queue, priority=priority)
        return await self._put_plain(Payload(name, [], plain, now_ms(), headers=current_headers()), options)

    def run(self, run_id: str, job: Job[..., R] | None = None, *, queue: str | None = None) -> Run[R]:
        """Return a run by its id, e.g. of another process; with `job`, its result comes in the promised type."""
        return Run(self, run_id, queue or self._settings.worker.queue, job, is_new=False)

    async def _put(
        self,
        payload: str,
        options: EnqueueOptions,
        job: Job[..., Any] | None,
        lock: Lock | None = None,
        follows: Sequence[Run[Any]] = (),
    ) -> Run[Any]:
        queue = options.queue or self._settings.worker.queue
        put = await self.command(
            self.store.enqueue(
                options.id or uuid.uuid4().hex,
                payload,
                queue=queue,
                delay=to_seconds(options.delay),
                at=options.at,
                replace=options.replace,
                lock=lock,
                priority=job.priority if job else options.priority or 0,
            )
        )
        then = follows if put.is_new or put.replaced else ()
        return Run(self, put.run_id, queue, job, is_new=put.is_new, replaced=put.replaced, then=then)

    async def look(self, key: str) -> tuple[bytes | None, asyncio.Event | None]:
        """Return a string, and an event that is set when it is written; None where one has to look again by oneself.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        if self._watch is None and self._owns:
            self._watch = InvalidationListener(self._settings)
            await self._watch.start(self._written)
        if self._watch is not None and self._watch.active:
            event = self._waiting.setdefault(key, asyncio.Event())
            event.clear()
            try:
                [raw] = await asyncio.shield(self._watch.read(("GET", key)))
            except RedisError:
                pass  # the plain way says what is wrong, if it is
            else:
                if raw is not None:
                    self._waiting.pop(key, None)
                return raw, event
        return await self.command(self.redis.get(key)), None

    def _written(self, names: frozenset[str] | None) -> None:
        for key in list(self._waiting) if names is None else names & self._waiting.keys():
            self._waiting[key].set()

    async def command(self, operation: Any) -> Any:
        """Await a command of Redis.

        Raises:
            ServerUnavailable: it does not answer.
        """
        try:
            return await cast(Awaitable[Any], operation)
        except (RedisError, OSError) as error:
            raise unavailable(self._settings, error, "start it there, or set REDIS_URL") from error


def _moment_ms(when: float | timedelta | datetime | None) -> int:
    """Return a time in ms since 1970: that of an aware datetime, or so long from now on; 0 for None."""
    if when is None:
        return 0
    return round(when.timestamp() * 1000) if isinstance(when, datetime) else now_ms() + round(to_seconds(when) * 1000)
