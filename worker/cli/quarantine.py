"""`worker quarantine`, `quarantine show`, `retry`, `delete`: rows that could not be processed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.app import EXIT_USAGE, Json, app, fail, run_with_client
from worker.cli.output import counted, print_block, print_json, print_line, print_table
from worker.queue.client import Client

_ERROR_CHARACTERS = 120

quarantine = typer.Typer(help="List, show, retry or delete quarantined rows.", invoke_without_command=True)
app.add_typer(quarantine, name="quarantine")


@quarantine.callback()
def list_(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Option("--run", help="Only rows of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to list, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List quarantined rows, newest first. `worker retry RUN --quarantined` processes the rows of a run again."""
    if context.invoked_subcommand is not None:
        return
    rows = run_with_client(lambda client: client.quarantined_rows(run_id=run_id, limit=limit))
    if as_json:
        print_json([asdict(row) for row in rows])
    elif not rows:
        print_line("no quarantined row")
    else:
        print_table(
            ("id", "run", "job", "step", "key", "quarantined at", "error"),
            [
                (
                    str(row.id),
                    row.run_id,
                    row.job,
                    row.step,
                    json.dumps(row.key, ensure_ascii=False),
                    f"{row.created_at.astimezone():%m-%d %H:%M:%S}",
                    row.error[:_ERROR_CHARACTERS],
                )
                for row in rows
            ],
        )


@quarantine.command()
def show(row_id: Annotated[int, typer.Argument(help="Id of the row.")], as_json: Json = False) -> None:
    """Show one quarantined row with its values and its error."""
    rows = run_with_client(lambda client: client.quarantined_rows(row_id=row_id))
    if not rows:
        raise fail(f"no quarantined row {row_id}; `worker quarantine` lists them")
    if as_json:
        print_json(asdict(rows[0]))
        return
    row = rows[0]
    print_line(f"row {row.id} of run {row.run_id} ({row.job}), step {row.step}, key {json.dumps(row.key)}")
    print_block(json.dumps(row.row, indent=2, ensure_ascii=False))
    print_block(row.traceback or row.error)


@quarantine.command()
def retry(row_ids: Annotated[list[int], typer.Argument(help="Ids of rows.")]) -> None:
    """Process rows again, in a new run for each run and step. A row that succeeds leaves the quarantine."""

    async def again(client: Client) -> list[str]:
        chosen: dict[str, list[int]] = {}
        for row_id in row_ids:
            for row in await client.quarantined_rows(row_id=row_id):
                chosen.setdefault(row.run_id, []).append(row.id)
        made = [await client.retry_quarantined(run_id, row_ids=ids) for run_id, ids in chosen.items()]
        return [run.id for runs in made for run in runs]

    made = run_with_client(again)
    if not made:
        raise fail("no such row is quarantined; `worker quarantine` lists them")
    for run_id in made:
        print_line(run_id)


@quarantine.command()
def delete(
    run_id: Annotated[str | None, typer.Option("--run", help="All rows of this run.")] = None,
    row_ids: Annotated[list[int] | None, typer.Argument(help="Ids of rows.")] = None,
) -> None:
    """Delete rows from quarantine, e.g. after they were corrected by hand."""
    if (run_id is None) is (not row_ids):
        raise fail("quarantine delete: give ids of rows, or --run", EXIT_USAGE)
    count = run_with_client(lambda client: client.discard_quarantined(*row_ids or [], run_id=run_id))
    if not count:
        raise fail("no such row is quarantined; `worker quarantine` lists them")
    print_line(f"{counted(count, 'row')} deleted")
