"""Reads of runs: the list, one run, its steps, batches and hands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from redis.exceptions import ResponseError

from worker.errors import InvalidPayload
from worker.ledger.records import DeadRun, KnownRun, RunRecord, Sample, StepRecord
from worker.plan.report import make_report
from worker.queue import keys
from worker.queue.dead_letters import DeadLetter
from worker.queue.decoding import read_json
from worker.queue.overview import describe_payload
from worker.queue.result import decode_result
from worker.queue.run import read_status
from worker.web.backend import Backend
from worker.web.bodies import RunsQuery
from worker.web.event_hub import Message
from worker.web.event_kinds import ENDS
from worker.web.event_log import read_targets
from worker.web.fields import Page, invalid_cursor, make_cursor, read_count, read_cursor, read_moment, read_number
from worker.web.operations import Call
from worker.web.pauses import list_pauses
from worker.web.problems import not_found
from worker.web.run_cache import read_mirrors
from worker.web.run_lives import add_lives, note_due, note_enqueued, read_due_times
from worker.web.views import (
    BatchView,
    EventView,
    HandsView,
    HandView,
    LogLineView,
    RangeView,
    RunDetail,
    RunState,
    RunView,
    StepView,
)


async def list_runs(call: Call) -> Page[RunView]:
    """Return a page of the ledger's runs, newest first; those that have not ended with their progress."""
    query: RunsQuery = call.query
    key = ("runs", query.job, query.state, query.search, query.cursor, query.limit)
    return await call.backend.reads.get(key, lambda: _list_runs(call.backend, query))


async def _list_runs(backend: Backend, query: RunsQuery) -> Page[RunView]:
    before = None
    if place := read_cursor(query.cursor, str, str):
        moment = read_moment(place[0])
        if moment is None:
            raise invalid_cursor()
        before = (moment, place[1])
    records = await backend.ledger.list_runs(
        job=query.job, state=query.state, search=query.search, before=before, limit=query.limit
    )
    mirrors = await read_mirrors(backend.client, [one.id for one in records if one.finished_at is None])
    last = records[-1] if len(records) == query.limit else None
    due = await read_due_times(backend, records)
    runs = [RunView(**note_due(describe_record(one, mirrors.get(one.id, {})), due.get(one.id))) for one in records]
    return Page[RunView](
        items=await add_lives(backend, runs),
        next_cursor=None if last is None else make_cursor(last.created_at.isoformat(), last.id),
    )


