"""Reads of queues, workers, jobs, cron lines, limits and checks, and what monitoring systems ask for."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import ResponseError
from starlette.responses import Response

from worker.doctor.checks import examine
from worker.errors import LonghaulError, RegistrationError, UsageError
from worker.job.definition import Job
from worker.job.registry import Registry
from worker.plan.plan import ensure_has_loops
from worker.queue import keys
from worker.queue.overview import describe_workers
from worker.queue.payload import now_ms
from worker.queue.run import decode_fields
from worker.settings import Settings
from worker.web.backend import Backend
from worker.web.fields import Page, read_count, read_moment, read_number
from worker.web.job_views import JobView
from worker.web.operations import Call, Reply
from worker.web.problems import not_found
from worker.web.run_lives import add_lives, note_due
from worker.web.run_reads import describe_mirror
from worker.web.views import (
    FindingView,
    HealthView,
    HistoryView,
    LimitView,
    OverviewView,
    QueueView,
    RunView,
    WorkerView,
)

_RUNS_SHOWN = 100
_FIELDS = 1_000  # of a hash or a set that is read in one step
_MOST_QUEUES = 100
_MOST_QUARANTINED = 10_000
_SLOW_SECONDS = 5.0
_DAY_MS = 86_400_000


async def show_overview(call: Call) -> OverviewView:
    """Return the queues, the workers and the first runs."""
    return await read_overview(call.backend)


async def read_overview(backend: Backend) -> OverviewView:
    """Return the overview, from one read for all requests of the moment."""
    overview = await backend.reads.get("overview", lambda: _read_overview(backend))
    count = await backend.reads.get("quarantined", lambda: _count_quarantined(backend), seconds=_SLOW_SECONDS)
    return overview.model_copy(update={"quarantined": count})


async def _count_quarantined(backend: Backend) -> int | None:
    try:
        return await backend.ledger.quarantine.count_all(_MOST_QUARANTINED)
    except LonghaulError:  # the figures of Redis are shown all the same
        return None


async def read_totals(backend: Backend) -> OverviewView:
    """Return the overview without its runs."""
    return await backend.reads.get("totals", lambda: _read_overview(backend, has_runs=False))


async def _read_overview(backend: Backend, *, has_runs: bool = True) -> OverviewView:
    redis = backend.client.redis
    pipeline = redis.pipeline(transaction=False)
    pipeline.hscan(keys.WORKERS, 0, count=_FIELDS)
    pipeline.sscan(keys.PAUSED, 0, count=_FIELDS)
    pipeline.sscan(keys.CANCELLED, 0, count=_FIELDS)
    pipeline.hlen(keys.DEAD)
    pipeline.zcount(keys.DEAD_AT, now_ms() - _DAY_MS, "+inf")
    raw_workers, raw_paused, raw_cancelled, dead, failed = _without_errors(
        await backend.client.command(pipeline.execute(raise_on_error=False)), [(0, {}), (0, []), (0, []), 0, 0]
    )
    moment = datetime.now(UTC)
    seen = describe_workers(raw_workers[1], backend.settings.worker.lease_seconds, moment)
    paused, cancelled = (sorted(_decode(one) for one in set(raw[1])) for raw in (raw_paused, raw_cancelled))
    names = _list_queues(backend, seen)
    queues, scores = await _read_queues(backend, names, seen, set(paused))
    runs = await _read_runs(backend, seen, scores) if has_runs else []
    return OverviewView(
        at=moment,
        queues=[_count_claimed(queue, runs, scores) for queue in queues],
        workers=[_describe_worker(name, values) for name, values in seen.items()],
        runs=await add_lives(backend, runs),
        dead_letters=dead,
        failed_last_day=failed,
        paused=paused,
        cancelled=cancelled,
    )


def _count_claimed(queue: QueueView, runs: list[RunView], scores: dict[str, tuple[float, str]]) -> QueueView:
    """Return a queue with the runs as running that a worker has just claimed, and has not written yet."""
    count = sum(
        run.state == "running" and run.worker is None and scores.get(run.id, (0.0, ""))[1] == queue.name for run in runs
    )
    if not count:
        return queue
    return queue.model_copy(update={"running": queue.running + count, "deferred": max(0, queue.deferred - count)})


def _without_errors(answers: list[Any], defaults: list[Any]) -> list[Any]:
    """Return the answers of a pipeline. A key of another type counts as an empty one: the doctor reports it."""
    return [
        default if isinstance(answer, ResponseError) else answer
        for answer, default in zip(answers, defaults, strict=True)
    ]


def _decode(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _list_queues(backend: Backend, workers: dict[str, dict[str, Any]]) -> list[str]:
    settings = backend.settings.worker
    ours = dict.fromkeys([*(settings.queues or [settings.queue]), settings.queue])
    return list(ours | dict.fromkeys(sorted(str(one["queue"]) for one in workers.values())))[:_MOST_QUEUES]


async def _read_queues(
    backend: Backend, names: list[str], workers: dict[str, dict[str, Any]], paused: set[str]
) -> tuple[list[QueueView], dict[str, tuple[float, str]]]:
    """Return the queues, and due time in ms and queue of the first runs of each, by id."""
    moment = now_ms()
    pipeline = backend.client.redis.pipeline(transaction=False)
    for name in names:
        pipeline.zcount(name, "-inf", moment)
        pipeline.zcount(name, f"({moment}", "+inf")
        pipeline.zrange(name, 0, _RUNS_SHOWN - 1, withscores=True)
    answers = await backend.client.command(pipeline.execute(raise_on_error=False))
    found: list[QueueView] = []
    scores: dict[str, tuple[float, str]] = {}
    for at, name in enumerate(names):
        waiting, later, first = _without_errors(answers[3 * at : 3 * at + 3], [0, 0, []])
        running = sum(
            len(worker["jobs"]) for worker in workers.values() if worker["queue"] == name and worker["state"] != "lost"
        )
        scores |= {_decode(run_id): (score, name) for run_id, score in first}
        found.append(
            QueueView(
                name=name,
                waiting=waiting,
                deferred=max(0, later - running),  # a running job stays in the queue, due when its lease expires
                running=running,
                oldest_due_at=read_moment(first[0][1] / 1000) if waiting and first else None,
                is_paused=not paused.isdisjoint((name, keys.ALL)),
            )
        )
    return found, scores


async def _read_runs(
    backend: Backend, workers: dict[str, dict[str, Any]], scores: dict[str, tuple[float, str]]
) -> list[RunView]:
    """Return the first running and waiting runs from their mirrors, or from the queue if a run has no mirror."""
    owners = {
        run_id: (name, worker)
        for name, worker in workers.items()
        if worker["state"] != "lost"
        for run_id in worker["jobs"]
    }
    ids = list(dict.fromkeys([*owners, *sorted(scores, key=lambda one: scores[one][0])]))[:_RUNS_SHOWN]
    marks = {one: (owners[one][0], owners[one][1]["seen_at"]) if one in owners else scores[one] for one in ids}
    now = now_ms()
    later = {run_id for run_id in ids if run_id not in owners and scores[run_id][0] > now}
    known = await backend.runs.read(marks, claims=later)
    runs = []
    for run_id in ids:
        fields, job, is_claimed = known[run_id]
        values = describe_mirror(fields) | {"id": run_id, "job": job}
        score, queue = scores.get(run_id, (0.0, None))
        if run_id in owners and not fields and job == "?":
            continue  # a short run: it has ended since its worker has written, and left nothing
        if run_id in owners:
            values |= {"state": "running", "worker": owners[run_id][0]}
            queue = queue or str(owners[run_id][1]["queue"])
        elif is_claimed and run_id in later:  # due when its lease expires; its worker has not written yet
            values |= {"state": "running"}
        else:
            due = "deferred" if score > now else "waiting"
            values |= {"state": "paused" if fields.get("state") == "paused" else due, "worker": None}
            values = note_due(values, read_moment(score / 1000))
        runs.append(RunView(**(values | {"queue": fields.get("queue") or queue, "in_ledger": "rows" in fields})))
    return runs


def _read_done(raw: Any) -> dict[str, int]:
    counts = {name: read_count(count) for name, count in raw.items()} if isinstance(raw, dict) else {}
    return {name: count for name, count in counts.items() if count is not None}


def _describe_worker(name: str, values: dict[str, Any]) -> WorkerView:
    done = read_count(values.get("done"))
    return WorkerView(
        name=name,
        state=values["state"],
        queue=values["queue"],
        jobs=values["jobs"],
        max_jobs=read_count(values.get("max_jobs")),
        done=done,
        done_by_queue=_read_done(values.get("done_by_queue")) or ({} if done is None else {values["queue"]: done}),
        memory_bytes=read_count(values.get("memory_bytes")),
        pid=read_count(values.get("pid")),
        host=str(values["host"]) if values.get("host") else None,
        code=str(values["code"]) if values.get("code") else None,
        started_at=read_moment(values.get("started_at")),
        seen_at=read_moment(values.get("seen_at")),
    )


async def list_workers(call: Call) -> Page[WorkerView]:
    """Return the workers, by name."""
    return Page[WorkerView](items=(await read_totals(call.backend)).workers)


async def list_queues(call: Call) -> Page[QueueView]:
    """Return the queues of the settings and of the workers."""
    return Page[QueueView](items=(await read_totals(call.backend)).queues)


async def show_history(call: Call) -> HistoryView:
    """Return the last hour of the queues."""
    call.backend.history.start(lambda: read_totals(call.backend))
    return call.backend.history.show()


# --- jobs


async def list_jobs(call: Call) -> Page[JobView]:
    """Return the jobs, by name."""
    jobs = await call.backend.load_jobs()
    return Page[JobView](items=[_describe_job(job, call.backend.settings) for _, job in sorted(jobs.items())])


async def show_job(call: Call) -> JobView:
    """Return one job."""
    job = (await call.backend.load_jobs()).find(call.path["job"])
    return _describe_job(job, call.backend.settings)


def find_timeout(job: Job[..., Any], settings: Settings) -> float:
    """Return the most seconds of an attempt of a job until its first durable loop or step."""
    return job.rules.timeout or settings.worker.job_timeout_seconds


def _describe_job(job: Job[..., Any], settings: Settings) -> JobView:
    limits = job.limits
    return JobView(
        name=job.name,
        description=inspect.getdoc(job.function) or "",
        cron=[str(line) for line in job.schedule],
        run_in=job.run_in,
        priority=job.priority,
        concurrency=limits.concurrency or None if limits else None,
        rate=str(job.rules.rate) if job.rules.rate else None,
        timeout_seconds=find_timeout(job, settings),
        is_unique=job.unique is not None,
        is_data_migration=job.rules.once,
        has_loops=_has_loops(job),
        arguments=job.codec.make_schema(),
    )


def _has_loops(job: Job[..., Any]) -> bool:
    try:
        ensure_has_loops(job, "the page")
    except UsageError:
        return False
    return True


# --- limits, checks


async def list_limits(call: Call) -> Page[LimitView]:
    """Return the limits and paces that operators and jobs set, by name."""
    return await call.backend.reads.get("limits", lambda: _list_limits(call.backend))


async def _list_limits(backend: Backend) -> Page[LimitView]:
    redis = backend.client.redis
    pipeline = redis.pipeline(transaction=False)
    for key in (keys.LIMITS, keys.RATES, keys.PACE):
        pipeline.hscan(key, 0, count=_FIELDS)
    answers = _without_errors(
        await backend.client.command(pipeline.execute(raise_on_error=False)), [(0, {}), (0, {}), (0, {})]
    )
    limits, rates, paces = (decode_fields(answer[1]) for answer in answers)
    try:
        jobs = {name: job for name, job in (await backend.load_jobs()).items() if job.limits is not None}
    except RegistrationError:  # the limits of operators are known all the same
        jobs = dict(Registry())
    names = sorted({*limits, *rates, *paces, *jobs})
    pipeline = redis.pipeline(transaction=False)
    for name in names:
        pipeline.zcard(keys.LIMIT + name)
        pipeline.zcard(keys.HELD + name)
    counts = [
        0 if isinstance(one, ResponseError) else one
        for one in (await backend.client.command(pipeline.execute(raise_on_error=False)) if names else [])
    ]
    items = []
    for at, name in enumerate(names):
        own = jobs[name].limits if name in jobs else None
        by = own.concurrency_key if own else None  # each value has places of its own, and there may be any number
        items.append(
            LimitView(
                name=name,
                concurrency=read_count(limits.get(name)),
                rate_per_second=read_number(rates.get(name)),
                rows_per_second=read_number(paces.get(name)),
                job_concurrency=own.concurrency or None if own else None,
                job_rate=jobs[name].rules.rate if name in jobs else None,
                by=by,
                running=None if by else counts[2 * at],
                held=None if by else counts[2 * at + 1],
            )
        )
    return Page[LimitView](items=items)


async def show_limit(call: Call) -> LimitView:
    """Return the limits of one name."""
    name = call.path["name"]
    found = next((one for one in (await list_limits(call)).items if one.name == name), None)
    if found is None:
        raise not_found(f"neither an operator nor a job has set a limit for {name!r}")
    return found


async def run_checks(call: Call) -> Page[FindingView]:
    """Run the checks of `worker doctor`."""
    found = await call.backend.reads.get("doctor", lambda: examine(call.backend.settings), seconds=_SLOW_SECONDS)
    return Page[FindingView](
        items=[
            FindingView(check=name, level=one.level, message=one.message, advice=one.advice)
            for name, one in found.items()
        ]
    )


# --- for monitoring systems


async def show_metrics(call: Call) -> Response:
    """Return the metrics of queues, outbox and servers, in the format of Prometheus."""
    answer = await call.backend.monitoring.metrics()
    return Response(answer.body, answer.status, headers={"Content-Type": answer.content_type})


async def check_liveness(call: Call) -> HealthView:
    """Return that the server lives: its event loop turns, because it answers."""
    return HealthView(status="ok", checks={})


async def check_readiness(call: Call) -> Reply:
    """Return whether the servers answer and the ledger is migrated."""
    health = await call.backend.monitoring.check()
    view = HealthView(status="ok" if health.is_well else "failing", checks=health.checks)
    return Reply(view, 200 if health.is_well else 503)
