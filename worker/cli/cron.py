"""`worker cron`, `worker cron run`: when jobs are due, what became of their last runs, and one run now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from worker.cli.app import Json, app, open_database, out, print_json, run_async, state
from worker.errors import InvalidArguments
from worker.job.registry import discover
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.runtime.scheduler import firing_id
from worker.settings import Settings

cron = typer.Typer(help="When jobs are due, and what became of their last runs.", invoke_without_command=True)
app.add_typer(cron, name="cron")


@cron.callback()
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the cron lines of all jobs: the next due time of each, and the last one with its run."""
    if context.invoked_subcommand is not None:
        return
    settings, _ = state.load()
    lines = run_async(_lines(settings), settings)
    if as_json:
        print_json(lines)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "line", "next", "last", "its run", "state"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(line["job"], line["line"], *(line[name] or "" for name in ("next", "last", "run", "state")))
    out.print(table if lines else "no job has a cron line")


@cron.command()
def run(job: Annotated[str, typer.Argument(help="Name of a job that has a cron line.")], as_json: Json = False) -> None:
    """Enqueue one run of a cron job now; its due times stay what they are."""
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
        out.print(run_id, markup=False, soft_wrap=True)


async def _lines(settings: Settings) -> list[dict[str, Any]]:
    database = open_database(settings)
    now = datetime.now(UTC)
    try:
        ledger = Ledger(database)
        last = await ledger.list_cron_firings()
        async with Client(settings) as client:
            found = []
            for job in discover(settings.worker.packages).values():
                for line in job.schedule:
                    due = _fired(last.get((job.name, str(line))))
                    run_id = None if due is None else firing_id(job.name, str(line), due)
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
    """Return the last due time; None where the ledger has only the moment at which the line was first seen."""
    return None if last is None or last.microsecond else last  # due times are whole seconds


async def _state(client: Client, ledger: Ledger, run_id: str) -> str:
    """Return what became of a run: as Redis has it, or else the ledger."""
    state_ = await client.run(run_id).status()
    if state_ != "unknown":
        return state_
    known = await ledger.find(run_id)
    return "not known any more" if known is None else known.state
