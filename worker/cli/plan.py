"""`worker plan`: what a job would do, before it runs."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Annotated, Any

import typer

from worker.cli.app import EXIT_FAILED, Json, app, run_async, state
from worker.cli.commands import read_argument
from worker.cli.output import print_json, print_line, print_table
from worker.job.definition import Job
from worker.job.registry import discover
from worker.plan import LoopPlan, make_plan
from worker.settings import Settings

Arguments = Annotated[
    list[str] | None, typer.Option("--arg", help="Argument of the job: name=value; the value is JSON, or else text.")
]


@app.command()
def plan(
    job: Annotated[str, typer.Argument(help="Name of the job.")], arg: Arguments = None, as_json: Json = False
) -> None:
    """Show what a job would do, without changing anything: SQL, plan, index, rows, time, locks, children, triggers.

    Exits with 1 if a walk of it would be refused.
    """
    settings, _ = state.load()
    found, values = find_job(settings, job, arg)
    made = run_async(make_plan(found, settings, **values), settings)
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
