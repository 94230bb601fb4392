"""Commands that only look: status, runs, watch, jobs, settings, keys."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from worker.cli.app import Json, app, fail, open_database, out, print_json, run_async, state
from worker.job.registry import discover
from worker.ledger import Ledger
from worker.ledger.records import RunRecord
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.overview import Overview, overview
from worker.settings import DEFAULT_FILE, Settings, describe_type, field_names, mask_passwords


@app.command()
def status(as_json: Json = False) -> None:
    """Show queue, workers, runs that work or wait, and orders."""
    settings, _ = state.load()
    seen = run_async(_overview(settings), settings)
    if as_json:
        print_json(asdict(seen))
        return
    out.print(
        f"queue {seen.queue}: {seen.waiting} waiting, {seen.deferred} deferred, {seen.running} running, "
        f"{seen.dead_letters} dead letters"
    )
    for name, members in (("paused", seen.paused), ("cancelled", seen.cancelled)):
        if members:
            out.print(f"{name}: {', '.join(members)}", markup=False)
    workers = _table("worker", "pid", "host", "state", "jobs", "seen")
    for name, worker in seen.workers.items():
        jobs = f"{len(worker['jobs'])} of {worker['max_jobs']}"
        workers.add_row(name, str(worker["pid"]), worker["host"], worker["state"], jobs, _ago(worker["seen_at"]))
    out.print(workers if seen.workers else "no worker has been seen: start one with `worker run`")
    if seen.runs:
        out.print(_runs_table(seen.runs))


@app.command()
def watch(
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each run and look.")] = False,
) -> None:
    """InvalidationListener the runs in progress until Ctrl-C; a plain line for each look without a terminal."""
    settings, _ = state.load()

    async def look() -> None:
        async with Client(settings) as client:
            if not out.is_terminal or once or as_json:
                while True:
                    seen = await client.command(overview(client.redis, settings))
                    working = _working(seen)
                    for run in working:
                        line = json.dumps(run, ensure_ascii=False) if as_json else _line(run)
                        out.print(line, markup=False, soft_wrap=True)
                    if not working and not as_json:
                        idle = f"nothing is running; {seen.waiting} waiting, {seen.deferred} deferred"
                        out.print(f"{time.strftime('%H:%M:%S')} {idle}")
                    if once:
                        return
                    await asyncio.sleep(every)
            with Live(console=out, auto_refresh=False) as live:
                while True:
                    seen = await client.command(overview(client.redis, settings))
                    live.update(_runs_table(_working(seen)), refresh=True)
                    await asyncio.sleep(every)

    run_async(look(), settings)


@app.command()
def runs(
    run_id: Annotated[str | None, typer.Option("--id", help="One run, with its steps and its error.")] = None,
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    state_: Annotated[
        str | None, typer.Option("--state", help="waiting, running, paused, succeeded, dead or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List the runs of the ledger, and the dead letters."""
    settings, _ = state.load()
    found, letters = run_async(_runs(settings, run_id, job, state_, limit), settings)
    if run_id is not None and not found and run_id not in letters:
        where = run_async(_in_queue(settings, run_id), settings)
        if where is None:
            raise fail(f"no run {run_id!r} in queue or ledger, and no dead letter; `worker status` shows what waits")
        if not as_json:
            out.print(where, markup=False, soft_wrap=True)
            return
    if as_json:
        shown = [asdict(run) for run in found]
        if run_id is None:
            for one in shown:
                del one["steps"]  # read for one run only
        print_json({"runs": shown, "dead_letters": letters})
        return
    if run_id is not None:
        for run in found:
            _print_run(run)
    else:
        out.print(_ledger_table(found) if found else "no run in the ledger")
    for name, letter in letters.items():
        out.print(f"dead letter {name} ({letter['at']}): {letter['error']}", markup=False, soft_wrap=True)


@app.command()
def jobs(as_json: Json = False) -> None:
    """List the jobs that this worker knows."""
    settings, _ = state.load()
    known = discover(settings.worker.packages)
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "arguments": str(one.signature),
                    "cron": [str(line) for line in one.schedule],
                    "summary": one.summary,
                }
                for one in known.values()
            ]
        )
        return
    table = _table("job", "arguments", "cron", "what it does")
    for one in sorted(known.values(), key=lambda each: each.name):
        table.add_row(one.name, str(one.signature), "\n".join(map(str, one.schedule)), one.summary)
    out.print(table)


@app.command()
def settings(as_json: Json = False) -> None:
    """Print the settings in force, and where each value came from; passwords are masked."""
    values, origins = state.load()
    rows = []
    for name in field_names():
        section, field = name.split(".")
        value = getattr(getattr(values, section), field)
        shown = mask_passwords(value) if value and field.endswith("url") else value
        rows.append((name, shown, origins[name], describe_type(section, field)))
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin, _ in rows})
        return
    if not any(origin.endswith(".toml") for origin in origins.values()):
        out.print(f"no {DEFAULT_FILE} was read: there is none in {Path.cwd()}", markup=False, soft_wrap=True)
    table = _table("setting", "value", "from", "type")
    for name, value, origin, kind in rows:
        table.add_row(name, "" if value is None else str(value), origin, kind)
    out.print(table)


