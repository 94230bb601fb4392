"""Makes payloads of jobs and calls, and puts them into their queues."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.definition import EnqueueOptions, Job
from worker.job.middleware import EnqueueCall, EnqueueHook, through
from worker.job.propagation import current_headers
from worker.job.round_trip import to_json_values
from worker.queue.chain import make_callback, make_fair_entry, make_next_calls, to_ms
from worker.queue.group import CompleteWhen, Group
from worker.queue.outbox import OutboxWriter, check_job_name, check_queue_name
from worker.queue.payload import LONGEST_ID, Member, Payload, now_ms, payload_text, read_run_id, to_seconds
from worker.queue.run import Run
from worker.queue.run_reader import RunReader
from worker.queue.store import Lock, QueueStore

R = TypeVar("R")
T = TypeVar("T")

_JOBS_PER_CALL = 500
_MOST_RESULTS = 10_000  # Lua joins them, which blocks Redis for all clients


@dataclass(frozen=True)
class Enqueuer:
    """Enqueues runs and groups.

    Attributes:
        reader: connection to Redis.
        queue: queue of a job that names no other; `worker.queue`.
        hooks: middleware around each run, outermost first.
        max_payload_bytes: longest payload; `worker.max_payload_bytes`.
        outbox: writes runs to the outbox of the caller's database, in place of the queue; None for the queue.
    """

    reader: RunReader
    queue: str
    hooks: tuple[EnqueueHook, ...]
    max_payload_bytes: int
    outbox: OutboxWriter | None = None

    @property
    def _destination_store(self) -> QueueStore | OutboxWriter:
        return self.outbox or self.reader.store

    async def _send(self, operation: Awaitable[T]) -> T:
        """Await an operation of the destination."""
        return await (operation if self.outbox else self.reader.command(operation))

    # --- one run

    async def enqueue(self, job: Job[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Run[Any]:
        """Enqueue a job. Validate its arguments."""
        headers = current_headers()
        arguments = job.encode_arguments_json(args, kwargs)
        if self.hooks:
            call = EnqueueCall(job.name, arguments, job.enqueue_options.queue or self.queue, headers)
            return await self._around(call, lambda: self._enqueue(job, arguments, headers))
        return await self._enqueue(job, arguments, headers)

    async def _enqueue(self, job: Job[..., Any], arguments: str, headers: Mapping[str, str]) -> Run[Any]:
        unique = job.unique
        lock = None
        if job.rules.once:
            job = _name_once(job)
        if unique is not None:
            lock = Lock(job.unique_key(json.loads(arguments)), unique.counts, round(unique.seconds * 1000))
        text, next_runs = self._payload(job, arguments, headers)
        fair = job.fair_entry(json.loads(arguments)) if job.fair else ""
        return await self._put(text, job.enqueue_options, job, lock, next_runs, fair=fair)

    async def enqueue_name(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: EnqueueOptions
    ) -> Run[Any]:
        """Enqueue a job by its name. Only the worker validates the arguments."""
        check_job_name(name)
        values = [to_json_values(name, str(place), value) for place, value in enumerate(args, 1)]
        named = {key: to_json_values(name, key, value) for key, value in kwargs.items()}
        payload = Payload(name, values, named, now_ms(), headers=current_headers())
        if not self.hooks:
            return await self._put(payload.to_json(), options, None)
        # Hooks add their headers to those of the payload.
        payload = payload._replace(headers=dict(payload.headers))
        text = json.dumps(payload.args or payload.kwargs)
        call = EnqueueCall(name, text, options.queue or self.queue, cast(dict[str, str], payload.headers))
        return await self._around(call, lambda: self._put(payload.to_json(), options, None))

    async def _around(self, call: EnqueueCall, put: Callable[[], Awaitable[Run[Any]]]) -> Run[Any]:
        run: Run[Any] = await through(self.hooks, call, put)
        return run

    def _payload(
        self, job: Job[..., Any], arguments: str, headers: Mapping[str, str]
    ) -> tuple[str, Sequence[Run[Any]]]:
        """Return the payload of a job, and the runs that follow it."""
        options = job.enqueue_options
        calls = make_next_calls(options.then) if options.then else ()
        text = payload_text(
            job.name,
            arguments,
            version=job.version,
            until_ms=_moment_ms(options.expires),
            deadline_ms=_moment_ms(options.deadline),
            then=calls,
            headers=headers,
        )
        if not calls:
            return text, ()
        queue = options.queue or self.queue
        next_runs: list[Run[Any]] = []
        for wire, call in zip(calls, (later for first in options.then for later in first.chain), strict=True):
            queue = wire.get("q", queue)  # the queue of the preceding run, unless the call names another
            next_runs.append(Run(self.reader, wire["id"], queue, call.job))
        return text, next_runs

    async def _put(
        self,
        payload: str,
        options: EnqueueOptions,
        job: Job[..., Any] | None,
        lock: Lock | None = None,
        next_runs: Sequence[Run[Any]] = (),
        *,
        fair: str = "",
    ) -> Run[Any]:
        self._check_size(payload, job.name if job else "the job")
        if options.id is not None and (not isinstance(options.id, str) or read_run_id(options.id) is None):
            raise InvalidArguments(f"id={options.id!r:.100}: an id has 1 to {LONGEST_ID} printable characters")
        queue = options.queue or self.queue
        check_queue_name(queue)
        put = await self._send(
            self._destination_store.enqueue(
                options.id or uuid.uuid4().hex,
                payload,
                queue=queue,
                delay=to_seconds(options.delay),
                at=options.at,
                replace=options.replace,
                lock=lock,
                priority=job.priority if job else options.priority or 0,
                fair=fair,
            )
        )
        known = not (put.is_new or put.replaced)
        return Run(
            self.reader,
            put.run_id,
            queue,
            job,
            is_new=put.is_new,
            replaced=put.replaced,
            next_runs=() if known else next_runs,
        )

    def _check_size(self, payload: str, job: str) -> None:
        # No character has more than four bytes: nearly no payload needs to be encoded to be measured.
        if len(payload) * 4 <= self.max_payload_bytes:
            return
        size = len(payload.encode(errors="replace"))
        if size > self.max_payload_bytes:
            raise InvalidArguments(
                f"{job}: its payload has {size:,} bytes, and worker.max_payload_bytes is {self.max_payload_bytes:,}: "
                f"write large arguments to a table, and pass their key"
            )

    # --- many runs

    async def enqueue_many(self, job: Job[..., R] | str, calls: Iterable[Mapping[str, Any]]) -> list[Run[R]]:
        """Enqueue a job many times; see `Client.enqueue_many`."""
        check_job(job)
        calls = _check_calls(calls)
        options = job.enqueue_options if isinstance(job, Job) else EnqueueOptions()
        if isinstance(job, Job) and job.rules.once:
            raise InvalidArguments(f"enqueue_many: {job.name} is a data migration, which has one run")
        if options.id is not None:
            raise InvalidArguments("enqueue_many: many runs cannot have one id: leave id= out of the options")
        if self.hooks or (isinstance(job, Job) and job.unique is not None):
            return [await self._enqueue_any(job, call) for call in calls]
        texts, followers, fair = await self._payloads(job, calls)
        queue = options.queue or self.queue
        check_queue_name(queue)
        known_job = job if isinstance(job, Job) else None
        runs: list[Run[R]] = []
        for first in range(0, len(texts), _JOBS_PER_CALL):
            part = texts[first : first + _JOBS_PER_CALL]
            marks = os.urandom(16 * len(part)).hex()
            ids = [marks[at : at + 32] for at in range(0, len(marks), 32)]
            known = await self._send(
                self._destination_store.enqueue_many(
                    list(zip(ids, part, strict=True)),
                    queue=queue,
                    delay=to_seconds(options.delay),
                    at=options.at,
                    priority=job.priority if isinstance(job, Job) else 0,
                    fair=fair[first : first + _JOBS_PER_CALL],
                )
            )
            for place, run_id in enumerate(ids):
                next_runs = followers.get(first + place, ()) if place not in known else ()
                runs.append(Run(self.reader, run_id, queue, known_job, is_new=place not in known, next_runs=next_runs))
        return runs

    async def _enqueue_any(self, job: Job[..., Any] | str, call: Mapping[str, Any]) -> Run[Any]:
        if isinstance(job, Job):
            return await self.enqueue(job, (), call)
        return await self.enqueue_name(job, (), call, EnqueueOptions())

    async def _payloads(
        self, job: Job[..., Any] | str, calls: Iterable[Mapping[str, Any]]
    ) -> tuple[list[str], dict[int, Sequence[Run[Any]]], list[str]]:
        """Return the payload of each call, the next runs by its position, and weight and flow of each fair run."""
        headers = current_headers()
        texts: list[str] = []
        followers: dict[int, Sequence[Run[Any]]] = {}
        fair: list[str] = []
        name = job.name if isinstance(job, Job) else job
        for place, call in enumerate(calls):
            if place % _JOBS_PER_CALL == _JOBS_PER_CALL - 1:
                await asyncio.sleep(0)  # let other tasks run
            try:
                if isinstance(job, Job):
                    arguments = job.encode_arguments_json((), call)
                    text, next_runs = self._payload(job, arguments, headers)
                    if job.fair:
                        fair.append(job.fair_entry(json.loads(arguments)))
                    if next_runs:
                        followers[place] = next_runs
                else:
                    named = {key: to_json_values(job, key, value) for key, value in call.items()}
                    text = Payload(job, [], named, now_ms(), headers=headers).to_json()
                self._check_size(text, name)
            except InvalidArguments as error:
                raise InvalidArguments(f"enqueue_many: call {place}: {error}") from None
            texts.append(text)
        return texts, followers, fair

    # --- a group

    async def form_group(
        self,
        calls: Sequence[Call[Any]],
        callback: Call[R] | None,
        *,
        complete_when: CompleteWhen,
        group_id: str | None,
    ) -> Group[R]:
        """Enqueue a group; see `Client.group`."""
        needs_results = callback is not None and callback.result_as is not None
        _check_group(calls, callback, needs_results=needs_results)
        for queue in {self._destination(call)[0] for call in calls}:
            check_queue_name(queue)
        name = uuid.uuid4().hex if group_id is None else group_id
        if not name or not all(read_run_id(f"{name}:{end}") for end in (len(calls), "then")):
            raise InvalidArguments(f"group: id={name[:100]!r}: an id has 1 to {LONGEST_ID - 20} printable characters")
        values = None if callback is None else make_callback(callback, group_id=name, queue=self.queue)
        await self.reader.command(
            self.reader.store.groups.create(name, len(calls), complete_when=complete_when, callback=values)
        )
        runs: list[Run[Any]] = []
        members = [(call, place) for place, call in enumerate(calls, 1)]
        for _, alike in itertools.groupby(members, key=lambda member: self._destination(member[0])):
            rest = list(alike)
            if self.hooks:
                runs += [await self._enqueue_member(one, name, needs_results=needs_results) for one in rest]
                continue
            headers = current_headers()
            while rest:
                part, rest = rest[:_JOBS_PER_CALL], rest[_JOBS_PER_CALL:]
                runs += await self._enqueue_members(part, name, needs_results=needs_results, headers=headers)
        last = None
        if callback is not None and values is not None:
            last = Run(self.reader, values["id"], values["queue"], callback.job)
        return Group(self.reader, name, runs, last)

    async def _enqueue_member(self, member: tuple[Call[Any], int], group: str, *, needs_results: bool) -> Run[Any]:
        """Enqueue one member within the middleware."""
        call = member[0]
        described = EnqueueCall(call.job.name, call.arguments, self._destination(call)[0], current_headers())

        async def put() -> Run[Any]:
            [run] = await self._enqueue_members([member], group, needs_results=needs_results, headers=described.headers)
            return run

        return await self._around(described, put)

    async def _enqueue_members(
        self,
        members: Sequence[tuple[Call[Any], int]],
        group: str,
        *,
        needs_results: bool,
        headers: Mapping[str, str],
    ) -> list[Run[Any]]:
        """Enqueue members that go to one queue, with one delay and one priority."""
        queue, delay_ms, priority = self._destination(members[0][0])
        jobs, fair = [], []
        for call, place in members:
            expires = to_ms(call.job.enqueue_options.expires)
            text = payload_text(
                call.job.name,
                call.arguments,
                version=call.job.version,
                until_ms=now_ms() + expires if expires else 0,
                then=make_next_calls(call.then),
                group=Member(group, place, needs_results),
                headers=headers,
            )
            self._check_size(text, call.job.name)
            jobs.append((f"{group}:{place}", text))
            fair.append(make_fair_entry(call))
        known = await self.reader.command(
            self.reader.store.enqueue_many(
                jobs, queue=queue, delay=delay_ms / 1000, priority=priority, group=group, fair=fair if any(fair) else ()
            )
        )
        return [
            Run(self.reader, run_id, queue, call.job, is_new=at not in known)
            for at, ((run_id, _), (call, _)) in enumerate(zip(jobs, members, strict=True))
        ]

    def _destination(self, call: Call[Any]) -> tuple[str, int, int]:
        """Return queue, delay in ms and priority of a call."""
        options = call.job.enqueue_options
        return options.queue or self.queue, to_ms(options.delay), call.job.priority


def check_job(job: object) -> None:
    """Raise `InvalidArguments` unless a value is a job, or can be the name of one."""
    if isinstance(job, str):
        check_job_name(job)
    if not isinstance(job, Job | str):
        name = getattr(job, "__name__", repr(job))
        raise InvalidArguments(f"{name} is not a job: decorate its function with @job, or give the name of a job")


def _check_calls(calls: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    checked = list(calls)
    for place, call in enumerate(checked):
        if not isinstance(call, Mapping):
            kind = type(call).__name__
            raise InvalidArguments(f"enqueue_many: call {place} is a value of type {kind}: give its arguments by name")
    return checked


def _check_group(calls: Sequence[Call[Any]], callback: Call[Any] | None, *, needs_results: bool) -> None:
    if not calls:
        raise InvalidArguments("group: it has no members")
    if any(call.result_as for call in calls):
        raise InvalidArguments("group: a member cannot have PREVIOUS_RESULT, because no run precedes it")
    if callback is not None and callback.job.enqueue_options.expires is not None:
        raise InvalidArguments("group: its callback cannot have expires=: the end of the last member is unknown")
    if needs_results and len(calls) > _MOST_RESULTS:
        raise InvalidArguments(
            f"group: a callback can receive the results of {_MOST_RESULTS:,} members at most, not of {len(calls):,}: "
            f"let the members write to a table, and let the callback read it"
        )


def _name_once(job: Job[..., Any]) -> Job[..., Any]:
    """Return a data migration with the id of its one run: its name."""
    options = job.enqueue_options
    if options.id not in (None, job.name):
        raise InvalidArguments(f"job {job.name}: the id of a data migration is its name: leave id= out")
    return replace(job, enqueue_options=replace(options, id=job.name))


def _moment_ms(when: float | timedelta | datetime | None) -> int:
    """Return an aware datetime, or a duration from now, in ms since 1970; 0 for None."""
    if when is None:
        return 0
    return round(when.timestamp() * 1000) if isinstance(when, datetime) else now_ms() + round(to_seconds(when) * 1000)
