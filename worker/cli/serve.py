"""`worker run`, `worker migrate`: what a deployment starts."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.app import app, open_database, out, run_async, state
from worker.db.migrate import migrate
from worker.launch import run as run_worker
from worker.settings import Settings


@app.command()
def run(
    burst: Annotated[bool, typer.Option(help="End when nothing is due any more.")] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the ledger's schema up to date first.")] = False,
    name: Annotated[str | None, typer.Option(help="worker.name")] = None,
    queue: Annotated[str | None, typer.Option(help="worker.queue")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="worker.max_jobs")] = None,
) -> None:
    """Run a worker until SIGTERM (or Ctrl-C), which drains it; a second one hastens."""
    settings, _ = state.load({"worker": {"name": name, "queue": queue, "max_jobs": max_jobs}})
    run_worker(settings, burst=burst, migrate_first=migrate)


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
