"""Prints the demo's progress: a live bar on a terminal, else plain lines, and a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from demo.ledger import Recorded
from worker.plan import JobPlan
from worker.types import ProgressReport

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

_LINE_SECONDS = 1.0


class Bar(Protocol):
    """Shows the progress of a run."""

    def show(self, report: ProgressReport) -> None:
        """Show a report."""

    def note(self, line: str) -> None:
        """Print a line above the bar."""


class _Plain:
    def __init__(self, job: str) -> None:
        self._job = job
        self._shown_at = 0.0
        self._line = ""

    def show(self, report: ProgressReport) -> None:
        line = f"  {self._job}: {_numbers(report)}"
        if time.monotonic() - self._shown_at >= _LINE_SECONDS and line != self._line:
            self._shown_at, self._line = time.monotonic(), line
            console.print(line)

    def note(self, line: str) -> None:
        console.print(line)


class _Live:
    def __init__(self, job: str, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(job, total=None, numbers="")

    def show(self, report: ProgressReport) -> None:
        self._progress.update(
            self._task, completed=report.rows, total=report.total, numbers=_numbers(report), refresh=True
        )

    def note(self, line: str) -> None:
        self._progress.console.print(line)


@contextmanager
def bar(job: str) -> Iterator[Bar]:
    """Show the progress of one job."""
    if not console.is_terminal:
        yield _Plain(job)
        return
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        yield _Live(job, progress)


def _numbers(report: ProgressReport) -> str:
    parts = [f"{report.rows:,} rows"]
    if report.percent is not None:
        parts.append(f"{report.percent:.0f} %")
    if report.rate:
        parts.append(f"{report.rate:,.0f} rows/s")
    if report.eta_seconds is not None:
        parts.append(f"{report.eta_seconds:.0f} s left")
    if report.batch_size:
        parts.append(f"batch {report.batch_size:,}")
    parts.append(report.worker or "waiting")
    return " · ".join(parts)


def print_jobs(runs: list[Recorded]) -> None:
    """Print the ledger's record of each run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job")
    for column in ("rows", "batches", "seconds", "rows/s", "takeovers"):
        table.add_column(column, justify="right")
    for run in runs:
        seconds = run.took.total_seconds()
        rate = f"{run.rows / seconds:,.0f}" if seconds else ""
        table.add_row(run.job, f"{run.rows:,}", f"{run.batches:,}", f"{seconds:.1f}", rate, str(run.takeovers))
    console.print(table)


def print_hands(job: str, rows: list[int]) -> None:
    """Print the rows of each hand of a walk with `parallel`."""
    console.print(f"{job}: one walk by {len(rows)} hands, with {' and '.join(f'{each:,}' for each in rows)} rows")


def print_plan(plan: JobPlan) -> None:
    """Print what `worker plan` finds before a job runs."""
    for loop in plan.loops:
        rows = "?" if loop.rows is None else f"{loop.rows:,}"
        console.print(
            f"  worker plan {plan.job}: {loop.kind} over {loop.table} by index {loop.index}, about {rows} rows in "
            f"{loop.batches} batches; {'; '.join(loop.locks)}",
            soft_wrap=True,
        )
