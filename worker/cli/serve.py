"""`worker run`, `worker migrate`: what a deployment starts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from worker.cli.app import EXIT_CONFIG, EXIT_USAGE, app, open_database, out, run_async, state
from worker.db.migrate import migrate
from worker.launch import run as run_worker
from worker.observe.logs import configure
from worker.settings import Settings
from worker.supervisor import Supervisor

#: Exit codes of what no restart cures: wrong settings, a ledger not migrated, jobs that cannot be loaded.
HOPELESS = (EXIT_CONFIG, EXIT_USAGE)


@app.command()
def run(
    burst: Annotated[bool, typer.Option(help="End when nothing is due any more.")] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the ledger's schema up to date first.")] = False,
    name: Annotated[str | None, typer.Option(help="worker.name")] = None,
    queue: Annotated[str | None, typer.Option(help="worker.queue")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="worker.max_jobs")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, supervised by this one.")] = 1,
) -> None:
    """Run a worker until SIGTERM (or Ctrl-C), which drains it; a second one hastens."""
    settings, _ = state.load({"worker": {"name": name, "queue": queue, "max_jobs": max_jobs}})
    if processes == 1:
        run_worker(settings, burst=burst, migrate_first=migrate)
        return
    configure(settings.log)
    if migrate:
        run_async(_migrate(settings), settings)
    command = [sys.executable, "-m", "worker", *_global_options(), "run", *(["--burst"] if burst else [])]
    if settings.worker.name:
        command += ["--name", f"{settings.worker.name}-{{number}}"]
    command += ["--queue", settings.worker.queue, "--max-jobs", str(settings.worker.max_jobs)]
    raise typer.Exit(Supervisor(command, processes, hopeless=HOPELESS).run())


def _global_options() -> list[str]:
    """Return what stands before the command, for another process."""
    found = ["--settings", state.file] if state.file else []
    return found + [part for text in state.sets for part in ("--set", text)]


@app.command(name="migrate")
def migrate_() -> None:
    """Bring the ledger's tables (schema `worker`) up to date."""
    settings, _ = state.load()
    out.print(f"schema worker is at revision {run_async(_migrate(settings), settings)}")


async def _migrate(settings: Settings) -> str:
    database = open_database(settings)
    try:
        await database.check()
        return await migrate(database)
    finally:
        await database.close()