@app.command(name="keys")
def keys_(as_json: Json = False) -> None:
    """Print every key in Redis: its type, what it holds, and how long it lives."""
    if as_json:
        print_json([one._asdict() for one in keys.SCHEMA])
        return
    table = _table("key", "type", "written by", "holds", "lives")
    for one in keys.SCHEMA:
        table.add_row(one.name, one.type, one.written_by, one.holds, one.lives)
    out.print(table)


async def _in_queue(settings: Settings, run_id: str) -> str | None:
    """Return what Redis has of a run that the ledger does not know, in a line."""
    async with Client(settings) as client:
        state_ = await client.run(run_id).status()
        if state_ == "unknown":
            return None
        error = await client.command(client.redis.hget(keys.RUN + run_id, "error"))
        return f"{run_id}: {state_}" + (f": {error.decode()}" if error else "") + " (not in the ledger)"


def _working(seen: Overview) -> list[dict[str, str]]:
    return [run for run in seen.runs if "due_seconds" not in run]


async def _overview(settings: Settings) -> Overview:
    async with Client(settings) as client:
        seen: Overview = await client.command(overview(client.redis, settings))
        return seen


async def _runs(
    settings: Settings, run_id: str | None, job: str | None, state_: str | None, limit: int
) -> tuple[list[RunRecord], dict[str, Any]]:
    database = open_database(settings)
    try:
        found = await Ledger(database).list_runs(run_id=run_id, job=job, state=state_, limit=limit)
        async with Client(settings) as client:
            raw = await client.command(client.redis.hgetall(keys.DEAD))
    finally:
        await database.close()
    letters = {name.decode(errors="replace"): json.loads(text) for name, text in raw.items()}
    letters = {name: letter for name, letter in letters.items() if not letter.get("ledger")}  # shown as runs
    if run_id is not None:
        letters = {name: letter for name, letter in letters.items() if name == run_id}
    elif job is not None or state_ not in (None, "dead"):
        letters = {}
    return found, letters


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _runs_table(found: list[dict[str, str]]) -> Table:
    table = _table("run", "job", "state", "rows", "%", "rows/s", "left", "batch", "worker", "due", "waits for", "error")
    for run in found:
        table.add_row(
            run["id"],
            run.get("job", ""),
            run.get("state", ""),
            run.get("rows", ""),
            run.get("percent", ""),
            run.get("rate", ""),
            f"{run['eta_seconds']} s" if run.get("eta_seconds") else "",
            run.get("batch_size", ""),
            run.get("worker", ""),
            f"in {run['due_seconds']} s" if float(run.get("due_seconds") or 0) else "",
            run.get("throttled", ""),
            run.get("error", ""),
        )
    return table


def _line(run: dict[str, str]) -> str:
    names = ("job", "state", "rows", "percent", "rate", "eta_seconds", "batch_size", "worker", "throttled", "error")
    shown = " ".join(f"{name}={run[name]}" for name in names if run.get(name))
    return f"{time.strftime('%H:%M:%S')} {run['id']} {shown}"


def _ledger_table(found: list[RunRecord]) -> Table:
    table = _table("run", "job", "state", "rows", "batches", "attempt", "takeovers", "began", "took", "error")
    for run in found:
        end = run.finished_at or datetime.now(UTC)
        took = f"{(end - run.created_at).total_seconds():.1f} s"
        error = (run.error or "")[:120]
        table.add_row(
            run.id,
            run.job,
            run.state,
            str(run.rows),
            str(run.batches),
            str(run.attempt),
            str(run.takeovers),
            f"{run.created_at.astimezone():%m-%d %H:%M:%S}",
            took,
            error,
        )
    return table


def _print_run(run: RunRecord) -> None:
    out.print(f"{run.id}: {run.job}: {run.state}", markup=False)
    out.print(f"  attempt {run.attempt}, {run.takeovers} takeovers, last worker {run.owner}", markup=False)
    if run.result is not None:
        out.print(f"  result: {json.dumps(run.result)}", markup=False, soft_wrap=True)
    if run.error:
        out.print(f"  error: {run.error}", markup=False, soft_wrap=True)
    table = _table("step", "kind", "rows", "batches", "estimate", "cursor", "upper bound", "done")
    for step in run.steps:
        table.add_row(
            step.name,
            step.kind,
            str(step.rows),
            str(step.batches),
            str(step.total or ""),
            json.dumps(step.cursor),
            json.dumps(step.upper_bound),
            "yes" if step.done else "no",
        )
    if run.steps:
        out.print(table)


def _ago(moment: str) -> str:
    return f"{(datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds():.0f} s ago"
