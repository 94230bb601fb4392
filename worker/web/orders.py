"""Orders: enqueue, pause, resume, pace, limits, cancel, drain, retry, discard."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, cast

from worker.errors import InvalidArguments, LonghaulError, RegistrationError, ServerUnavailable
from worker.job.definition import Job
from worker.queue import keys
from worker.queue.audit import record_order
from worker.queue.conditions import make_entry, parse_entry
from worker.web.backend import Backend
from worker.web.bodies import (
    DeadLettersBody,
    DiscardBody,
    DrainBody,
    EnqueueBody,
    LimitBody,
    PaceBody,
    PauseBody,
    RetryBody,
    RetryRowsBody,
    RunNowBody,
    RunsBody,
)
from worker.web.effects import CountView, EnqueuedView, PacesView, RetriedRowsView, TargetsView
from worker.web.fields import read_number
from worker.web.idempotency import IdempotencyKeys
from worker.web.operations import Call, Reply
from worker.web.problems import Problem

IDEMPOTENCY_HEADER = "idempotency-key"


async def enqueue(call: Call) -> Reply:
    """Enqueue a run. With an `Idempotency-Key`, the same request again returns the same run."""
    body: EnqueueBody = call.body
    _check_queue(call.backend, body.queue)
    key = call.request.headers.get(IDEMPOTENCY_HEADER)
    if key is None:
        return await _reply(call, await _enqueue(call.backend, body, body.id))
    memory = IdempotencyKeys(call.backend.client, call.backend.settings.web.idempotency_hours)
    claim = await memory.claim(key, caller=call.caller.name, request=body.model_dump_json())
    if claim.is_done:
        return await _reply(call, EnqueuedView(id=claim.run_id, job=body.job, is_new=False))
    # A request that died in between, or one that is under way, used the same id: the run exists once.
    try:
        made = await _enqueue(call.backend, body, body.id or claim.run_id)
    except ServerUnavailable:
        raise  # the run may have been enqueued
    except LonghaulError:
        await memory.release(claim)  # nothing was enqueued: the client may correct the request
        raise
    await memory.finish(claim, made.id)
    return await _reply(call, made)


async def _reply(call: Call, made: EnqueuedView) -> Reply:
    """Return the response, after the run of an operator is recorded. Services may enqueue thousands a second."""
    if made.is_new and "operate" in call.caller.roles:
        client = call.backend.client
        await client.command(record_order(client.redis, "enqueue", [made.id], {"job": made.job}))
    return Reply(made, 201 if made.is_new else 200)


async def _enqueue(backend: Backend, body: EnqueueBody, run_id: str | None) -> EnqueuedView:
    """Enqueue a run by the rules of its job; if the jobs cannot be imported here, by its name."""
    client = backend.client
    try:
        job = (await backend.load_jobs()).find(body.job)
    except RegistrationError:
        run = await client.enqueue_by_name(
            body.job,
            body.arguments,
            id=run_id,
            delay=body.delay_seconds,
            at=body.at,
            queue=body.queue,
            priority=body.priority,
        )
    else:
        values = job.decode_arguments([], body.arguments)
        given = {name: values[name] for name in body.arguments}
        chosen = None if job.rules.once else run_id  # the id of a data migration is its name
        options = job.options(id=chosen, delay=body.delay_seconds, at=body.at, queue=body.queue, priority=body.priority)
        run = await client.enqueue(options, **given)
    backend.reads.forget()
    return EnqueuedView(id=run.id, job=body.job, is_new=run.is_new)


def _check_queue(backend: Backend, queue: str | None) -> None:
    """Raise `Problem` if a queue is a key that holds something else: a run in it would damage it."""
    ours = (None, backend.settings.worker.queue, *backend.settings.worker.queues)
    if queue not in ours and queue is not None and keys.find(queue, backend.settings.worker.queue) is not None:
        raise Problem(422, "invalid-arguments", f"body.queue: {queue!r} is a key of Longhaul, and no queue")


async def run_cron_job(call: Call) -> Reply:
    """Enqueue an extra run of a cron job. Its due times do not change."""
    body: RunNowBody = call.body
    job = await _find_cron_job(call.backend, call.path["job"])
    client = call.backend.client
    run = await client.trigger_cron(job, body.arguments)
    if run.is_new:
        await client.command(record_order(client.redis, "cron_run", [job.name], {"run": run.id}))
    call.backend.reads.forget()
    made = EnqueuedView(id=run.id, job=job.name, is_new=run.is_new)
    return Reply(made, 201 if made.is_new else 200)


async def _find_cron_job(backend: Backend, name: str) -> Job[..., Any]:
    job = (await backend.load_jobs()).find(name)
    if not job.schedule:
        raise InvalidArguments(f"{name} has no cron line: enqueue it by POST /runs")
    return job


# --- pause, resume, pace, limits, drain


async def pause(call: Call) -> TargetsView:
    """Pause runs, jobs, queues or all."""
    body: PauseBody = call.body
    await _check_conditions(call.backend, body)
    await call.backend.client.pause(*body.targets, where=body.where)
    call.backend.reads.forget()
    return TargetsView(changed=body.targets)


async def resume(call: Call) -> TargetsView:
    """Remove pauses. Those that `pause` has set with `where` are named by it, too."""
    body: PauseBody = call.body
    changed: list[str] = []
    unchanged: list[str] = []
    for target in dict.fromkeys(body.targets):
        found = await call.backend.client.resume(target, where=body.where)
        (changed if found else unchanged).append(target)
    call.backend.reads.forget()
    return TargetsView(changed=changed, unchanged=unchanged)


async def _check_conditions(backend: Backend, body: PauseBody) -> None:
    """Raise an error if a job is unknown, or has no argument of a name in `where`."""
    if body.where is None:
        return
    jobs = await backend.load_jobs()
    for target in body.targets:
        entry = parse_entry(make_entry(target, body.where))
        entry.check_names(list(jobs.find(target).signature.parameters))


async def pace(call: Call) -> PacesView:
    """Limit the pace of walks, from their next batch on."""
    body: PaceBody = call.body
    redis = call.backend.client.redis
    before = await call.backend.client.command(
        cast(Awaitable[list[bytes | None]], redis.hmget(keys.PACE, list(body.targets)))
    )
    await call.backend.client.pace(*body.targets, rows_per_second=body.rows_per_second)
    call.backend.reads.forget()
    return PacesView(
        changed=body.targets,
        rows_per_second=body.rows_per_second,
        before=[read_number(one) for one in before],
    )


async def limit(call: Call) -> TargetsView:
    """Limit the runs of a job or a queue at once, and the starts of a job in a second."""
    body: LimitBody = call.body
    if "concurrency" in body.model_fields_set:
        await call.backend.client.limit(body.name, running=body.concurrency)
    if "rate_per_second" in body.model_fields_set:
        await call.backend.client.limit_rate(body.name, runs_per_second=body.rate_per_second)
    call.backend.reads.forget()
    return TargetsView(changed=[body.name])


async def drain(call: Call) -> TargetsView:
    """Drain workers, as SIGTERM does."""
    body: DrainBody = call.body
    gone = await call.backend.client.drain(*body.workers)
    return TargetsView(changed=[one for one in dict.fromkeys(body.workers) if one not in gone], unchanged=gone)


# --- cancel and retry


async def cancel(call: Call) -> TargetsView:
    """Cancel runs: waiting ones at once, running ones at their next batch boundary."""
    body: RunsBody = call.body
    gone = await _cancel(call.backend, list(dict.fromkeys(body.runs)))
    call.backend.reads.forget()
    return TargetsView(changed=[one for one in dict.fromkeys(body.runs) if one not in gone], unchanged=gone)


async def _cancel(backend: Backend, run_ids: Sequence[str]) -> list[str]:
    """Cancel runs in whatever queue of the settings they are. Return the ids that are in none."""
    settings = backend.settings.worker
    rest = list(run_ids)
    for queue in dict.fromkeys([settings.queue, *settings.queues]):
        if rest:
            rest = await backend.client.cancel(*rest, queue=queue)
    return rest


async def retry(call: Call) -> TargetsView:
    """Run ended runs and dead letters again, each from its last checkpoint."""
    body: RetryBody = call.body
    done = await call.backend.client.retry_now(
        *dict.fromkeys(body.runs), from_start=body.from_start, accept_statement=body.accept_statement
    )
    call.backend.reads.forget()
    return TargetsView(changed=done, unchanged=[one for one in dict.fromkeys(body.runs) if one not in done])


async def retry_dead_letters(call: Call) -> TargetsView:
    """Run dead letters again."""
    body: DeadLettersBody = call.body
    client = call.backend.client
    if body.runs is not None:
        asked = await _choose_letters(call.backend, body, body.runs)
        done = await client.retry_now(*asked) if asked else []
    else:
        done = await client.retry_dead_letters(job=body.job, before=body.before, everything=_is_everything(body))
    call.backend.reads.forget()
    return TargetsView(changed=done, unchanged=[one for one in dict.fromkeys(body.runs or []) if one not in done])


async def delete_dead_letters(call: Call) -> TargetsView:
    """Delete dead letters, with their checkpoints and quarantined rows."""
    body: DeadLettersBody = call.body
    client = call.backend.client
    if body.runs is not None:
        asked = await _choose_letters(call.backend, body, body.runs)
        done = await client.delete_dead_letters(*asked) if asked else []
    else:
        done = await client.delete_dead_letters(job=body.job, before=body.before, everything=_is_everything(body))
    call.backend.reads.forget()
    return TargetsView(changed=done, unchanged=[one for one in dict.fromkeys(body.runs or []) if one not in done])


async def _choose_letters(backend: Backend, body: DeadLettersBody, runs: Sequence[str]) -> list[str]:
    """Return the runs of a request that are dead letters, in its order."""
    letters = await backend.client.dead_letters(ids=runs, before=body.before, limit=None, ledger=True)
    found = {letter.id for letter in letters}
    return [run_id for run_id in dict.fromkeys(runs) if run_id in found]


def _is_everything(body: DeadLettersBody) -> bool:
    return body.all is True and body.before is None


async def retry_quarantined(call: Call) -> RetriedRowsView:
    """Enqueue runs that process quarantined rows again. Return the ids of the new runs."""
    body: RetryRowsBody = call.body
    chosen: dict[str, list[int]] = {run_id: [] for run_id in body.runs or ()}
    if body.rows is not None:
        for row in await call.backend.ledger.quarantine.list_rows(row_ids=body.rows, limit=len(body.rows)):
            chosen.setdefault(row.run_id, []).append(row.id)
    made, unchanged, count = [], [], 0
    for run_id, row_ids in chosen.items():
        rows = len(row_ids) or await call.backend.ledger.quarantine.count_rows(run_id)
        runs = await call.backend.client.retry_quarantined(run_id, row_ids=row_ids)
        made += [run.id for run in runs]
        count += rows if runs else 0
        unchanged += [] if runs else [run_id]
    call.backend.reads.forget()
    return RetriedRowsView(changed=made, unchanged=unchanged, rows=count)


async def discard_quarantined(call: Call) -> CountView:
    """Delete rows from the quarantine."""
    body: DiscardBody = call.body
    count = await call.backend.client.discard_quarantined(*(body.rows or ()), run_id=body.run)
    call.backend.reads.forget()
    return CountView(changed=count)
