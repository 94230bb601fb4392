"""`worker runs`, `worker runs show`: the runs in the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from worker.cli.app import EXIT_USAGE, Json, app, fail, run_with_client
from worker.cli.output import print_block, print_json, print_line, print_table
from worker.db.tables import RUN_STATES
from worker.ledger import RunRecord, StepRecord
from worker.ledger.recorded_steps import KINDS as RECORDED
from worker.ledger.records import RangeState
from worker.queue.run_details import RunDetails
from worker.queue.run_log import LogLine

_ERROR_CHARACTERS = 120
_MOST_RANGES = 20
_RESULT_CHARACTERS = 200

runs = typer.Typer(help="List the runs in the ledger, or show one.", invoke_without_command=True)
app.add_typer(runs, name="runs")


@runs.callback()
def list_(
    context: typer.Context,
    job: Annotated[str | None, typer.Option(help="Only runs of this job.")] = None,
    state_: Annotated[
        str | None, typer.Option("--state", help=f"Only runs in this state: {', '.join(RUN_STATES)}.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Only runs with this text in id, job, arguments or error.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to list, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List the runs in the ledger, newest first. Jobs without a durable loop are not in the ledger."""
    if context.invoked_subcommand is not None:
        return
    if state_ is not None and state_ not in RUN_STATES:
        raise fail(f"--state {state_}: choose one of {', '.join(RUN_STATES)}", EXIT_USAGE)
    options: dict[str, Any] = {"job": job, "state": state_, "search": search, "limit": limit}
    found = run_with_client(lambda client: client.recorded_runs(**options))
    if as_json:
        print_json([{name: value for name, value in asdict(run).items() if name != "steps"} for run in found])
    elif found:
        _print_table(found)
    else:
        print_line("no run in the ledger")


@runs.command()
def show(
    run_id: Annotated[str, typer.Argument(help="Id of the run.")],
    log: Annotated[bool, typer.Option("--log", help="Show the last lines of its log, with their tracebacks.")] = False,
    as_json: Json = False,
) -> None:
    """Show one run with its steps and its error, even if only Redis has it."""
    if log:
        _show_log(run_id, as_json=as_json)
        return
    found = run_with_client(lambda client: client.find_run(run_id))
    if found is None:
        raise fail(f"no run {run_id!r} in the queue or the ledger, and no dead letter; `worker status` lists the queue")
    if as_json:
        print_json(_describe(found) if found.record is None else asdict(found.record))
        return
    if found.record is not None:
        _print_run(found.record)
        return
    print_line(f"{run_id}: {found.state}" + (f": {found.error}" if found.error else "") + " (not in the ledger)")
    if found.traceback:
        print_block(found.traceback)


def _show_log(run_id: str, *, as_json: bool) -> None:
    lines = run_with_client(lambda client: client.run_log(run_id))
    if not lines and run_with_client(lambda client: client.find_run(run_id)) is None:
        raise fail(f"no run {run_id!r} in the queue or the ledger, and no line of its log")
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    for line in lines:
        _print_log_line(run_id, line)
    if not lines:
        print_line(f"{run_id}: no line of its log is kept")


def _print_log_line(run_id: str, line: LogLine) -> None:
    place = [] if line.attempt is None else [f"attempt {line.attempt}"]
    place += [line.step] if line.step else []
    place += [line.run.removeprefix(f"{run_id}:")] if line.run != run_id else []
    extra = "".join(f" {name}={value}" for name, value in line.extra.items())
    moment = line.time.astimezone().isoformat(sep=" ", timespec="milliseconds")
    print_line(f"{moment} {line.level:<7} {line.logger} [{', '.join(place)}] {line.message}{extra}")
    if line.exception:
        print_block(line.exception)


def _describe(found: RunDetails) -> dict[str, Any]:
    """Return a run that is not in the ledger, for --json."""
    known: dict[str, Any] = {"id": found.id, "job": found.job} if found.state == "dead" else {"id": found.id}
    known |= {"state": found.state, "error": found.error}
    return known | {"traceback": found.traceback} if found.state == "dead" else known


def _print_table(found: list[RunRecord]) -> None:
    print_table(
        ("run", "job", "state", "rows", "batches", "attempt", "takeovers", "began", "took", "error"),
        [
            (
                run.id,
                run.job,
                run.state,
                str(run.rows),
                str(run.batches),
                str(run.attempt),
                str(run.takeovers),
                f"{run.created_at.astimezone():%m-%d %H:%M:%S}",
                f"{((run.finished_at or datetime.now(UTC)) - run.created_at).total_seconds():.1f} s",
                (run.error or "")[:_ERROR_CHARACTERS],
            )
            for run in found
        ],
    )


