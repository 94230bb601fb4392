"""`worker outbox`, `outbox retry`, `outbox delete`: runs that wait for a relay, and those that none can enqueue."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.app import EXIT_USAGE, Json, app, fail, run_with_client
from worker.cli.output import print_json, print_line, print_table

_PROBLEM_CHARACTERS = 120

outbox = typer.Typer(help="List rows of the outbox, or retry or delete refused ones.", invoke_without_command=True)
app.add_typer(outbox, name="outbox")

RowIds = Annotated[list[int] | None, typer.Argument(help="Ids of rows.")]
All = Annotated[bool, typer.Option("--all", help="Every row that could not be relayed.")]


@outbox.callback()
def list_(
    context: typer.Context,
    refused: Annotated[bool, typer.Option("--refused", help="Only rows that could not be relayed.")] = False,
    search: Annotated[str | None, typer.Option(help="Only rows with this text in run, job, queue or problem.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to list, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List the rows of the outbox, newest first. Relays of the workers enqueue them within a second."""
    if context.invoked_subcommand is not None:
        return
    rows = run_with_client(lambda client: client.outbox_rows(refused=refused, search=search, limit=limit))
    if as_json:
        print_json([asdict(row) for row in rows])
    elif not rows:
        print_line("no row in the outbox")
    else:
        print_table(
            ("id", "run", "job", "queue", "written at", "problem"),
            [
                (
                    str(row.id),
                    row.run_id,
                    row.job,
                    row.queue or "",
                    f"{row.created_at.astimezone():%m-%d %H:%M:%S}",
                    (row.problem or "")[:_PROBLEM_CHARACTERS],
                )
                for row in rows
            ],
        )


@outbox.command()
def retry(row_ids: RowIds = None, all_: All = False) -> None:
    """Let relays try rows again that could not be relayed."""
    _check_choice("retry", row_ids, all_)
    _print_changed("tried again", run_with_client(lambda client: client.retry_outbox(*row_ids or [])))


@outbox.command()
def delete(row_ids: RowIds = None, all_: All = False) -> None:
    """Delete rows that could not be relayed: their runs never exist."""
    _check_choice("delete", row_ids, all_)
    _print_changed("deleted", run_with_client(lambda client: client.delete_outbox(*row_ids or [])))


def _check_choice(command: str, row_ids: list[int] | None, all_: bool) -> None:
    if bool(row_ids) is all_:
        raise fail(f"outbox {command}: give ids of rows, or --all", EXIT_USAGE)


def _print_changed(verb: str, changed: list[int]) -> None:
    if not changed:
        raise fail("no such row was refused; `worker outbox --refused` lists them")
    print_line(f"{verb}: {', '.join(map(str, changed))}")
