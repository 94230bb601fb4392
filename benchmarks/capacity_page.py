"""`python -m benchmarks.capacity_page`: writes the figures of benchmarks/results/ into docs/how-to/plan-capacity.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "plan-capacity.md"
BEGIN, END = "<!-- figures: python -m benchmarks.capacity_page -->\n", "<!-- end of figures -->\n"


class Figure(NamedTuple):
    """A line of the table.

    Attributes:
        part: the server or process that it is a figure of.
        name: its name in the table.
        benchmark: the benchmark that measures it.
        what: the row of that benchmark.
    """

    part: str
    name: str
    benchmark: str
    what: str


COMMANDS = {
    "capacity": "make bench-capacity",
    "idle": "make bench-idle",
    "outbox": "make bench-queue",
    "queue": "make bench-queue",
    "walk": "make bench-walk",
    "live": "make bench-live",
}
FIGURES = (
    Figure("a worker", "small jobs, `max_jobs = 10`", "queue", "empty jobs, 10 slots"),
    Figure("a worker", "small jobs, `max_jobs = 100`", "queue", "empty jobs, 100 slots"),
    Figure("a worker", "from enqueueing to the first line of the job, median", "queue", "latency p50, own client"),
    Figure("a worker", "rows of a walk with `bulk.update`", "walk", "chunks + bulk.update, 1,000 a batch"),
    Figure("a worker", "rows of a walk over ORM objects", "walk", "chunks, ORM objects changed, 1,000 a batch"),
    Figure("a worker", "memory", "queue", "memory of an idle worker"),
    Figure("a worker", "memory that a million jobs add", "queue", "its growth"),
    Figure(
        "a worker", "memory that a walk over 1,000,000 rows adds", "walk", "memory, chunks, 10,000 to 1,000,000 rows"
    ),
    Figure(
        "a worker",
        "memory after 100,000 small jobs and 5,000 walks",
        "capacity",
        "memory of a worker that has run them",
    ),
    Figure("a worker", "connections to Redis", "capacity", "connections of an idle worker to Redis"),
    Figure("two workers", "small jobs, on a machine with 2 cores", "queue", "two processes beside one"),
    Figure("Redis", "commands for a small job", "queue", "commands a job, those of scripts included"),
    Figure(
        "Redis",
        "time of the server for a job, a million waiting",
        "queue",
        "time of the server a job in it, start included",
    ),
    Figure("a worker", "CPU while idle, with 1,000 deferred jobs", "queue", "an idle worker with 1,000 deferred jobs"),
    Figure("Redis", "memory for a run that waits", "capacity", "memory of Redis, a run that waits"),
    Figure(
        *("Redis", "memory for a run that has ended, until its result expires", "capacity"),
        "memory of Redis, a run that has ended, with its result",
    ),
    Figure("PostgreSQL", "rows of a sweep with UPDATE", "walk", "sweep update, 10,000 a batch"),
    Figure("PostgreSQL", "rows of `bulk.insert`", "walk", "bulk.insert, 10,000 a batch"),
    Figure(
        "PostgreSQL",
        "share of a checkpoint in a batch of 1,000",
        "walk",
        "checkpoint in chunks + bulk.update, 1,000 a batch",
    ),
    Figure("PostgreSQL", "rows of the outbox relayed", "outbox", "rows of the outbox relayed"),
    Figure("PostgreSQL", "outbox, a row that waits", "capacity", "outbox, a row that waits"),
    Figure(
        "PostgreSQL", "ledger, a walk that has ended, until it is pruned", "capacity", "ledger, a walk that has ended"
    ),
    Figure(
        "your service", "p99 of its transactions beside a paced walk", "live", "p99 beside chunks + bulk.update, paced"
    ),
)


def render() -> str:
    """Return the table. A figure that was not measured yet is a dash."""
    lines = ["| of | figure | measured | command |", "| --- | --- | --- | --- |"]
    for figure in FIGURES:
        value = _find(figure)
        lines.append(f"| {figure.part} | {figure.name} | {value} | `{COMMANDS[figure.benchmark]}` |")
    return "\n".join(lines) + "\n"


def _find(figure: Figure) -> str:
    file = RESULTS / f"{figure.benchmark}.json"
    if not file.exists():
        return "–"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    found = [row for row in rows if row["what"] == figure.what]
    if not found:
        return "–"
    value, unit = found[0]["ours"], found[0]["unit"]
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"
    return f"{text} {unit}".strip()


def write_page() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_page()
