"""The commands that change state: enqueue, pause, resume, pace, cancel, retry."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from worker.batch.selection import Selection
from worker.cancellation import cancel_and_wait
from worker.cli.app import EXIT_USAGE, Json, app, fail, open_database, run_async, run_with_client, state
from worker.cli.dead import All, OfJob, OlderThan, RunIds, check_selection, print_changed, read_age
from worker.cli.output import print_json, print_line
from worker.cli.selection import From, Subset, read_selection
from worker.errors import InvalidArguments, JobCancelled, JobFailed, RegistrationError, ResultTooLarge
from worker.job.argument_texts import parse_argument
from worker.job.definition import Job
from worker.job.limits import argument_text
from worker.job.middleware import EnqueueCall, Middleware, configured_middleware
from worker.job.propagation import SELECTED
from worker.job.registry import discover
from worker.ledger import Ledger
from worker.plan.plan import plan_part
from worker.queue import keys
from worker.queue.audit import record_order
from worker.queue.client import Client
from worker.queue.conditions import make_entry, parse_entry
from worker.queue.key_problems import printable
from worker.queue.run import Run
from worker.settings import Settings

T = TypeVar("T")

Targets = Annotated[list[str], typer.Argument(help="Run ids, job names, queues, or * for all.")]

Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="name=value: of these jobs, only runs with this argument."),
]

#: Seconds between two reads of the workers while `--wait` waits.
_LOOK_SECONDS = 5.0


@app.command()
def enqueue(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="name=value; the value is JSON, or else text.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Id of the run. Enqueueing an id twice is one run.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until the run is due.")] = None,
    at: Annotated[datetime | None, typer.Option(help="Due time (ISO 8601); local time unless it has a zone.")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue; default: worker.queue.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher runs first.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run ends, and print its result.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="With --wait: longest wait in seconds.")] = None,
    subset: Subset = None,
    from_: From = None,
    as_json: Json = False,
) -> None:
    """Enqueue a run of a job."""
    if delay is not None and at is not None:
        raise InvalidArguments("enqueue: give --delay or --at, not both")
    if timeout is not None and not wait:
        raise InvalidArguments("enqueue: --timeout needs --wait")
    settings, _ = state.load()
    known, values = _validated(settings, job, dict(read_argument(text) for text in arguments or []))

    selection = read_selection(subset, from_)

    async def put() -> None:
        hooks = configured_middleware(settings)
        run_id = id_ if selection is None else await _store_selection(settings, job, values, selection, id_)
        async with Client(settings, middleware=[*hooks, _MarkSelected()] if selection else hooks) as client:
            due = at.astimezone() if at is not None else None
            options: dict[str, Any] = {"id": run_id, "delay": delay, "at": due, "queue": queue, "priority": priority}
            if known is None:
                made = await client.enqueue_by_name(job, values, **options)
            else:
                made = await _enqueue(client, known, values, options)
            if made.is_new:
                await client.command(record_order(client.redis, "enqueue", [made.id], {"job": job}))
            run: Run[Any] = client.run(made.id, queue=queue)  # without the job, so that its result stays JSON
            summary = {"id": run.id, "new": made.is_new}
            if wait:
                result = await _wait_for(client, run, job, queue or settings.worker.queue, timeout)
                print_json(summary | {"result": result} if as_json else result)
            elif as_json:
                print_json(summary)
            else:
                print_line(run.id if made.is_new else f"{run.id} (already enqueued: this is the same run)")

    try:
        run_async(put(), settings)
    except (JobFailed, JobCancelled, ResultTooLarge) as error:
        raise fail(str(error)) from None


async def _enqueue(client: Client, job: Job[..., Any], values: dict[str, Any], options: dict[str, Any]) -> Run[Any]:
    """Enqueue a run by the rules of its job: its priority, and whether it is unique."""
    decoded = job.decode_arguments([], values)
    if job.rules.once:
        options = options | {"id": None}  # the id of a data migration is its name
    return await client.enqueue(job.options(**options), **{name: decoded[name] for name in values})


class _MarkSelected(Middleware):
    """Marks a run whose walks are restricted. The restriction is SQL: it is in the ledger, and never in Redis."""

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        call.headers[SELECTED] = "1"
        return await proceed()


async def _store_selection(
    settings: Settings, name: str, values: dict[str, Any], selection: Selection, run_id: str | None
) -> str:
    """Check that PostgreSQL accepts the part of the walks that is selected, and store it. Return the id of the run."""
    job = discover(settings.worker.packages).find(name)
    if job.rules.once:
        raise InvalidArguments(f"job {name} is a data migration, which is done as a whole")
    refused = [loop.refusal for loop in (await plan_part(job, settings, values, selection)).loops if loop.refusal]
    if refused:
        raise InvalidArguments(refused[0])
    chosen = run_id or uuid.uuid4().hex
    database = open_database(settings)
    try:
        if not await Ledger(database).add_selection(chosen, selection.subset, selection.first):
            raise InvalidArguments(f"run {chosen} was enqueued with --subset or --from before: give another --id")
    finally:
        await database.close()
    return chosen


async def _wait_for(client: Client, run: Run[Any], job: str, queue: str, timeout_seconds: float | None) -> Any:
    """Return the result of a run. Meanwhile, report on standard error why the run waits, and whether a worker is
    running."""
    watching = asyncio.create_task(_report_waiting(client, run, job, queue))
    try:
        return await run.result(timeout_seconds)
    except TimeoutError as error:  # an OSError, which `run_async` would explain as a server that does not answer
        raise fail(str(error)) from None
    finally:
        await cancel_and_wait(watching)


async def _report_waiting(client: Client, run: Run[Any], job: str, queue: str) -> None:
    """Write a line when the state of the run changes."""
    last = ""
    await asyncio.sleep(1.0)  # most runs have ended by then
    while True:
        line = await _waiting_for(client, run, job, queue)
        if line != last:
            sys.stderr.write(f"worker: {printable(line)}\n")
            last = line
        await asyncio.sleep(_LOOK_SECONDS)


async def _waiting_for(client: Client, run: Run[Any], job: str, queue: str) -> str:
    state_, fields = await run.look()
    if state_ == "running":
        return f"run {run.id} is running; waiting for its end"
    waits = f"run {run.id} is {state_}"
    seen = await client.status()
    for entry in (keys.ALL, queue, job, run.id):
        if entry in seen.paused:
            return f"{waits}, and {entry} is paused: `worker resume '{entry}'` lets it continue"
    if state_ == "paused":
        return f"{waits}: `worker status` lists what is paused"
    alive = [worker for worker in seen.workers.values() if worker.state != "lost"]
    serving = [worker for worker in alive if queue in worker.queues]
    if not alive:
        return f"{waits}, and no worker has been seen: start one with `worker run`"
    if not serving:
        return (
            f"{waits}, and no worker takes runs from its queue {queue}: start one with LONGHAUL_WORKER__QUEUE={queue}"
        )
    if fields.get("error"):
        waits += f": {fields['error']}"
    return f"{waits}; workers of its queue: {len(serving)}; waiting for its end"


@app.command()
def pause(targets: Targets, where: Where = None) -> None:
    """Pause runs, jobs, queues, or all. Running walks pause at their next batch boundary."""
    settings, _ = state.load()
    if where:
        values = _read_where(settings, targets, where)
        _with_client(settings, lambda client: client.pause(*targets, where=values))
        print_line(f"paused: {', '.join(make_entry(job, values) for job in targets)}")
        return
    unknown = run_async(_unknown(settings, targets), settings)
    _with_client(settings, lambda client: client.pause(*targets))
    print_line(f"paused: {', '.join(targets)}")
    if unknown:
        print_line(f"note: no run in the queue and no job here is called {', '.join(unknown)}; the pause is kept")


def _read_where(settings: Settings, jobs: list[str], where: list[str]) -> dict[str, str]:
    """Return the values of arguments by name. The jobs must be known here.

    Raises:
        InvalidArguments: A job has no argument of that name or value, or a text is not name=value.
        UnknownJob: There is no such job.
    """
    registry = discover(settings.worker.packages)
    values: dict[str, str] = {}
    for text in where:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidArguments(f"--where {text}: write name=value, e.g. --where tenant=north")
        values[name] = value
    read = dict(values)
    for job in jobs:
        codec = registry.find(job).codec
        parse_entry(make_entry(job, values)).check_names(list(codec.signature.parameters))
        read = {name: argument_text(parse_argument(codec, name, text)) for name, text in values.items()}
    return read


@app.command()
def resume(targets: Targets, where: Where = None) -> None:
    """Resume paused runs, jobs, queues, or all."""
    settings, _ = state.load()
    values = _read_where(settings, targets, where) if where else None
    shown = ", ".join(make_entry(job, values) for job in targets) if values else ", ".join(targets)
    if not _with_client(settings, lambda client: client.resume(*targets, where=values)):
        raise fail(f"not paused: {shown}; `worker status` lists pauses")
    print_line(f"resumed: {shown}")


@app.command()
def pace(
    targets: Targets,
    max_rows_per_second: Annotated[float | None, typer.Option(min=0.001, help="The new limit.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Return to the limit of settings and job.")] = False,
) -> None:
    """Limit the rows per second of walks while they run, from their next batch on."""
    if (max_rows_per_second is None) is not reset:
        raise InvalidArguments("pace: give --max-rows-per-second, or --reset")
    settings, _ = state.load()
    _with_client(settings, lambda client: client.pace(*targets, rows_per_second=max_rows_per_second))
    shown = "as settings and job set it" if max_rows_per_second is None else f"{max_rows_per_second:g} rows/s"
    print_line(f"pace of {', '.join(targets)}: {shown}")


@app.command()
def cancel(
    runs: Annotated[list[str], typer.Argument(help="Run ids; with --where, job names.")], where: Where = None
) -> None:
    """Cancel runs: waiting ones at once, running ones at their next batch boundary.

    With --where, runs that are still to come are cancelled too, until `worker resume` with the same --where.
    """
    settings, _ = state.load()
    if where:
        values = _read_where(settings, runs, where)
        _with_client(settings, lambda client: client.cancel(*runs, where=values))
        print_line(f"cancelled, until they are resumed: {', '.join(make_entry(job, values) for job in runs)}")
        return
    gone = _with_client(settings, lambda client: client.cancel(*runs))
    if gone:
        raise fail(f"neither waiting nor running: {', '.join(gone)}")
    print_line(f"cancelled: {', '.join(runs)}")


@app.command()
def drain(workers: Annotated[list[str], typer.Argument(help="Names of the workers.")]) -> None:
    """Drain workers, as SIGTERM does: their jobs stop at the next boundary, and continue elsewhere."""
    gone, running = run_with_client(lambda client: _drain(client, workers))
    drained = [name for name in dict.fromkeys(workers) if name not in gone]
    if drained:
        print_line(f"draining: {', '.join(drained)}")
    if gone:
        raise fail(f"no worker has the name {', '.join(gone)}; running: {', '.join(running) or 'none'}")


async def _drain(client: Client, workers: list[str]) -> tuple[list[str], list[str]]:
    """Drain workers. Return the names that no worker has and, if there are any, the names of those that run."""
    gone = await client.drain(*workers)
    known = (await client.status()).workers.values() if gone else ()
    return gone, [worker.name for worker in known if worker.state != "lost"]


@app.command()
def retry(
    ids: RunIds = None,
    job: OfJob = None,
    older_than: OlderThan = None,
    all_: All = False,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Process only the quarantined rows of these runs, in new runs.")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Delete the checkpoints and process every row again. Asks first.")
    ] = False,
    accept_statement: Annotated[
        bool,
        typer.Option("--accept-statement", help="Continue walks although a deploy has changed their statement."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Retry runs that have ended, walks from their last checkpoint; with --job or --all, dead runs."""
    forms = {"--quarantined": quarantined, "--from-start": from_start, "--accept-statement": accept_statement}
    option = next((name for name, given in forms.items() if given), None)
    if option and (not ids or job or older_than or all_ or sum(forms.values()) > 1):
        raise fail(f"retry: {option} takes run ids, and no other selection", EXIT_USAGE)
    if quarantined:
        _retry_quarantined(ids or [])
        return
    if not ids:
        check_selection("retry", None, job, older_than, all_)
        before = read_age(older_than)
        done = run_with_client(lambda client: client.retry_dead_letters(job=job, before=before, everything=all_))
        print_changed("enqueued again", None, done)
        return
    if job or older_than or all_:
        raise fail("retry: give run ids, or --job and --older-than, or --all", EXIT_USAGE)
    if from_start and not yes:
        question = f"Delete the checkpoints of {', '.join(ids)} and process every row again, done ones included?"
        if not typer.confirm(f"{question} (--yes skips this)"):
            raise fail("nothing was changed")
    _retry_ids(ids, from_start=from_start, accept_statement=accept_statement)


