"""`worker verify`, `worker report` and `worker require`: what runs have done, and what they have left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.app import Json, app, fail, open_database, run_async, state
from worker.cli.output import counted, print_json, print_line, print_table
from worker.errors import LonghaulError, UsageError
from worker.job.registry import discover
from worker.ledger import Ledger, MissingMigration
from worker.plan.gate import describe_missing
from worker.plan.report import RunReport, StepReport, make_report
from worker.plan.report_page import make_page, plot_text
from worker.plan.verify import Undone, find_undone
from worker.settings import Settings

RunId = Annotated[str, typer.Argument(help="Id of the run.")]


@app.command()
def verify(run_id: RunId, as_json: Json = False) -> None:
    """Look for rows that a run has left undone, by the `verify=` of its job, and record the result with the run.

    Exits with 1 if there are such rows.
    """
    settings, _ = state.load()
    undone = run_async(_verify(settings, run_id), settings)
    if as_json:
        print_json({"run": run_id, "count": undone.count if undone else 0, "keys": undone.keys if undone else []})
    else:
        print_line(f"{run_id}: {undone.describe() if undone else 'complete'}")
    if undone:
        raise typer.Exit(1)


async def _verify(settings: Settings, run_id: str) -> Undone | None:
    database = open_database(settings)
    try:
        ledger = Ledger(database)
        known = await ledger.find(run_id)
        if known is None:
            raise LonghaulError(f"no run {run_id!r} in the ledger; `worker runs` lists them")
        job = discover(settings.worker.packages).find(known.job)
        if job.rules.verify is None:
            raise UsageError(f"job {job.name} has no verify=")
        positional, named = json.loads(known.arguments or "[[], {}]")[:2]
        undone = await find_undone(database, job, job.decode_arguments(positional, named))
        error = None if undone is None else undone.describe()
        await ledger.set_verified(run_id, error, is_once=job.rules.once)
        return undone
    finally:
        await database.close()


@app.command()
def require(
    names: Annotated[list[str], typer.Argument(help="Names of data migrations: jobs with once=True.")],
    as_json: Json = False,
) -> None:
    """Exit with 0 if all data migrations are done, else list the missing ones and exit with 1."""
    settings, _ = state.load()
    missing = run_async(_find_missing(settings, names), settings)
    if as_json:
        print_json([asdict(one) for one in missing])
    elif missing:
        raise fail("\n".join(map(describe_missing, missing)))
    else:
        print_line(f"done: {', '.join(names)}")
    if missing:
        raise typer.Exit(1)


async def _find_missing(settings: Settings, names: list[str]) -> list[MissingMigration]:
    database = open_database(settings)
    try:
        return await Ledger(database).find_missing_migrations(names)
    finally:
        await database.close()


@app.command()
def report(
    run_id: RunId,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with plots to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a run has done: rows, batches, rate over time, time by reason, attempts, quarantine, hands."""
    settings, _ = state.load()
    made = run_async(_report(settings, run_id), settings)
    if made is None:
        raise fail(
            f"no run {run_id!r} in the ledger, which has a run from its first loop or step on; `worker runs` lists them"
        )
    if html is not None:
        try:
            html.write_text(make_page(made), encoding="utf-8")
        except OSError as error:
            raise fail(f"cannot write {html}: {error.strerror or error}") from None
        print_line(f"written: {html}")
    elif as_json:
        print_json(asdict(made))
    else:
        _print_report(made)


async def _report(settings: Settings, run_id: str) -> RunReport | None:
    database = open_database(settings)
    try:
        return await make_report(database, run_id)
    finally:
        await database.close()


def _print_report(made: RunReport) -> None:
    run = made.run
    print_line(f"{run.id}: {run.job}: {run.state}, {made.seconds:,.1f} s")
    print_line(
        f"  {counted(run.rows, 'row')} in {counted(run.batches, 'batch')}; attempt {run.attempt}, "
        f"{counted(run.takeovers, 'takeover')}, {counted(made.quarantined, 'row')} in quarantine, "
        f"{counted(1 + len(made.hands), 'hand')}"
    )
    if run.error:
        print_line(f"  error: {run.error}")
    _print_times(made.time)
    for step in made.steps:
        _print_step(step)
    if made.hands:
        print_table(
            ("hand", "state", "worker", "rows"),
            [(hand["id"], hand["state"], str(hand["owner"] or ""), str(hand["rows"])) for hand in made.hands],
        )


def _print_step(step: StepReport) -> None:
    end = "" if step.is_done else ", not done"
    rate = f"{step.rows_per_second:,.0f} rows/s"
    print_line(
        f"{step.name}: {step.kind}: {counted(step.rows, 'row')} in {counted(step.batches, 'batch')}, {rate}{end}"
    )
    plot = plot_text(step.rates)
    if plot:
        top = max(one.rows_per_second for one in step.rates)
        print_line(f"  {plot}  up to {top:,.0f} rows/s")
    _print_times(step.time)


def _print_times(time: Mapping[str, float]) -> None:
    total = sum(time.values()) or 1.0
    print_table(
        ("  time", "seconds", "share"),
        [
            (f"  {reason}", f"{seconds:,.1f}", f"{seconds / total:.0%}")
            for reason, seconds in sorted(time.items(), key=lambda one: -one[1])
        ],
    )
