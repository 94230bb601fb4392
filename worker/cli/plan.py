"""`worker plan` and `worker try`: what a job would do, before it runs."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Annotated, Any

import typer

from worker.cli.app import EXIT_FAILED, Json, app, run_async, state
from worker.cli.commands import read_argument
from worker.cli.output import counted, print_json, print_line, print_table
from worker.cli.selection import From, Subset, read_key, read_selection
from worker.job.definition import Job
from worker.job.registry import discover
from worker.plan import BatchTrial, LoopPlan, try_job
from worker.plan.plan import plan_part
from worker.settings import Settings

Arguments = Annotated[
    list[str] | None, typer.Option("--arg", help="Argument of the job: name=value; the value is JSON, or else text.")
]
_SHOWN_ROWS = 50
_CELL_CHARACTERS = 100


@app.command()
def plan(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    arg: Arguments = None,
    subset: Subset = None,
    from_: From = None,
    as_json: Json = False,
) -> None:
    """Show what a job would do, without changing anything: SQL, plan, index, rows, time, locks, children, triggers.

    Exits with 1 if a walk of it would be refused.
    """
    settings, _ = state.load()
    found, values = find_job(settings, job, arg)
    made = run_async(plan_part(found, settings, values, read_selection(subset, from_)), settings)
    if as_json:
        print_json(asdict(made))
    else:
        for loop in made.loops:
            _print_loop(loop)
        if not made.loops:
            print_line(f"{made.job}: no loop was reached")
        if made.ended:
            print_line(f"the plan ends here: {made.ended}")
    if any(loop.refusal for loop in made.loops) or not made.loops:
        raise typer.Exit(EXIT_FAILED)


def find_job(settings: Settings, name: str, arguments: list[str] | None) -> tuple[Job[..., Any], dict[str, Any]]:
    """Return a job that can be imported here, and the arguments of the command. Its warnings are shown, not logged.

    Raises:
        RegistrationError: The jobs cannot be imported.
        UnknownJob: There is no such job.
    """
    logging.getLogger("longhaul").addHandler(logging.NullHandler())
    job = discover(settings.worker.packages).find(name)
    return job, dict(read_argument(text) for text in arguments or [])


def _print_loop(loop: LoopPlan) -> None:
    print_line(f"{loop.step}: {loop.kind}" + (f" over {loop.table}" if loop.table else ""))
    print_table(("", ""), [(name, value) for name, value in _describe(loop) if value])
    if loop.children:
        print_table(
            ("  child", "of", "columns", "on delete", "index"),
            [
                (
                    f"  {child.child}",
                    child.parent,
                    child.columns,
                    child.on_delete,
                    "yes" if child.is_indexed else "MISSING",
                )
                for child in loop.children
            ],
        )
    for warning in loop.warnings:
        print_line(f"  warning: {warning}")
    if loop.refusal:
        print_line(f"  refused: {loop.refusal}")


def _describe(loop: LoopPlan) -> list[tuple[str, str]]:
    facts, pace = loop.table_facts, loop.pace
    return [
        ("  SQL", loop.sql),
        ("  plan", "\n".join(loop.explain)),
        ("  key", ", ".join(loop.key)),
        ("  index", loop.index or (f"MISSING: {loop.create_index}" if loop.create_index else "")),
        ("  rows", "" if loop.rows is None else f"about {loop.rows:,}"),
        ("  batches", f"{loop.batch_rows:,} rows each" + ("" if loop.batches is None else f", about {loop.batches:,}")),
        (
            "  time",
            ""
            if pace is None or loop.seconds is None
            else f"about {loop.seconds:,.0f} s, at the pace of run {pace.run_id}: {pace.rows_per_second:,.0f} rows/s",
        ),
        ("  locks", "\n".join(loop.locks)),
        ("  triggers", "\n".join(loop.triggers)),
        ("  dead rows", "" if facts is None else f"{facts.dead_rows:,}, live rows {facts.live_rows:,}"),
        (
            "  replicas",
            "\n".join(
                f"{one.name}: {one.state} {one.sync}"
                + ("" if one.lag_seconds is None else f", lag {one.lag_seconds:.1f} s")
                for one in loop.replicas
            ),
        ),
    ]


@app.command(name="try")
def try_(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    arg: Arguments = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches to run, over all loops.")] = 3,
    rows: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 50,
    key: Annotated[str | None, typer.Option(help="Key of the only row to process: a value, or a JSON list.")] = None,
    subset: Subset = None,
    from_: From = None,
    as_json: Json = False,
) -> None:
    """Run some batches for real, show what each would change, and roll it back. Effects elsewhere are real."""
    settings, _ = state.load()
    found, values = find_job(settings, job, arg)
    selection = read_selection(subset, from_)
    only = None if key is None else read_key(key)
    trial = run_async(
        try_job(found, settings, values, batches=batches, rows=rows, key=only, selection=selection), settings
    )
    if as_json:
        print_json(asdict(trial))
    else:
        for batch in trial.batches:
            _print_batch(batch)
        if not trial.batches:
            print_line(f"{trial.job}: no row to process")
        print_line(f"note: {trial.note}")
        if trial.error:
            print_line(f"the job failed: {trial.error}")
    if trial.error:
        raise typer.Exit(EXIT_FAILED)


def _print_batch(batch: BatchTrial) -> None:
    counts = ", ".join(f"{table}: {count}" for table, count in batch.counts.items()) or "no change"
    keys = "" if batch.first_key is None else f", keys {_cell(batch.first_key)} to {_cell(batch.last_key)}"
    rows = counted(batch.rows, "row")
    print_line(f"{batch.step}, batch {batch.number}: {rows}{keys}, {batch.seconds:.2f} s; changes: {counts}")
    lines = [
        (
            change.table,
            ", ".join(f"{name}={_cell(value)}" for name, value in change.key.items()),
            change.action,
            name,
            _cell(change.before[name]) if name in change.before else "",
            _cell(change.after[name]) if name in change.after else "",
        )
        for change in batch.changes[:_SHOWN_ROWS]
        for name in (change.after if change.action == "INSERT" else change.before)
    ]
    if lines:
        print_table(("table", "row", "action", "column", "before", "after"), lines)
    if len(batch.changes) > _SHOWN_ROWS:
        print_line(f"  and {counted(len(batch.changes) - _SHOWN_ROWS, 'more row')}: --json has them")
    for reason in batch.rejected[:_SHOWN_ROWS]:
        print_line(f"  would be quarantined: {reason}")
    if len(batch.rejected) > _SHOWN_ROWS:
        print_line(f"  and {counted(len(batch.rejected) - _SHOWN_ROWS, 'more row')} would be quarantined")
    if batch.unshown:
        print_line(f"  not all changes can be shown of {', '.join(batch.unshown)}")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
