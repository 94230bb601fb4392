"""Reads a snapshot of Redis: the overview of `worker status`, and lists of runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.decoding import read_json, read_time
from worker.queue.key_problems import printable
from worker.queue.payload import now_ms
from worker.queue.run import Status, decode_fields, read_status

if TYPE_CHECKING:
    from worker.settings import Settings

_RUNS_SHOWN = 100
_PAGE = 500


@dataclass(frozen=True)
class WorkerStatus:
    """A worker, as it published itself.

    Attributes:
        name: its name.
        state: `running`, `draining` and the like; `lost` if it was not seen for the lifetime of a lease.
        queue: the queue of its settings.
        queues: the queues that it claims from.
        jobs: ids of the runs that it has claimed.
        seen_at: when it published itself last.
        pid: its process; None if it did not publish one. The same applies to the two fields below.
        host: its machine.
        max_jobs: the most runs that it runs at once.
        fields: everything that it published, by name.
    """

    name: str
    state: str
    queue: str
    queues: tuple[str, ...]
    jobs: tuple[str, ...]
    seen_at: datetime
    pid: int | None
    host: str | None
    max_jobs: int | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """A run in Redis.

    Attributes:
        id: id of the run.
        job: name of its job; `?` if it is not known.
        state: its state.
        due_at: its due time; None if it is not in the queue.
        fields: the hash `worker:run:<id>`; empty before its first attempt. In an `Overview` it also has the run's `id`,
            `job` and `state`, and `due_seconds` if the run waits.
    """

    id: str
    job: str
    state: Status
    due_at: datetime | None
    fields: dict[str, str]


@dataclass(frozen=True)
class Overview:
    """A snapshot of queue, workers, runs and operator commands.

    Attributes:
        queue: name of the queue.
        waiting: number of due jobs that no worker has claimed.
        deferred: number of jobs that are due later.
        running: number of claimed jobs.
        dead_letters: number of entries of `worker:dead`.
        paused: entries of `worker:paused`.
        cancelled: entries of `worker:cancelled`.
        workers: the workers, by name.
        runs: the first hundred running or waiting runs.
    """

    queue: str
    waiting: int
    deferred: int
    running: int
    dead_letters: int
    paused: list[str]
    cancelled: list[str]
    workers: dict[str, WorkerStatus]
    runs: list[RunSummary]


async def overview(redis: Redis, settings: Settings) -> Overview:
    """Read the overview in two round trips."""
    queue = settings.worker.queue
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcount(queue, "-inf", now_ms())
    pipeline.zcount(queue, f"({now_ms()}", "+inf")
    pipeline.hlen(keys.DEAD)
    pipeline.smembers(keys.PAUSED)
    pipeline.smembers(keys.CANCELLED)
    pipeline.hgetall(keys.WORKERS)
    pipeline.zrange(queue, 0, _RUNS_SHOWN - 1, withscores=True)
    # A key of another type counts as an empty one: `worker doctor` reports it.
    answers: list[Any] = await pipeline.execute(raise_on_error=False)
    defaults: list[Any] = [0, 0, 0, [], [], {}, []]
    due, deferred, dead, paused, cancelled, raw_workers, entries = (
        default if isinstance(answer, ResponseError) else answer
        for answer, default in zip(answers, defaults, strict=True)
    )
    described = describe_workers(raw_workers, settings.worker.lease_seconds, datetime.now(UTC))
    workers = {name: _make_worker(name, fields) for name, fields in described.items()}
    owners = {
        run_id: worker.name
        for worker in workers.values()
        if worker.state != "lost" and worker.queue == queue
        for run_id in worker.jobs
    }
    scores = {run_id.decode(errors="backslashreplace"): score for run_id, score in entries}
    ids = list(dict.fromkeys([*list(owners)[:_RUNS_SHOWN], *scores]))
    return Overview(
        queue=queue,
        waiting=due,
        deferred=max(0, deferred - len(owners)),  # a running job stays in the queue, due when its lease expires
        running=len(owners),
        dead_letters=dead,
        paused=sorted(member.decode(errors="backslashreplace") for member in paused),
        cancelled=sorted(member.decode(errors="backslashreplace") for member in cancelled),
        workers=workers,
        runs=await _runs(redis, ids, owners, scores),
    )


def _make_worker(name: str, fields: dict[str, Any]) -> WorkerStatus:
    pid, host, slots = fields.get("pid"), fields.get("host"), fields.get("max_jobs")
    queues = fields.get("queues")  # older workers publish none
    return WorkerStatus(
        name=name,
        state=fields["state"],
        queue=fields["queue"],
        queues=tuple(map(str, queues)) if isinstance(queues, list) else (fields["queue"],),
        jobs=tuple(fields["jobs"]),
        seen_at=datetime.fromisoformat(fields["seen_at"]),
        pid=pid if type(pid) is int else None,
        host=host if isinstance(host, str) else None,
        max_jobs=slots if type(slots) is int else None,
        fields=fields,
    )


def describe_workers(raw: Mapping[bytes, bytes], lease_seconds: float, now: datetime) -> dict[str, dict[str, Any]]:
    """Return the published fields of workers, by name. Omit values that no worker wrote.

    Args:
        raw: fields of `worker:workers`.
        lease_seconds: silence in seconds after which a worker counts as `lost`, and others claim its jobs.
        now: the current time.
    """
    workers: dict[str, dict[str, Any]] = {}
    for name, text in sorted(raw.items()):
        worker = read_worker(text)
        if worker is None:
            continue
        if (now - worker["seen_at"]).total_seconds() > lease_seconds:
            worker["state"] = "lost"
        workers[printable(name)] = worker | {"seen_at": worker["seen_at"].isoformat()}
    return workers


def read_worker(raw: bytes) -> dict[str, Any] | None:
    """Return the published fields of a worker, with `seen_at` as an aware time; None if no worker wrote them."""
    try:
        worker = read_json(raw, "the worker")
        seen_at = read_time(worker["seen_at"])
        texts, jobs = (worker["state"], worker["queue"]), worker["jobs"]
    except (InvalidPayload, ValueError, KeyError, TypeError):
        return None
    if not all(isinstance(text, str) for text in texts) or not isinstance(jobs, list) or seen_at is None:
        return None
    described: dict[str, Any] = worker | {"seen_at": seen_at, "jobs": [job for job in jobs if isinstance(job, str)]}
    return described


async def _runs(redis: Redis, ids: list[str], owners: dict[str, str], scores: dict[str, float]) -> list[RunSummary]:
    """Return the running and waiting runs from their mirrors, or from the queue if a run has no mirror."""
    if not ids:
        return []
    pipeline = redis.pipeline(transaction=False)
    for run_id in ids:
        pipeline.hgetall(keys.RUN + run_id)
        pipeline.get(keys.JOB + run_id)
    answers = [None if isinstance(one, Exception) else one for one in await pipeline.execute(raise_on_error=False)]
    runs = []
    for run_id, mirror, payload in zip(ids, answers[::2], answers[1::2], strict=True):
        line = {"id": run_id} | decode_fields(mirror or {})
        line.setdefault("job", _job_name(payload))
        if run_id not in owners:
            seconds = scores.get(run_id, 0.0) / 1000 - now_ms() / 1000
            if line.get("state") != "paused":
                line["state"] = "deferred" if seconds > 0 else "waiting"
            line["due_seconds"] = str(round(max(0.0, seconds), 1))
            line["worker"] = ""
        state = cast(Status, line.setdefault("state", "running"))
        runs.append(RunSummary(run_id, line["job"], state, _to_datetime(scores.get(run_id)), line))
    return runs


def describe_payload(payload: bytes | None) -> tuple[str, Any]:
    """Return the name of a payload's job, and its arguments by name, preceded by a list of positional ones if any.

    If the payload cannot be read, the name is `?`, and there are no arguments.
    """
    try:
        values = read_json(payload or b"", "the payload")
        job, positional, named = str(values["f"]), values.get("a"), values.get("k")
    except (InvalidPayload, KeyError, TypeError, AttributeError):
        return "?", None
    return job, [*positional, named] if isinstance(positional, list) and positional else named


def _job_name(payload: bytes | None) -> str:
    return describe_payload(payload)[0]


# --- a list of runs


async def list_runs(
    redis: Redis,
    settings: Settings,
    *,
    job: str | None = None,
    state: Status | None = None,
    search: str | None = None,
    limit: int = 100,
) -> list[RunSummary]:
    """Return runs of the queue by due time, and then runs that have ended; see `Client.runs`."""
    wanted = None if search is None else search.casefold()
    found: list[RunSummary] = []
    async for ids in _pages_of_ids(redis, settings.worker.queue):
        for run in await _summaries(redis, ids, settings.worker.queue):
            if (
                (job is None or run.job == job)
                and (state is None or run.state == state)
                and (wanted is None or _contains(run, wanted))
            ):
                found.append(run)
                if len(found) >= limit:
                    return found
    return found


def _contains(run: RunSummary, wanted: str) -> bool:
    texts = (run.id, run.job, run.fields.get("error", ""), run.fields.get("worker", ""))
    return any(wanted in text.casefold() for text in texts)


async def _pages_of_ids(redis: Redis, queue: str) -> AsyncIterator[list[str]]:
    """Yield ids of the queue, and then of all mirrors that are not in it, some hundred at a time."""
    seen: set[str] = set()
    first = 0
    while page := await redis.zrange(queue, first, first + _PAGE - 1):
        ids = [name.decode(errors="backslashreplace") for name in page]
        yield [run_id for run_id in ids if run_id not in seen]
        seen.update(ids)
        first += _PAGE
    cursor, batch = 0, []
    while True:
        cursor, names = await redis.scan(cursor, match=f"{keys.RUN}*", count=1000)
        for name in names:
            run_id = name.decode(errors="backslashreplace").partition(keys.RUN)[2]  # behind a namespace
            if run_id not in seen:
                seen.add(run_id)
                batch.append(run_id)
        if batch and (len(batch) >= _PAGE or cursor == 0):
            yield batch
            batch = []
        if cursor == 0:
            return


async def _summaries(redis: Redis, ids: list[str], queue: str) -> list[RunSummary]:
    if not ids:
        return []
    pipeline = redis.pipeline(transaction=False)
    for run_id in ids:
        pipeline.get(keys.RESULT + run_id)
        pipeline.exists(keys.IN_PROGRESS + run_id)
        pipeline.zscore(queue, run_id)
        pipeline.hgetall(keys.RUN + run_id)
        pipeline.get(keys.JOB + run_id)
    answers = await pipeline.execute(raise_on_error=False)
    runs = []
    for at, run_id in enumerate(ids):
        result, running, score, mirror, payload = (
            None if isinstance(answer, Exception) else answer for answer in answers[5 * at : 5 * at + 5]
        )
        state, fields = read_status(result, bool(running), score, mirror or {})
        due = _to_datetime(score)
        runs.append(RunSummary(run_id, fields.get("job") or _job_name(payload), state, due, fields))
    return runs


def _to_datetime(score: float | None) -> datetime | None:
    """Return a due time; None for a score that a datetime cannot hold."""
    return None if score is None else read_time(score / 1000)
