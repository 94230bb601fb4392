"""`python -m benchmarks.pages`: writes the figures of benchmarks/results/ into the pages on capacity and on speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
CAPACITY = DOCS / "how-to" / "plan-capacity.md"
SPEED = DOCS / "explanation" / "speed.md"
BEGIN, END = "<!-- figures of {}: python -m benchmarks.pages -->\n", "<!-- end of figures -->\n"
#: The benchmarks whose rows are on the page on speed, each in a table of its own.
COMPARISONS = ("walk", "queue", "outbox", "live", "page")
_SERVERS = {"postgresql": "PostgreSQL", "valkey": "Valkey"}


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
        *("a worker", "memory that a walk over 10,000,000 rows adds", "walk"),
        "memory, chunks, 10,000 to 10,000,000 rows",
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


def capacity_table() -> str:
    """Return the table of the page on capacity. A figure that was not measured yet is a dash."""
    lines = ["| of | figure | measured | command |", "| --- | --- | --- | --- |"]
    for figure in FIGURES:
        found = [row for row in _read(figure.benchmark).get("rows", []) if row["what"] == figure.what]
        value = f"{_number(found[0]['ours'])} {found[0]['unit']}".strip() if found else "–"
        lines.append(f"| {figure.part} | {figure.name} | {value} | `{COMMANDS[figure.benchmark]}` |")
    return "\n".join(lines) + "\n"


def comparison_table(benchmark: str) -> str:
    """Return the table of a benchmark on the page on speed: the rows that have a peer or a bar."""
    found = _read(benchmark)
    lines = [f"{found['setting']}; {_machine(found)}.", ""]
    lines += ["| measured | Longhaul | beside it | ratio | bar |", "| --- | --- | --- | --- | --- |"]
    for row in found["rows"]:
        if not row["peers"] and not row["bar"]:
            continue
        peers = ", ".join(f"{name}: {_number(value)}" for name, value in row["peers"].items())
        spread = f" ± {row['spread']:.2f}" if row.get("spread") else ""
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}{spread}"
        bar = row["bar"] + ("" if row["held"] is not False else ", not held")
        lines.append(f"| {row['what']} | {_number(row['ours'])} {row['unit']} | {peers} | {ratio} | {bar} |")
    return "\n".join(lines) + "\n"


def _read(benchmark: str) -> dict[str, Any]:
    file = RESULTS / f"{benchmark}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    servers = [f"{title} {found['versions'][name]}" for name, title in _SERVERS.items() if name in found["versions"]]
    return ", ".join([f"{machine['cores']} cores", f"Python {machine['python']}", *servers])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def write_pages() -> None:
    """Write the tables into their pages."""
    _write(CAPACITY, "capacity", capacity_table())
    for benchmark in COMPARISONS:
        _write(SPEED, benchmark, comparison_table(benchmark))


def _write(page: Path, name: str, table: str) -> None:
    begin = BEGIN.format(name)
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise SystemExit(f"{page}: has no line {begin.strip()}")
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{begin}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_pages()