def _retry_ids(ids: list[str], *, from_start: bool, accept_statement: bool) -> None:
    options = {"from_start": from_start, "accept_statement": accept_statement}
    done = run_with_client(lambda client: client.retry_now(*ids, **options))
    where = "from its first row" if from_start else "from its last checkpoint"
    for run_id in done:
        print_line(f"{run_id}: enqueued again, {where}")
    missing = [run_id for run_id in ids if run_id not in done]
    if missing:
        raise fail(f"neither an ended run nor dead: {', '.join(missing)}; `worker runs` and `worker dead` list them")


def _retry_quarantined(ids: list[str]) -> None:
    async def again(client: Client) -> dict[str, list[str]]:
        return {run_id: [run.id for run in await client.retry_quarantined(run_id)] for run_id in ids}

    made = run_with_client(again)
    for run_ids in made.values():
        for run_id in run_ids:
            print_line(run_id)
    missing = [run_id for run_id, run_ids in made.items() if not run_ids]
    if missing:
        raise fail(f"no quarantined row: {', '.join(missing)}; `worker quarantine` lists them")


def read_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArguments(f"{text!r}: write arguments as name=value, e.g. days=90")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _validated(settings: Settings, name: str, values: dict[str, Any]) -> tuple[Job[..., Any] | None, dict[str, Any]]:
    """Return the job and its validated arguments; None for the job if it cannot be imported here."""
    try:
        registry = discover(settings.worker.packages)
    except RegistrationError as error:
        sys.stderr.write(f"worker: {printable(str(error))}: enqueued without validation\n")
        return None, values
    job = registry.find(name)
    job.decode_arguments([], values)
    return job, values


async def _unknown(settings: Settings, targets: list[str]) -> list[str]:
    """Return the names that are neither `*`, nor a job that can be imported here, nor a run in the queue."""
    try:
        known = set(discover(settings.worker.packages))
    except RegistrationError:
        return []
    asked = [name for name in targets if name not in known and name != keys.ALL]
    async with Client(settings) as client:
        there = await client.command(client.store.known(asked, settings.worker.queue))
    return [name for name, is_there in zip(asked, there, strict=True) if not is_there]


def _with_client(settings: Settings, operation: Callable[[Client], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Client(settings) as client:
            return await operation(client)

    return run_async(run(), settings)