def _print_run(run: RunRecord) -> None:
    print_line(f"{run.id}: {run.job}: {run.state}")
    print_line(f"  attempt {run.attempt}, {run.takeovers} takeovers, last worker {run.owner}")
    if run.result is not None:
        print_line(f"  result: {json.dumps(run.result, ensure_ascii=False)}")
    if run.error:
        print_line(f"  error: {run.error}")
    recorded = [step for step in run.steps if step.kind in RECORDED]
    walked = [step for step in run.steps if step.kind not in RECORDED]
    if recorded:
        columns = ("step", "kind", "began", "took", "result")
        print_table(columns, [_describe_recorded(step) for step in recorded])
    if walked:
        print_table(
            ("step", "kind", "rows", "%", "batches", "estimate", "cursor", "upper bound", "done"),
            [
                (
                    step.name,
                    step.kind,
                    str(step.rows),
                    _percent(step),
                    str(step.batches),
                    str(step.total or ""),
                    json.dumps(step.cursor, ensure_ascii=False),
                    json.dumps(step.upper_bound, ensure_ascii=False),
                    "yes" if step.done else "no",
                )
                for step in walked
            ],
        )
    _print_ranges(run)


def _print_ranges(run: RunRecord) -> None:
    """Print the hands of each walk with their rates, and the ranges that are not done."""
    for step in dict.fromkeys(each.step for each in run.ranges):
        ranges = [each for each in run.ranges if each.step == step]
        print_line(f"  {step}: {sum(each.done for each in ranges)} of {len(ranges)} ranges done")
        print_table(
            ("hand", "rows", "rows/s", "ranges", "now in"),
            [_describe_hand(run.id, owner, ranges) for owner in _list_owners(ranges)],
        )
        rest = [each for each in ranges if not each.done]
        if rest:
            columns = ("range", "partition", "behind", "up to", "cursor", "rows", "hand", "error")
            print_table(columns, [_describe_range(each) for each in rest[:_MOST_RANGES]])
        if len(rest) > _MOST_RANGES:
            print_line(f"  and {len(rest) - _MOST_RANGES} more; --json has all of them")


def _list_owners(ranges: list[RangeState]) -> list[str]:
    return sorted({each.owner for each in ranges if each.owner is not None})


def _describe_hand(run_id: str, owner: str, ranges: list[RangeState]) -> tuple[str, ...]:
    """Return the row of a hand: its rows are those of the ranges that it owns, or owned last."""
    own = [each for each in ranges if each.owner == owner]
    began = min(each.started_at or each.updated_at for each in own)
    seconds = (max(each.updated_at for each in own) - began).total_seconds()
    rows = sum(each.rows for each in own)
    rate = f"{rows / seconds:,.0f}" if seconds > 0 else ""
    open_ranges = ", ".join(str(each.number) for each in own if not each.done)
    name = "the run itself" if owner == run_id else owner.removeprefix(f"{run_id}:")
    return name, str(rows), rate, str(sum(each.done for each in own)), open_ranges


def _describe_range(each: RangeState) -> tuple[str, ...]:
    keys = (json.dumps(key, ensure_ascii=False) for key in (each.lower, each.upper, each.cursor))
    return (
        str(each.number),
        each.partition or "",
        *keys,
        str(each.rows),
        each.owner or "",
        (each.error or "")[:_ERROR_CHARACTERS],
    )


def _describe_recorded(step: StepRecord) -> tuple[str, ...]:
    """Return the cells of a step of `ctx.step` or `ctx.sleep`: its times, and its result or the end of its sleep."""
    began, ended = step.started_at, step.updated_at
    took = f"{(ended - began).total_seconds():.1f} s" if began and ended and step.done else ""
    result = step.result or ""
    if step.kind == "sleep":
        result = f"until {result}" if step.done else f"asleep until {result}"
    elif not step.done:
        result = "not finished"
    elif len(result) > _RESULT_CHARACTERS:
        result = f"{result[:_RESULT_CHARACTERS]}… ({len(result):,} characters; --json shows all)"
    return (step.name, step.kind, f"{began.astimezone():%m-%d %H:%M:%S}" if began else "", took, result)


def _percent(step: StepRecord) -> str:
    """Return the processed percentage; with ~ if it is a rough estimate."""
    pace = step.pace or {}
    share = 1.0 if step.done else pace.get("share")
    if not isinstance(share, int | float):
        return ""
    about = "~" if pace.get("is_estimate") and not step.done else ""
    return f"{about}{100 * share:.1f}"