def describe_mirror(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a run that its mirror has."""
    return {
        "queue": fields.get("queue"),
        "attempt": read_count(fields.get("attempt")),
        "takeovers": read_count(fields.get("takeovers")),
        "rows": read_count(fields.get("rows")),
        "batches": read_count(fields.get("batches")),
        "total": read_count(fields.get("total")),
        "percent": cap_share(read_number(fields.get("percent")), is_over=fields.get("state") in ENDS),
        "percent_is_estimate": bool(fields.get("percent_is_estimate")),
        "percent_by": fields.get("percent_by") or None,
        "rate": read_number(fields.get("rate")),
        "eta_seconds": read_number(fields.get("eta_seconds")),
        "batch_size": read_count(fields.get("batch_size")),
        "batch_ms": read_number(fields.get("batch_ms")),
        "step": fields.get("step"),
        "hands": read_count(fields.get("hands")),
        "helps": fields.get("helps") or None,
        "worker": fields.get("worker") or None,
        "throttled": fields.get("throttled") or None,
        "throttled_since": read_moment(fields.get("throttled_since")),
        "throttled_until": read_moment(fields.get("throttled_until")),
        "throttled_by": fields.get("throttled_by") or None,
        "stalled_since": read_moment(fields.get("stalled_since")),
        "error": fields.get("error") or None,
        "started_at": read_moment(fields.get("started_at")),
        "updated_at": read_moment(fields.get("updated_at")),
        "finished_at": read_moment(fields.get("finished_at")),
    }


def cap_share(percent: float | None, *, is_over: bool) -> float | None:
    """Return a percentage, which is 100 only of what is over: an estimate, and a rounded figure, may be before."""
    return percent if percent is None or is_over else min(percent, 99.9)


def describe_record(run: RunRecord, mirror: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a run of the ledger, with the progress of its mirror if it has not ended."""
    values = describe_mirror(mirror) if run.finished_at is None else {}
    values |= {
        "id": run.id,
        "job": run.job,
        "queue": run.queue,
        "state": run.state,
        "attempt": run.attempt,
        "takeovers": run.takeovers,
        "rows": run.rows,
        "batches": run.batches,
        "total": run.total,
        "quarantined": run.quarantined,
        "worker": run.owner,
        "error": run.error or values.get("error"),
        "created_at": run.created_at,
        "started_at": run.started_at,
        "updated_at": run.updated_at,
        "finished_at": run.finished_at,
        "in_ledger": True,
    }
    return values


def describe_event(message: Message) -> EventView:
    """Return an event of the stream."""
    return EventView(id=message.id, event=message.fields.get("event", "?"), fields=message.fields)


# --- one run


async def show_run(call: Call) -> RunDetail:
    """Return one run, of the ledger or of Redis alone."""
    return await read_run(call.backend, call.path["run_id"])


async def read_run(backend: Backend, run_id: str) -> RunDetail:
    """Return one run.

    Raises:
        Problem: neither server has it.
    """
    return await backend.reads.get(("run", run_id), lambda: _read_run(backend, run_id))


async def _read_run(backend: Backend, run_id: str) -> RunDetail:
    queue = backend.settings.worker.queue
    records = await backend.ledger.list_runs(run_id=run_id, limit=1)
    record = records[0] if records else None
    queue = record.queue if record else queue
    pipeline = backend.client.redis.pipeline(transaction=False)
    pipeline.get(keys.RESULT + run_id)
    pipeline.exists(keys.IN_PROGRESS + run_id)
    pipeline.zscore(queue, run_id)
    pipeline.hgetall(keys.RUN + run_id)
    pipeline.get(keys.JOB + run_id)
    pipeline.hget(keys.DEAD, run_id)
    pipeline.hget(keys.PACE, run_id)
    answers = await backend.client.command(pipeline.execute(raise_on_error=False))
    found = [None if isinstance(answer, ResponseError) else answer for answer in answers]
    raw, running, score, mirror, payload, letter, pace = found
    state, fields = _read_state(raw, bool(running), score, mirror or {})
    values: dict[str, Any]
    if record is not None:
        known = await backend.ledger.find(run_id)
        dead = await backend.ledger.list_dead(ids=[run_id]) if record.state == "dead" else []
        values = describe_record(record, fields) | _describe_known(record, known, dead)
    else:
        values = _describe_redis(run_id, state, fields, raw, payload, letter)
    # A run that a worker has claimed stays in the queue, due when its lease expires.
    is_settled = bool(running) or (record is not None and record.finished_at is not None)
    values = note_due(values, None if score is None or is_settled else read_moment(score / 1000))
    values["pace"] = read_number(pace)
    values["pauses"] = await list_pauses(backend, (run_id, values["job"], values.get("queue") or queue, keys.ALL))
    values["paused_by"] = [one.name for one in values["pauses"]]
    if record is not None:
        values["quarantined"] = await backend.ledger.quarantine.count_rows(run_id)
    [run] = await add_lives(backend, [RunDetail(**values)])
    return note_enqueued(run, payload)


def _read_state(
    raw: bytes | None, is_running: bool, score: float | None, mirror: dict[bytes, bytes]
) -> tuple[RunState, dict[str, str]]:
    try:
        return read_status(raw, is_running, score, mirror)
    except InvalidPayload:  # the result was changed by hand
        return read_status(None, is_running, score, mirror)


def _describe_known(record: RunRecord, known: KnownRun | None, dead: Sequence[DeadRun]) -> dict[str, Any]:
    try:
        # The third value, if any, is the run and the step whose quarantined rows this run processes.
        positional, named, *retried = json.loads(known.arguments) if known and known.arguments else ([], None)
    except (ValueError, RecursionError, TypeError):
        positional, named, retried = [], known.arguments if known else None, []
    return {
        "arguments": [*positional, named] if positional else named,
        "result": record.result,
        "parent": record.parent,
        "retries": retried[0][0] if retried else None,
        "traceback": dead[0].traceback if dead else None,
    }


def _describe_redis(
    run_id: str,
    state: RunState,
    fields: Mapping[str, str],
    raw: bytes | None,
    payload: bytes | None,
    raw_letter: bytes | None,
) -> dict[str, Any]:
    """Return the values of a run that only Redis has.

    Raises:
        Problem: Redis has nothing of it.
    """
    letter = None if raw_letter is None else DeadLetter.read(run_id, raw_letter)
    if state == "unknown" and letter is None:
        raise not_found(f"there is no run {run_id!r} in the queue or the ledger, and no dead letter")
    job, arguments = describe_payload(payload)
    values = describe_mirror(fields) | {
        "id": run_id,
        "job": fields.get("job") or job,
        "state": "dead" if state == "unknown" else state,
        "arguments": arguments,
        "in_ledger": False,
    }
    if raw is not None:
        values |= _describe_result(raw)
    if letter is not None and values["state"] == "dead":
        values |= {"job": letter.job, "queue": letter.queue, "attempt": letter.attempts, "arguments": letter.arguments}
        values |= {"error": letter.error, "traceback": letter.traceback}
        values["finished_at"] = values["finished_at"] or letter.at  # which has whole seconds
    return values


def _describe_result(raw: bytes) -> dict[str, Any]:
    """Return what a stored result tells of its run."""
    try:
        stored, result = read_json(raw, "the result"), decode_result(raw)
        job, positional, named = stored.get("f"), stored.get("a") or [], stored.get("k")
    except (InvalidPayload, AttributeError):
        return {}
    told = {"result": result.value} if result.success else {"error": str(result.value)}
    arguments = [*positional, named] if isinstance(positional, list) and positional else named
    return told | {"arguments": arguments} | ({"job": job} if isinstance(job, str) and job else {})


async def list_story(call: Call) -> Page[EventView]:
    """Return the events of a run and the orders that apply to it, oldest first, of those that Redis still has."""
    run = await read_run(call.backend, call.path["run_id"])
    names = (run.id, run.job, run.queue or call.backend.settings.worker.queue)
    events = await call.backend.event_log.list_events(names)
    items = [
        describe_event(one)
        for one in events
        if one.run_id == run.id or run.id in read_targets(one) or _is_within(one, run.created_at, run.finished_at)
    ]
    return Page[EventView](items=items)


def _is_within(order: Message, begun: datetime | None, ended: datetime | None) -> bool:
    """Return whether an order for a job, a queue or all was given while a run existed."""
    at = read_moment(order.fields.get("at"))
    return at is not None and begun is not None and begun <= at and (ended is None or at <= ended)


# --- its parts


async def _find_record(call: Call) -> RunRecord:
    run_id = call.path["run_id"]
    found = await call.backend.reads.get(
        ("record", run_id), lambda: call.backend.ledger.list_runs(run_id=run_id, limit=1)
    )
    if not found:
        raise not_found(f"the ledger has no run {run_id!r}: only runs with a durable loop or step have these parts")
    return found[0]


async def list_steps(call: Call) -> Page[StepView]:
    """Return the steps of a run, in their order."""
    record = await _find_record(call)
    return Page[StepView](items=[_describe_step(step) for step in record.steps])


def _describe_step(step: StepRecord) -> StepView:
    pace = step.pace if isinstance(step.pace, dict) else {}
    share = 1.0 if step.done else read_number(pace.get("share"))
    by = pace.get("by")
    return StepView(
        name=step.name,
        position=step.position,
        kind=step.kind,
        statement=step.statement,
        key=step.key,
        cursor=step.cursor,
        upper_bound=step.upper_bound,
        rows=step.rows,
        batches=step.batches,
        total=step.total,
        done=step.done,
        percent=cap_share(None if share is None else round(100 * share, 1), is_over=step.done),
        percent_is_estimate=bool(pace.get("is_estimate")) and not step.done,
        percent_by=by if isinstance(by, str) and not step.done else None,
        ranges=step.ranges,
        code_version=step.code_version,
        result=step.result,
        started_at=step.started_at,
        updated_at=step.updated_at,
    )


async def list_batches(call: Call) -> Page[BatchView]:
    """Return the samples of a run: rows, batches and rate over time."""
    record = await _find_record(call)
    samples = await call.backend.reads.get(("samples", record.id), lambda: call.backend.ledger.list_samples(record.id))
    before: dict[str, Sample] = {}
    items = []
    for sample in samples:
        last = before.get(sample.step)
        span = (sample.at - last.at).total_seconds() if last else 0.0
        rate = round((sample.rows - last.rows) / span, 1) if last and span > 0 else None
        items.append(
            BatchView(
                step=sample.step,
                at=sample.at,
                attempt=sample.attempt,
                rows=sample.rows,
                batches=sample.batches,
                rows_per_second=rate,
                seconds=sample.seconds,
            )
        )
        before[sample.step] = sample
    return Page[BatchView](items=items)


async def list_log(call: Call) -> Page[LogLineView]:
    """Return the last lines of a run's log, oldest first; none if the run is unknown."""
    run_id = call.path["run_id"]
    lines = await call.backend.reads.get(("log", run_id), lambda: call.backend.client.run_log(run_id))
    return Page[LogLineView](items=[LogLineView(**vars(line)) for line in lines])


async def list_hands(call: Call) -> HandsView:
    """Return the hands of a run, and the ranges of its walks."""
    record = await _find_record(call)
    report = await call.backend.reads.get(("report", record.id), lambda: make_report(call.backend.database, record.id))
    hands = [] if report is None else report.hands
    return HandsView(
        hands=[HandView(id=one["id"], state=one["state"], worker=one["owner"], rows=one["rows"]) for one in hands],
        ranges=[
            RangeView(
                step=one.step,
                number=one.number,
                lower=one.lower,
                upper=one.upper,
                cursor=one.cursor,
                rows=one.rows,
                batches=one.batches,
                done=one.done,
                owner=one.owner,
                error=one.error,
                started_at=one.started_at,
                updated_at=one.updated_at,
            )
            for one in record.ranges
        ],
    )
