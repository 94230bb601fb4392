"""Commands that change something: enqueue, pause, resume, pace, cancel, retry."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from worker.cli.app import EXIT_FAILED, Json, app, fail, open_database, out, print_json, run_async, state
from worker.errors import InvalidArguments, JobCancelled, JobFailed, RegistrationError
from worker.job.registry import discover
from worker.ledger import Ledger
from worker.queue import commands as operator_commands
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.retry_command import retry_run
from worker.settings import Settings

T = TypeVar("T")

Targets = Annotated[list[str], typer.Argument(help="Run ids, job names, or * for every job.")]
RunIds = Annotated[list[str], typer.Argument(help="Run ids.")]


@app.command()
def enqueue(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="name=value; the value is JSON, or else text.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Id of the run: the same id twice is one run.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until it is due.")] = None,
    at: Annotated[datetime | None, typer.Option(help="Due time (ISO 8601); without a zone the local one.")] = None,
    queue: Annotated[str | None, typer.Option(help="Another queue.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; the higher, the sooner.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, and print the result.")] = False,
    as_json: Json = False,
) -> None:
    """Put a job into the queue."""
    if delay is not None and at is not None:
        raise InvalidArguments("enqueue: give --delay or --at, not both")
    settings, _ = state.load()
    values = dict(_argument(text) for text in arguments or [])
    values = _validated(settings, job, values)

    async def put() -> None:
        async with Client(settings) as client:
            due = at.astimezone() if at is not None else None
            run = await client.enqueue_by_name(job, values, id=id_, delay=delay, at=due, queue=queue, priority=priority)
            told = {"id": run.id, "new": run.is_new}
            if not wait:
                if as_json:
                    print_json(told)
                else:
                    out.print(run.id if run.is_new else f"{run.id} (known already: not enqueued again)")
                return
            result = await run.result()
            print_json(told | {"result": result} if as_json else result)

    try:
        run_async(put(), settings)
    except (JobFailed, JobCancelled) as error:
        raise fail(str(error), EXIT_FAILED) from None


@app.command()
def pause(targets: Targets) -> None:
    """Pause runs, jobs, or all: running ones at their next batch boundary."""
    settings, _ = state.load()
    unknown = run_async(_unknown(settings, targets), settings)
    _give(settings, lambda client: operator_commands.pause(client, targets))
    out.print(f"paused: {', '.join(targets)}")
    if unknown:
        out.print(f"note: no run in the queue and no job here is called {', '.join(unknown)}; the order is kept")


@app.command()
def resume(targets: Targets) -> None:
    """Take back a pause."""
    settings, _ = state.load()
    if not _give(settings, lambda client: operator_commands.resume(client, targets)):
        raise fail(f"not paused: {', '.join(targets)}; `worker status` shows what is")
    out.print(f"resumed: {', '.join(targets)}")


@app.command()
def pace(
    targets: Targets,
    max_rows_per_second: Annotated[float | None, typer.Option(min=0.001, help="The new pace.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Take the order back: the pace of settings and job.")] = False,
) -> None:
    """Give walks another pace while they run, from their next batch on."""
    if (max_rows_per_second is None) is not none:
        raise InvalidArguments("pace: give --max-rows-per-second, or --none to take it back")
    settings, _ = state.load()
    _give(settings, lambda client: operator_commands.pace(client, targets, max_rows_per_second))
    shown = "as settings and job say" if max_rows_per_second is None else f"{max_rows_per_second:g} rows/s"
    out.print(f"pace of {', '.join(targets)}: {shown}")


@app.command()
def cancel(runs: RunIds) -> None:
    """Cancel runs: running ones at their next batch boundary, waiting ones at once."""
    settings, _ = state.load()
    ended = _give(settings, lambda client: operator_commands.cancel(client, runs))
    if ended:
        raise fail(f"neither waiting nor running: {', '.join(ended)}")
    out.print(f"cancelled: {', '.join(runs)}")


@app.command()
def retry(
    run_id: Annotated[str, typer.Argument(help="Id of an ended run, or of a dead letter.")],
    from_start: Annotated[bool, typer.Option("--from-start", help="Do every row again: asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Run an ended run again: from its last checkpoint, unless --from-start."""
    settings, _ = state.load()
    if from_start and not yes:
        question = f"Forget the checkpoints of {run_id} and do every row again, also those that are done?"
        if not typer.confirm(f"{question} (--yes says so beforehand)"):
            raise fail("nothing was changed")

    async def again() -> bool:
        database = open_database(settings)
        try:
            async with Client(settings) as client:
                return await retry_run(client.redis, Ledger(database), run_id, from_start=from_start)
        finally:
            await database.close()

    if not run_async(again(), settings):
        raise fail(f"{run_id} is no ended run and no dead letter; `worker runs` lists them")
    out.print(f"{run_id}: in the queue again, {'from its first row' if from_start else 'from its last checkpoint'}")


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArguments(f"{text!r}: write arguments as name=value, e.g. days=90")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _validated(settings: Settings, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments where the jobs can be imported here; elsewhere the worker does it."""
    try:
        registry = discover(settings.worker.packages)
    except RegistrationError as error:
        out.print(f"[dim]{error}: enqueued without a check[/dim]")
        return values
    job = registry.find(name)
    return job.encode_arguments([], job.decode_arguments([], values))


async def _unknown(settings: Settings, targets: list[str]) -> list[str]:
    """Return the names that are neither `*`, nor of a job that can be imported here, nor of a run in the queue."""
    try:
        known = set(discover(settings.worker.packages))
    except RegistrationError:
        return []
    asked = [name for name in targets if name not in known and name != keys.ALL]
    async with Client(settings) as client:
        there = await client.command(client.store.known(asked, settings.worker.queue))
    return [name for name, is_there in zip(asked, there, strict=True) if not is_there]


def _give(settings: Settings, order: Callable[[Client], Awaitable[T]]) -> T:
    async def give() -> T:
        async with Client(settings) as client:
            return await order(client)

    return run_async(give(), settings)
