"""`worker cron`, `worker cron trigger`: lists the due times of jobs with their last runs, and starts an extra run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from worker.cli.app import Json, app, open_database, run_async, state
from worker.cli.output import print_json, print_line, print_table
from worker.errors import InvalidArguments
from worker.job.registry import discover
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.runtime.scheduler import firing_id
from worker.settings import Settings

cron = typer.Typer(help="List due times, or trigger a cron job now.", invoke_without_command=True)
app.add_typer(cron, name="cron")


@cron.callback()
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the cron lines of all jobs: the next due time, and the last one with its run."""
    if context.invoked_subcommand is not None:
        return
    settings, _ = state.load()
    lines = run_async(_lines(settings), settings)
    if as_json:
        print_json(lines)
    elif not lines:
        print_line("no job has a cron line")
    else:
        names = ("job", "line", "next", "last", "run", "state")
        print_table(names, [tuple(line[name] or "" for name in names) for line in lines])


@cron.command()
def trigger(
    job: Annotated[str, typer.Argument(help="Name of a job that has a cron line.")], as_json: Json = False
) -> None:
    """Enqueue one run of a cron job now. Its due times do not change."""
    settings, _ = state.load()
    known = discover(settings.worker.packages).find(job)
    if not known.schedule:
        raise InvalidArguments(f"{job} has no cron line; `worker enqueue {job}` runs it")

    async def put() -> str:
        async with Client(settings) as client:
            run_id = f"cron:{job}:by-hand:{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            return (await client.enqueue_by_name(job, {}, id=run_id)).id

    run_id = run_async(put(), settings)
    if as_json:
        print_json({"id": run_id})
    else:
        print_line(run_id)


async def _lines(settings: Settings) -> list[dict[str, Any]]:
    database = open_database(settings)
    now = datetime.now(UTC)
    try:
        ledger = Ledger(database)
        last, application = await ledger.list_cron_firings(), await ledger.read_application()
        async with Client(settings) as client:
            found = []
            for job in discover(settings.worker.packages).values():
                for line in job.schedule:
                    due = _fired(last.get((job.name, str(line))))
                    run_id = None if due is None else firing_id(job.name, str(line), due, application)
                    found.append(
                        {
                            "job": job.name,
                            "line": str(line),
                            "next": line.next_after(now).isoformat(),
                            "last": None if due is None else due.isoformat(),
                            "run": run_id,
                            "state": None if run_id is None else await _state(client, ledger, run_id),
                        }
                    )
        return sorted(found, key=lambda one: str(one["next"]))
    finally:
        await database.close()


def _fired(last: datetime | None) -> datetime | None:
    """Return the last due time, or None if the ledger has only the moment when the line was first seen."""
    return None if last is None or last.microsecond else last  # due times are whole seconds


async def _state(client: Client, ledger: Ledger, run_id: str) -> str:
    """Return the state of a run from Redis, or else from the ledger."""
    state_ = await client.run(run_id).status()
    if state_ != "unknown":
        return state_
    known = await ledger.find(run_id)
    return "deleted" if known is None else known.state
