"""`worker dead`, `dead show`, `dead delete`: dead runs, which failed permanently."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from worker.cli.app import EXIT_USAGE, Json, app, fail, run_with_client
from worker.cli.output import print_block, print_json, print_line, print_table
from worker.queue.dead_letters import DeadLetter

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CELL_CHARACTERS = 120

dead = typer.Typer(help="List, show or delete runs that failed permanently.", invoke_without_command=True)
app.add_typer(dead, name="dead")

RunIds = Annotated[list[str] | None, typer.Argument(help="Run ids.")]
OfJob = Annotated[str | None, typer.Option("--job", help="Only runs of this job.")]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", help="Only runs that failed longer ago, e.g. 90s, 30m, 12h, 7d.")
]
All = Annotated[bool, typer.Option("--all", help="Every dead run.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dead.callback()
def list_(
    context: typer.Context,
    job: OfJob = None,
    older_than: OlderThan = None,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to list, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List dead runs, which failed permanently, in the ledger and in Redis, newest first."""
    if context.invoked_subcommand is not None:
        return
    options: dict[str, Any] = {"job": job, "before": read_age(older_than), "limit": limit}
    letters = run_with_client(lambda client: client.dead_letters(ledger=True, **options))
    if as_json:
        print_json([_as_json(letter) for letter in letters])
    elif not letters:
        print_line("no dead run")
    else:
        print_table(
            ("run", "job", "attempts", "failed at", "arguments", "error"),
            [
                (
                    letter.id,
                    letter.job or "?",
                    str(letter.attempts),
                    f"{letter.at.astimezone():%m-%d %H:%M:%S}",
                    json.dumps(letter.arguments, ensure_ascii=False)[:_CELL_CHARACTERS],
                    letter.error[:_CELL_CHARACTERS],
                )
                for letter in letters
            ],
        )


@dead.command()
def show(run_id: Annotated[str, typer.Argument(help="Id of the run.")], as_json: Json = False) -> None:
    """Show one dead run with its arguments and its traceback."""
    letters = run_with_client(lambda client: client.dead_letters(ids=[run_id], ledger=True))
    if not letters:
        raise fail(f"{run_id} is not dead; `worker dead` lists dead runs")
    letter = letters[0]
    if as_json:
        print_json(_as_json(letter))
        return
    place = "ledger" if letter.in_ledger else "worker:dead"
    print_line(f"{letter.id}: {letter.job or 'unknown job'}: dead since {letter.at.isoformat()} ({place})")
    print_line(f"  queue {letter.queue}, attempt {letter.attempts}")
    print_line(f"  arguments: {json.dumps(letter.arguments, ensure_ascii=False)}")
    print_line(f"  error: {letter.error}")
    if letter.traceback:
        print_block(letter.traceback)


@dead.command()
def delete(
    ids: RunIds = None, job: OfJob = None, older_than: OlderThan = None, all_: All = False, yes: Yes = False
) -> None:
    """Delete dead runs, with their checkpoints and quarantined rows."""
    check_selection("dead delete", ids, job, older_than, all_)
    options: dict[str, Any] = {"job": job, "before": read_age(older_than)}
    if not ids and not yes:
        count = len(run_with_client(lambda client: client.dead_letters(ledger=True, limit=None, **options)))
        if not typer.confirm(f"Delete {count} dead runs, and the checkpoints of walks among them? (--yes skips this)"):
            raise fail("nothing was changed")
    deleted = run_with_client(lambda client: client.delete_dead_letters(*ids or [], everything=all_, **options))
    print_changed("deleted", ids, deleted)


def check_selection(command: str, ids: list[str] | None, job: str | None, older_than: str | None, all_: bool) -> None:
    """Check the arguments by which a command selects dead runs.

    Raises:
        typer.Exit: The arguments contradict each other, or are missing.
    """
    if bool(ids) + (job is not None or older_than is not None) + all_ != 1:
        raise fail(f"{command}: give run ids, or --job and --older-than, or --all", EXIT_USAGE)


def print_changed(verb: str, asked: list[str] | None, changed: list[str]) -> None:
    """Print the ids of the dead runs that a command has changed.

    Raises:
        typer.Exit: Some of the requested runs are not dead.
    """
    if changed:
        print_line(f"{verb}: {', '.join(changed)}" if len(changed) <= 10 else f"{verb}: {len(changed)} runs")
    missing = [run_id for run_id in asked or [] if run_id not in changed]
    if missing:
        raise fail(f"not dead: {', '.join(missing)}; `worker dead` lists dead runs")
    if not changed:
        print_line("no dead run matches")


def read_age(older_than: str | None) -> datetime | None:
    """Return the moment that lies `--older-than` ago; None without that option."""
    if older_than is None:
        return None
    read = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", older_than, re.ASCII)
    if read is None:
        raise fail(f"--older-than {older_than}: write e.g. 90s, 30m, 12h or 7d", EXIT_USAGE)
    try:
        return datetime.now(UTC) - timedelta(seconds=float(read[1]) * _UNITS[read[2]])
    except OverflowError:
        raise fail(f"--older-than {older_than}: that is before the calendar begins", EXIT_USAGE) from None


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "job": letter.job,
        "queue": letter.queue,
        "arguments": letter.arguments,
        "attempts": letter.attempts,
        "at": letter.at.isoformat(),
        "error": letter.error,
        "traceback": letter.traceback,
        "in_ledger": letter.in_ledger,
    }
