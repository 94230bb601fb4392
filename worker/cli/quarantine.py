"""`worker quarantine list | show | retry | discard`: rows that could not be done, and were set aside."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from worker.cli.app import Json, app, fail, open_database, out, print_json, run_async, state
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.queue.retry_command import retry_quarantined
from worker.settings import Settings

T = TypeVar("T")

quarantine = typer.Typer(help="Rows that could not be done, and were set aside.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")

RunId = Annotated[str, typer.Argument(help="Id of the run.")]


@quarantine.command(name="list")
def list_(
    run_id: Annotated[str | None, typer.Option("--run", help="Only those of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List the rows in quarantine."""
    settings, _ = state.load()
    rows = _with_ledger(settings, lambda ledger: ledger.quarantine.list_rows(run_id=run_id, limit=limit))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "run", "job", "step", "key", "when", "error"):
        table.add_column(column, overflow="fold")
    for row in rows:
        when = f"{row.created_at.astimezone():%m-%d %H:%M:%S}"
        table.add_row(str(row.id), row.run_id, row.job, row.step, json.dumps(row.key), when, row.error[:120])
    out.print(table if rows else "no row is in quarantine")


@quarantine.command()
def show(row_id: Annotated[int, typer.Argument(help="Id of the row, from `list`.")], as_json: Json = False) -> None:
    """Show one row, with its values and its error."""
    settings, _ = state.load()
    rows = _with_ledger(settings, lambda ledger: ledger.quarantine.list_rows(row_id=row_id))
    if not rows:
        raise fail(f"no row {row_id} is in quarantine; `worker quarantine list` shows what is")
    if as_json:
        print_json(asdict(rows[0]))
        return
    row = rows[0]
    out.print(f"row {row.id} of run {row.run_id} ({row.job}), step {row.step}, key {json.dumps(row.key)}", markup=False)
    out.print(json.dumps(row.row, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    out.print(row.traceback or row.error, markup=False, soft_wrap=True)


@quarantine.command()
def retry(run_id: RunId) -> None:
    """Run the job again on the rows that a run has set aside, and on no others."""
    settings, _ = state.load()

    async def again(ledger: Ledger) -> list[str]:
        async with Client(settings) as client:
            return await retry_quarantined(client, ledger, run_id)

    made = _with_ledger(settings, again)
    if not made:
        raise fail(f"run {run_id} has no row in quarantine; `worker quarantine list` shows what is")
    for one in made:
        out.print(one, markup=False, soft_wrap=True)


@quarantine.command()
def discard(
    run_id: Annotated[str | None, typer.Option("--run", help="All rows of this run.")] = None,
    row_ids: Annotated[list[int] | None, typer.Argument(help="Ids of rows, from `list`.")] = None,
) -> None:
    """Forget rows in quarantine: somebody has seen to them."""
    if (run_id is None) is (not row_ids):
        raise fail("quarantine discard: give ids of rows, or --run", 2)
    settings, _ = state.load()
    count = _with_ledger(settings, lambda ledger: ledger.quarantine.delete_rows(run_id=run_id, row_ids=row_ids or None))
    if not count:
        raise fail("nothing of that is in quarantine; `worker quarantine list` shows what is")
    out.print(f"{count} rows discarded")


def _with_ledger(settings: Settings, operation: Callable[[Ledger], Awaitable[T]]) -> T:
    async def run() -> T:
        database = open_database(settings)
        try:
            return await operation(Ledger(database))
        finally:
            await database.close()

    return run_async(run(), settings)
