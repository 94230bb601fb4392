"""`worker status`: the queue, the workers, running and waiting runs, and operator commands."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from worker.cli.app import Json, app, run_async, state
from worker.cli.output import print_json, print_line, print_table
from worker.queue.client import Client
from worker.queue.overview import Overview, RunSummary
from worker.settings import Settings


@app.command()
def status(as_json: Json = False) -> None:
    """Show the queue, the workers, running and waiting runs, and operator commands."""
    settings, _ = state.load()
    seen = run_async(_overview(settings), settings)
    if as_json:
        published = {name: worker.fields for name, worker in seen.workers.items()}
        print_json(asdict(seen) | {"workers": published, "runs": [run.fields for run in seen.runs]})
        return
    print_line(
        f"queue {seen.queue}: {seen.waiting} waiting, {seen.deferred} deferred, {seen.running} running, "
        f"{seen.dead_letters} dead letters"
    )
    for name, members in (("paused", seen.paused), ("cancelled", seen.cancelled)):
        if members:
            print_line(f"{name}: {', '.join(members)}")
    if seen.workers:
        print_table(
            ("worker", "pid", "host", "state", "jobs", "seen"),
            [
                (
                    name,
                    str(worker.pid or ""),
                    worker.host or "",
                    worker.state,
                    f"{len(worker.jobs)} of {worker.max_jobs or '?'}",
                    _ago(worker.seen_at),
                )
                for name, worker in seen.workers.items()
            ],
        )
    else:
        print_line("no worker has been seen: start one with `worker run`")
    if seen.runs:
        _print_runs(seen.runs)


async def _overview(settings: Settings) -> Overview:
    async with Client(settings) as client:
        return await client.status()


def _print_runs(found: list[RunSummary]) -> None:
    columns = ("run", "job", "state", "rows", "%", "rows/s", "left", "batch", "worker", "due", "waits for", "error")
    print_table(
        columns,
        [
            (
                run["id"],
                run.get("job", ""),
                run.get("state", ""),
                run.get("rows", ""),
                _percent(run),
                run.get("rate", ""),
                f"{run['eta_seconds']} s" if run.get("eta_seconds") else "",
                run.get("batch_size", ""),
                run.get("worker", ""),
                f"in {run['due_seconds']} s" if _is_later(run.get("due_seconds")) else "",
                run.get("throttled", ""),
                run.get("error", ""),
            )
            for run in (summary.fields for summary in found)
        ],
    )


def _percent(run: dict[str, str]) -> str:
    """Return the percentage; with ~ if it is a rough estimate."""
    percent = run.get("percent", "")
    return f"~{percent}" if percent and run.get("percent_is_estimate") else percent


def _is_later(due_seconds: str | None) -> bool:
    return bool(due_seconds) and due_seconds not in ("0", "0.0")


def _ago(moment: datetime) -> str:
    return f"{(datetime.now(UTC) - moment).total_seconds():.0f} s ago"
