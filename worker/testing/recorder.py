"""Records what a test enqueues, without a server, and runs it in the test's process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import fakeredis
from redis.asyncio import Redis

from worker.errors import InvalidArguments, UnknownJob
from worker.job.call import Call
from worker.job.definition import Job
from worker.job.registry import discover
from worker.job.round_trip import to_json_values
from worker.queue import keys
from worker.queue.blocking import as_async, run_without_loop
from worker.queue.chain import make_follow_up
from worker.queue.client import Client
from worker.queue.enqueuer import Enqueuer, check_job
from worker.queue.group import Group
from worker.queue.payload import Member, Payload, decode_payload, now_ms
from worker.queue.result import Result, encode_result
from worker.queue.run import Run
from worker.queue.store import Enqueued, Lock, QueueStore
from worker.queue.sync_client import SyncClient
from worker.settings import Settings
from worker.testing.recorded_outbox import RecordedOutbox
from worker.testing.runner import JobRunner

_MOST_RUNS = 10_000
_RESULT_MS = 86_400_000


@dataclass(frozen=True)
class EnqueuedRun:
    """A run that was enqueued.

    Attributes:
        id: id of the run.
        job: name of its job.
        arguments: its arguments by name, as JSON values.
        queue: its queue.
        due_at: its due time; None if it is due at once.
        priority: its priority.
        headers: its headers.
        next_jobs: names of the jobs that follow it.
        group: its place in a group; None if it is in none.
        payload: the payload, as in Redis.
    """

    id: str
    job: str
    arguments: dict[str, Any]
    queue: str
    due_at: datetime | None
    priority: int
    headers: dict[str, str]
    next_jobs: tuple[str, ...]
    group: Member | None
    payload: Payload


class Recorder:
    """The runs that a test has enqueued through `client` and `sync_client`, in order.

    Args:
        settings: settings of the clients.
        make_runner: returns the runner of `run_all`.

    Attributes:
        client: a `Client` on a Redis in this process: pass it to the code under test.
        sync_client: a `SyncClient` on the same Redis.
        runs: the runs that were enqueued and not run yet.
    """

    def __init__(self, settings: Settings, make_runner: Callable[[], Awaitable[JobRunner]]) -> None:
        server = fakeredis.FakeServer()
        self._settings = settings
        self._make_runner = make_runner
        self._jobs: dict[str, Job[..., Any]] = {}
        self._redis = fakeredis.FakeAsyncRedis(server=server)
        blocking = fakeredis.FakeRedis(server=server)
        self._store = _RecordingStore(as_async(blocking), self)
        self._outbox = RecordedOutbox(self._put_row)
        self._done: dict[str, dict[int, str]] = {}
        self.runs: list[EnqueuedRun] = []
        self.client: Client = _RecordingClient(settings, self._redis, self)
        self.sync_client = SyncClient(settings, redis=blocking, middleware=[])
        self.sync_client._client = cast(Any, _RecordingClient(settings, as_async(blocking), self))

    async def close(self) -> None:
        """Forget everything."""
        self._outbox.close()
        await self.client.close()
        await self._redis.aclose()

    # --- assert

    def of(self, job: Job[..., Any] | str, **arguments: Any) -> list[EnqueuedRun]:
        """Return the runs of a job that have these values, and any values of other arguments.

        Raises:
            InvalidArguments: the job has no argument of one of the names, or `job` is none.
        """
        check_job(job)
        if isinstance(job, Job) and (unknown := arguments.keys() - job.signature.parameters.keys()):
            known = ", ".join(job.signature.parameters) or "none"
            raise InvalidArguments(f"job {job.name} has no argument {', '.join(sorted(unknown))}; it has {known}")
        name = job if isinstance(job, str) else job.name
        return [run for run in self.runs if run.job == name and self._has(run, job, arguments)]

    def assert_one(self, job: Job[..., Any] | str, **arguments: Any) -> EnqueuedRun:
        """Return the one run of a job that has these values; fail if there is none, or more than one."""
        found = self.of(job, **arguments)
        if len(found) != 1:
            raise AssertionError(self._explain(f"{len(found)} runs of {_describe(job, arguments)}, not 1"))
        return found[0]

    def assert_none(self, job: Job[..., Any] | str | None = None, **arguments: Any) -> None:
        """Fail if a run of a job was enqueued that has these values; without a job, if any run was."""
        found = self.runs if job is None else self.of(job, **arguments)
        what = "runs" if job is None else f"runs of {_describe(job, arguments)}"
        if found:
            raise AssertionError(self._explain(f"{len(found)} {what}, not 0"))

    def _has(self, run: EnqueuedRun, job: Job[..., Any] | str, arguments: Mapping[str, Any]) -> bool:
        known = job if isinstance(job, Job) else self._jobs.get(job)
        if known is None or run.payload.args:
            wanted = {name: to_json_values(run.job, name, value) for name, value in arguments.items()}
            return _contains(run.arguments, wanted)
        return _contains(known.decode_arguments([], run.arguments), arguments)

    def _explain(self, problem: str) -> str:
        lines = [f"  {_describe(run.job, run.arguments)}" for run in self.runs[:20]] or ["  nothing"]
        return "\n".join([f"{problem}; enqueued were:", *lines])

    # --- run

    async def run_all(self, jobs: Iterable[Job[..., Any]] = ()) -> list[Any]:
        """Run the enqueued runs one after the other, in their order, and what they enqueue and what follows them.

        Delays, priorities and limits do not count. A run that has ended has its result, as after a worker. The database
        of the jobs is that of the fixture `longhaul_database`.

        Args:
            jobs: jobs that were enqueued by name; those of `worker.packages` are known.

        Returns:
            The results, in the order in which the runs have ended.

        Raises:
            BaseException: the error of a job. The run stays in `runs`.
        """
        self._jobs |= {one.name: one for one in jobs}
        runner, results = await self._make_runner(), []
        while self.runs:
            run = self.runs[0]
            job = self._find(run.job)
            value = await runner.run_values(job, run.id, run.payload.args, run.payload.kwargs)
            self.runs.remove(run)
            results.append(value)
            await self._finish(run, job.encode_result(value))
            if len(results) > _MOST_RUNS:
                raise RuntimeError(f"run_all: {_MOST_RUNS:,} runs have ended, and each enqueues more")
        return results

    def clear(self) -> None:
        """Forget the runs that were enqueued so far. Their ids stay known to the queue."""
        self.runs.clear()

    def _find(self, name: str) -> Job[..., Any]:
        if name not in self._jobs:
            self._jobs = dict(discover(self._settings.worker.packages)) | self._jobs
        if name not in self._jobs:
            raise UnknownJob(f"run_all: there is no job {name!r}: pass it, run_all([{name}])")
        return self._jobs[name]

    async def _finish(self, run: EnqueuedRun, result: str) -> None:
        """Store the result of a run, and enqueue what follows it, as the script of a worker does."""
        raw = encode_result(
            run.payload,
            Result(True, None),
            run_id=run.id,
            queue=run.queue,
            attempt=1,
            started_ms=now_ms(),
            result_json=result,
        )
        redis = self._store.redis
        for operation in (
            redis.set(keys.RESULT + run.id, raw, px=_RESULT_MS),
            redis.delete(keys.JOB + run.id),
            redis.zrem(run.queue, run.id),
        ):
            run_without_loop(cast(Any, operation))
        following = make_follow_up(run.payload, run_id=run.id, queue=run.queue, success=True, result=result)
        if following is None:
            return
        if "put" in following:
            put = following["put"]
            run_without_loop(self._store.enqueue(put["id"], put["payload"], queue=put["queue"]))
            return
        group, place, wanted, *_ = following["group"]
        self._complete(group, int(place), wanted or "null")

    def _complete(self, group: str, place: int, result: str) -> None:
        """Count a member of a group that has ended. Enqueue the callback after the last one."""
        done = self._done.setdefault(group, {})
        done[place] = result
        raw = run_without_loop(cast(Any, self._store.redis.hgetall(keys.GROUP + group)))
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        if len(done) == int(fields["size"]) and "payload" in fields:
            after = fields["payload_after_results"]
            results = "[" + ",".join(done[at] for at in sorted(done)) + "]" if after else ""
            payload = fields["payload"] + results + after
            run_without_loop(self._store.enqueue(fields["id"], payload, queue=fields["queue"]))

    # --- record

    def note_job(self, job: Job[..., Any] | None) -> None:
        """Remember a job, to run it later."""
        if job is not None:
            self._jobs[job.name] = job

    def add(
        self, run_id: str, payload: str, *, queue: str, delay: float = 0.0, at: datetime | None = None, **options: Any
    ) -> None:
        """Record a run that has reached the queue."""
        read = decode_payload(payload.encode(), accept_pickle=False)
        self.runs = [run for run in self.runs if run.id != run_id]  # it was replaced
        due_at = at or (datetime.now(UTC) + timedelta(seconds=delay) if delay else None)
        arguments = dict(read.kwargs)
        known = self._jobs.get(read.function)
        if read.args and known is not None:
            arguments = json.loads(known.codec.encode_arguments(read.args, read.kwargs))
        self.runs.append(
            EnqueuedRun(
                id=run_id,
                job=read.function,
                arguments=arguments,
                queue=queue,
                due_at=due_at,
                priority=options.get("priority", 0),
                headers=dict(read.headers),
                next_jobs=tuple(call["f"] for call in read.next_calls),
                group=read.group,
                payload=read,
            )
        )

    def _put_row(self, row: Mapping[str, Any]) -> None:
        """Enqueue a row of the outbox whose transaction has committed, as the relay does."""
        options = row["options"] or {}
        lock = Lock(options["lock"], options["counts"], options["lock_ms"]) if "lock" in options else None
        run_without_loop(
            self._store.enqueue(
                row["run_id"],
                row["payload"],
                queue=row["queue"],
                delay=row["delay"] or 0.0,
                at=datetime.fromisoformat(row["at"]) if row["at"] else None,
                replace=options.get("replace", False),
                lock=lock,
                priority=row["priority"],
                fair=options.get("fair", ""),
            )
        )


class _RecordingStore(QueueStore):
    """A store that tells the recorder which runs are new."""

    def __init__(self, redis: Redis, recorder: Recorder) -> None:
        super().__init__(redis)
        self._recorder = recorder

    async def enqueue(self, run_id: str, payload: str, **options: Any) -> Enqueued:
        """Put a job into the queue; see `QueueStore.enqueue`."""
        put = await super().enqueue(run_id, payload, **options)
        if put.is_new or put.replaced:
            self._recorder.add(put.run_id, payload, **options)
        return put

    async def enqueue_many(self, jobs: Sequence[tuple[str, str]], **options: Any) -> frozenset[int]:
        """Enqueue jobs; see `QueueStore.enqueue_many`."""
        known = await super().enqueue_many(jobs, **options)
        for place, (run_id, payload) in enumerate(jobs):
            if place not in known:
                self._recorder.add(run_id, payload, **{**options, "group": None})
        return known


class _RecordingClient(Client):
    """A client that tells the recorder which jobs it has seen."""

    def __init__(self, settings: Settings, redis: Redis, recorder: Recorder) -> None:
        super().__init__(settings, redis=redis)
        self._recorder = recorder
        self._reader.store = _RecordingStore(redis, recorder)

    async def enqueue(self, job: Any, /, *args: Any, **kwargs: Any) -> Run[Any]:
        """Enqueue a run of a job; see `Client.enqueue`."""
        self._note(job)
        return await super().enqueue(job, *args, **kwargs)

    async def enqueue_many(self, job: Any, calls: Iterable[Mapping[str, Any]], /) -> list[Run[Any]]:
        """Enqueue many runs of a job; see `Client.enqueue_many`."""
        self._note(job)
        return await super().enqueue_many(job, calls)

    async def group(self, calls: Iterable[Call[Any]], /, *, then: Any = None, **options: Any) -> Group[Any]:
        """Enqueue a group; see `Client.group`."""
        members = list(calls)
        for call in [*members, *([] if then is None else [then])]:
            for one in call.chain:
                self._note(one.job)
        return await super().group(members, then=then, **options)

    def _writing_to(self, session: Any, job: Any) -> Enqueuer:
        self._note(job)
        return replace(self._enqueuer, outbox=self._recorder._outbox.writer(session, job))

    def _note(self, job: Any) -> None:
        if isinstance(job, Job):
            self._recorder.note_job(job)
            for first in job.enqueue_options.then:
                for call in first.chain:
                    self._recorder.note_job(call.job)


def _contains(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] == value for name, value in wanted.items())


def _describe(job: Job[..., Any] | str, arguments: Mapping[str, Any]) -> str:
    name = job if isinstance(job, str) else job.name
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
