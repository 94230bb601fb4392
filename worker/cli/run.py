"""`worker run`, `worker migrate`: the commands of a deployment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from arq.utils import import_string

from worker.arq_compat.worker import create_worker
from worker.cli.app import EXIT_CONFIG, EXIT_USAGE, app, fail, open_database, run_async, state
from worker.cli.output import print_line, print_text
from worker.db.grants import KINDS, RoleKind, grants
from worker.db.migrate import known_revisions, migrate, migration_sql
from worker.errors import RegistrationError
from worker.launch import main as run_worker
from worker.observe.logs import configure
from worker.observe.metrics.processes import ProcessMetrics
from worker.queue.acl import USER_KINDS, UserKind, acl_rules
from worker.runtime.service_manager import ServiceManager
from worker.runtime.supervisor import Supervisor
from worker.runtime.wiring import worker_name
from worker.settings import Settings, load_with_origins

#: Exit codes that a restart does not fix: invalid settings, a ledger that is not migrated, jobs that cannot be loaded.
HOPELESS = (EXIT_CONFIG, EXIT_USAGE)


@app.command()
def run(
    burst: Annotated[bool, typer.Option(help="End when no job is due.")] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Upgrade the ledger's schema first.")] = False,
    name: Annotated[str | None, typer.Option(help="worker.name")] = None,
    queue: Annotated[str | None, typer.Option(help="worker.queue")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="worker.max_jobs")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of worker processes, supervised by this one.")] = 1,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="metrics.port: serve /metrics, /healthz and /readyz there.")
    ] = None,
    report_to: Annotated[str | None, typer.Option(hidden=True, help="Socket of the supervisor.")] = None,
    arq: Annotated[
        str | None, typer.Option(metavar="MODULE.CLASS", help="Run an arq project's WorkerSettings instead.")
    ] = None,
) -> None:
    """Run a worker. SIGTERM or Ctrl-C drains it; a second one forces the shutdown."""
    if arq is not None:
        if migrate:
            raise typer.BadParameter(
                "--migrate cannot be combined with --arq: run `worker migrate` first", param_hint="--arq"
            )
        if metrics_port is not None:
            os.environ["LONGHAUL_METRICS__PORT"] = str(metrics_port)
        if processes > 1:
            rest = (processes, burst, name, queue, max_jobs)
            raise typer.Exit(_supervise_with_metrics(_load_metrics(), ["--arq", arq], *rest))
        given = {"burst": burst or None, "queue_name": queue, "max_jobs": max_jobs}
        given = {argument: value for argument, value in given.items() if value is not None}
        _run_arq(arq, name, given, report_to)
        return
    of_worker = {"name": name, "queue": queue, "max_jobs": max_jobs}
    settings, _ = state.load({"worker": of_worker, "metrics": {"port": metrics_port}})
    if processes == 1:
        run_worker(settings, burst=burst, migrate_first=migrate, report_to=report_to)
        return
    configure(settings.log)
    if migrate:
        run_async(_migrate(settings), settings)
    raise typer.Exit(_supervise_with_metrics(settings, [], processes, burst, settings.worker.name, queue, max_jobs))


def _load_metrics() -> Settings:
    """Return the settings of metrics for the supervisor of an arq project, which may need no other settings."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("LONGHAUL_METRICS__")}
    return load_with_origins(state.file or os.devnull, environment=environment)[0]


def _supervise_with_metrics(settings: Settings, options: list[str], processes: int, *rest: Any) -> int:
    """Run several processes of this command, and serve their metrics if there is a port. Return the exit code."""
    if settings.metrics.port is None:
        return _supervise(options, processes, *rest)
    with ProcessMetrics(settings, processes) as metrics:
        return _supervise([*options, "--report-to", metrics.path], processes, *rest, wait=metrics.wait)


def _supervise(
    options: list[str],
    processes: int,
    burst: bool,
    name: str | None,
    queue: str | None,
    max_jobs: int | None,
    *,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Run several processes of this command. Return the exit code."""
    named = None if name is None else f"{name}-{{number}}"
    given = [("--name", named), ("--queue", queue), ("--max-jobs", max_jobs)]
    command = [sys.executable, "-m", "worker", *_global_options(), "run", *options, *(["--burst"] if burst else [])]
    command += [part for option, value in given if value is not None for part in (option, str(value))]
    reporting = ServiceManager.from_environment().while_supervising(wait)
    return Supervisor(command, processes, hopeless=HOPELESS, wait=reporting).run()


def _global_options() -> list[str]:
    """Return the options before the command, for another process."""
    found = ["--settings", state.file] if state.file else []
    return found + [part for text in state.sets for part in ("--set", text)]


def _run_arq(place: str, name: str | None, given: dict[str, Any], report_to: str | None) -> None:
    if str(Path.cwd()) not in sys.path:  # as arq's own command line does
        sys.path.append(str(Path.cwd()))
    try:
        found = import_string(place)
    except ImportError as error:
        raise RegistrationError(f"--arq {place}: {error}") from error
    if name is not None:
        os.environ["LONGHAUL_WORKER__NAME"] = name
    if state.file or state.sets:
        given = given | {"settings": state.load()[0]}
    asyncio.set_event_loop(asyncio.new_event_loop())  # the worker gets it when it is created
    worker = create_worker(found, **given)
    worker.report_to = report_to
    log = worker.settings.log
    configure(log, worker=worker_name(worker.settings))
    logging.getLogger("arq").setLevel(log.levels.get("arq", log.level))  # the lines about its jobs
    worker.run()


@app.command(name="migrate")
def migrate_(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a new database instead of running it.")] = False,
) -> None:
    """Upgrade the ledger's tables (schema `worker`). A newer schema stays as it is."""
    settings, _ = state.load()
    if sql:
        print_text(migration_sql())
        return
    found, known = run_async(_migrate(settings), settings), known_revisions()
    note = "" if found in known else f", newer than the {known[0]} of this version: nothing to do"
    print_line(f"schema worker is at revision {found}{note}")


@app.command(name="grants")
def grants_(
    kind: Annotated[str, typer.Argument(help="The kind of process: worker, client, enqueue, reader or operator.")],
    role: Annotated[str, typer.Argument(help="Name of the role, or of the user of Redis.")],
    redis: Annotated[
        bool, typer.Option("--redis", help="Print the line of an ACL file of Redis, without a password.")
    ] = False,
) -> None:
    """Print the GRANT statements that a role needs, for `psql`; or the rights of a user of Redis."""
    kinds = USER_KINDS if redis else KINDS
    if kind not in kinds:
        raise fail(f"grants {kind}: choose one of {', '.join(kinds)}", EXIT_USAGE)
    if redis:
        if not role.isprintable() or " " in role or not role:
            raise fail("grants --redis: a user of Redis has a printable name without spaces", EXIT_USAGE)
        settings, _ = state.load()
        print_text(f"user {role} {' '.join(acl_rules(cast(UserKind, kind), settings))}\n")
        return
    for statement in grants(cast(RoleKind, kind), role):
        print_text(statement + "\n")


async def _migrate(settings: Settings) -> str:
    database = open_database(settings)
    try:
        await database.check()
        return await migrate(database)
    finally:
        await database.close()
