"""`worker limits`, `limits set`, `limits unset`: the limits that operators set in place of those of jobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.app import EXIT_USAGE, Json, app, fail, run_with_client
from worker.cli.output import print_json, print_line, print_table
from worker.queue.client import Client

limits = typer.Typer(help="List, set or unset limits of jobs and queues.", invoke_without_command=True)
app.add_typer(limits, name="limits")

Targets = Annotated[list[str], typer.Argument(help="Job names; for --running also queues.")]


@limits.callback()
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the limits that operators have set. `worker pace` sets the last column."""
    if context.invoked_subcommand is not None:
        return
    found = run_with_client(lambda client: client.limits())
    columns = (found.running, found.runs_per_second, found.rows_per_second)
    names = sorted({name for column in columns for name in column})
    if as_json:
        print_json(asdict(found))
    elif not names:
        print_line("operators have set no limit")
    else:
        print_table(
            ("job, queue or run", "running", "runs/s", "rows/s"),
            [(name, *(f"{column[name]:.12g}" if name in column else "" for column in columns)) for name in names],
        )


@limits.command("set")
def set_(
    targets: Targets,
    running: Annotated[int | None, typer.Option(min=0, help="Most runs at once; 0 for no limit.")] = None,
    runs_per_second: Annotated[float | None, typer.Option(min=1e-6, help="Most runs of a job a second.")] = None,
) -> None:
    """Set the limits of jobs or queues, in place of those of the code, from the next run on."""
    if running is None and runs_per_second is None:
        raise fail("limits set: give --running, or --runs-per-second", EXIT_USAGE)

    async def apply(client: Client) -> None:
        if running is not None:
            await client.limit(*targets, running=running)
        if runs_per_second is not None:
            await client.limit_rate(*targets, runs_per_second=runs_per_second)

    run_with_client(apply)
    shown = [] if running is None else [f"{running} running" if running else "any number running"]
    shown += [] if runs_per_second is None else [f"{runs_per_second:g} runs/s"]
    print_line(f"limit of {', '.join(targets)}: {', '.join(shown)}")


@limits.command()
def unset(
    targets: Targets,
    running: Annotated[bool, typer.Option("--running", help="Only the limit of runs at once.")] = False,
    runs_per_second: Annotated[bool, typer.Option("--runs-per-second", help="Only the rate of runs.")] = False,
) -> None:
    """Remove limits that operators have set: those of the code apply again."""
    is_all = not (running or runs_per_second)

    async def apply(client: Client) -> list[str]:
        found = await client.limits()
        limited = [name for name in targets if name in found.running and (running or is_all)]
        if limited:
            await client.limit(*limited, running=None)
        rated = [name for name in targets if name in found.runs_per_second and (runs_per_second or is_all)]
        if rated:
            await client.limit_rate(*rated, runs_per_second=None)
        return [name for name in targets if name not in limited and name not in rated]

    unknown = run_with_client(apply)
    if unknown:
        raise fail(f"no limit was set for {', '.join(unknown)}; `worker limits` lists them")
    print_line(f"limit of {', '.join(targets)}: as the code sets it")
