"""`worker dead list | show | retry | delete`: what has failed for good."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer
from redis.asyncio import Redis
from rich.table import Table

from worker.cli.app import EXIT_USAGE, Json, app, fail, open_database, out, print_json, run_async, state
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter, DeadLetterFilter, dead_letters, delete_dead
from worker.queue.retry_command import retry_run

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

dead = typer.Typer(help="What has failed for good: runs of the ledger, and dead letters.", no_args_is_help=True)
app.add_typer(dead, name="dead")

RunIds = Annotated[list[str] | None, typer.Argument(help="Run ids.")]
OfJob = Annotated[str | None, typer.Option("--job", help="Those of this job.")]
OlderThan = Annotated[str | None, typer.Option("--older-than", help="Those that failed before: 90s, 30m, 12h, 7d.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dead.command(name="list")
def list_(
    job: OfJob = None,
    older_than: OlderThan = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List what has failed for good."""
    chosen = DeadLetterFilter(job=job, before=_before(older_than))
    letters = _with_both(lambda redis, ledger: dead_letters(redis, ledger, chosen, limit))
    if as_json:
        print_json([_as_json(letter) for letter in letters])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "job", "tries", "when", "arguments", "error"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        when = f"{letter.at.astimezone():%m-%d %H:%M:%S}"
        arguments = json.dumps(letter.arguments, ensure_ascii=False)[:120]
        table.add_row(letter.id, letter.job or "?", str(letter.tries), when, arguments, letter.error[:120])
    out.print(table if letters else "nothing has failed for good")


@dead.command()
def show(run_id: Annotated[str, typer.Argument(help="Id of the run.")], as_json: Json = False) -> None:
    """Show one, with its arguments and its traceback."""
    letters = _with_both(lambda redis, ledger: dead_letters(redis, ledger, DeadLetterFilter(ids=(run_id,))))
    if not letters:
        raise fail(f"{run_id} has not failed for good; `worker dead list` shows what has")
    letter = letters[0]
    if as_json:
        print_json(_as_json(letter))
        return
    place = "ledger" if letter.in_ledger else "worker:dead"
    out.print(f"{letter.id}: {letter.job or 'unknown job'}: dead since {letter.at.isoformat()} ({place})", markup=False)
    out.print(f"  queue {letter.queue}, try {letter.tries}", markup=False)
    out.print(f"  arguments: {json.dumps(letter.arguments, ensure_ascii=False)}", markup=False, soft_wrap=True)
    out.print(f"  error: {letter.error}", markup=False, soft_wrap=True)
    if letter.traceback:
        out.print(letter.traceback, markup=False, soft_wrap=True)


@dead.command()
def retry(ids: RunIds = None, job: OfJob = None, older_than: OlderThan = None, all_: All = False) -> None:
    """Put them back into their queues, walks from their last checkpoint."""
    chosen = _chosen("retry", ids, job, older_than, all_)

    async def again(redis: Redis, ledger: Ledger) -> list[str]:
        letters = await dead_letters(redis, ledger, chosen)
        return [one.id for one in letters if await retry_run(redis, ledger, one.id, from_start=False)]

    _tell("in the queue again", ids, _with_both(again))


@dead.command()
def delete(
    ids: RunIds = None, job: OfJob = None, older_than: OlderThan = None, all_: All = False, yes: Yes = False
) -> None:
    """Forget them: walks with their steps, checkpoints and rows in quarantine."""
    chosen = _chosen("delete", ids, job, older_than, all_)
    if ids is None and not yes:
        count = len(_with_both(lambda redis, ledger: dead_letters(redis, ledger, chosen)))
        question = f"Forget {count} dead letters, and the checkpoints of walks among them?"
        if not typer.confirm(f"{question} (--yes says so beforehand)"):
            raise fail("nothing was changed")

    async def forget(redis: Redis, ledger: Ledger) -> list[str]:
        letters = await dead_letters(redis, ledger, chosen)
        await delete_dead(redis, ledger, letters)
        return [letter.id for letter in letters]

    _tell("deleted", ids, _with_both(forget))


def _chosen(
    command: str, ids: list[str] | None, job: str | None, older_than: str | None, all_: bool
) -> DeadLetterFilter:
    some = job is not None or older_than is not None
    if bool(ids) + some + all_ != 1:
        raise fail(f"dead {command}: give run ids, or --job and --older-than, or --all", EXIT_USAGE)
    return DeadLetterFilter(tuple(ids) if ids else None, job, _before(older_than))


def _tell(what: str, asked: list[str] | None, done: list[str]) -> None:
    if done:
        out.print(f"{what}: {', '.join(done)}" if len(done) <= 10 else f"{what}: {len(done)} runs", markup=False)
    missing = [run_id for run_id in asked or [] if run_id not in done]
    if missing:
        raise fail(f"not dead: {', '.join(missing)}; `worker dead list` shows what is")
    if not done:
        out.print("nothing of that has failed for good")


def _before(older_than: str | None) -> datetime | None:
    if older_than is None:
        return None
    read = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", older_than)
    if read is None:
        raise fail(f"--older-than {older_than}: write e.g. 90s, 30m, 12h or 7d", EXIT_USAGE)
    return datetime.now(UTC) - timedelta(seconds=float(read[1]) * _UNITS[read[2]])


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "job": letter.job,
        "queue": letter.queue,
        "arguments": letter.arguments,
        "tries": letter.tries,
        "at": letter.at.isoformat(),
        "error": letter.error,
        "traceback": letter.traceback,
        "in_ledger": letter.in_ledger,
    }


def _with_both(operation: Callable[[Redis, Ledger], Awaitable[T]]) -> T:
    settings, _ = state.load()

    async def run() -> T:
        database = open_database(settings)
        try:
            async with Client(settings) as client:
                await client.command(client.redis.ping())
                return await operation(client.redis, Ledger(database))
        finally:
            await database.close()

    return run_async(run(), settings)
