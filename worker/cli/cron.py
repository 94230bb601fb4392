"""`worker cron`, `worker cron trigger`: lists the due times of jobs with their last runs, and starts an extra run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli.app import Json, app, run_async, run_with_client, state
from worker.cli.commands import read_argument
from worker.cli.output import print_json, print_line, print_table
from worker.queue.audit import record_order
from worker.queue.client import Client
from worker.queue.cron_lines import CronStatus
from worker.settings import Settings

cron = typer.Typer(help="List due times, or trigger a cron job now.", invoke_without_command=True)
app.add_typer(cron, name="cron")


@cron.callback()
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the cron lines of all jobs: the next due time, and the last one with its run."""
    if context.invoked_subcommand is not None:
        return
    lines = [_as_json(line) for line in run_with_client(lambda client: client.cron())]
    if as_json:
        print_json(lines)
    elif not lines:
        print_line("no job has a cron line")
    else:
        names = ("job", "line", "next", "last", "run", "state")
        print_table(names, [tuple(line[name] or "" for name in names) for line in lines])


@cron.command()
def trigger(
    job: Annotated[str, typer.Argument(help="Name of a job that has a cron line.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="name=value, instead of the default; the value is JSON, or else text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Enqueue one run of a cron job now. Its due times do not change."""
    settings, _ = state.load()
    values = dict(read_argument(text) for text in arguments or [])
    run_id = run_async(_trigger(settings, job, values), settings)
    if as_json:
        print_json({"id": run_id})
    else:
        print_line(run_id)


async def _trigger(settings: Settings, job: str, arguments: dict[str, Any]) -> str:
    async with Client(settings) as client:
        run = await client.trigger_cron(job, arguments)
        if run.is_new:
            await client.command(record_order(client.redis, "cron_run", [job], {"run": run.id}))
        return run.id


def _as_json(line: CronStatus) -> dict[str, Any]:
    return {
        "job": line.job,
        "line": line.line,
        "next": line.next_at.isoformat(),
        "last": line.last_at and line.last_at.isoformat(),
        "run": line.run_id,
        "state": line.state,
    }
