"""Comparisons that hold when they are repeated.

The sides alternate on one table, whose first updates, those of a freshly packed table, are not counted. The ratio is
the median over the rounds of the ratio within each round. Its spread is the half-width of a notch of a box plot,
1.57 × IQR / √n (McGill, Tukey and Larsen, "Variations of Box Plots", 1978): the medians of two runs of the benchmark
differ by less in about 95 of 100 cases. While the spread is wider than the distance from the bar, more rounds are run.

Besides the time, each side has its CPU time in this process and its time in the server, by pg_stat_statements.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from sqlalchemy import text

from benchmarks.report import Row
from benchmarks.tables import Bench

Side = Callable[[], Awaitable[int]]
Before = Callable[[Bench], Awaitable[None]]

#: Settings of the server for the benchmark.
SERVER_SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}
#: A share of one core that other processes may use.
_QUIET = 0.05


@dataclass(frozen=True)
class Peer:
    """The other side of a comparison.

    Attributes:
        name: its name in the table.
        side: runs it, and returns its number of rows.
        bar: the least ratio of our rows/s to its rows/s; None for a peer that does less than we do.
    """

    name: str
    side: Side
    bar: float | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        what: its name in the table.
        ours: runs our side, and returns its number of rows.
        peers: the other sides.
        before: gives the table the same start for each run.
        is_repeatable: whether a run leaves the rows for the next one, so that a first run of each side warms up.
    """

    what: str
    ours: Side
    peers: Sequence[Peer]
    before: Before
    is_repeatable: bool = True


@dataclass
class Runs:
    """The runs of one side: for each its rows/s, its seconds of CPU in this process, and its seconds in the server."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Rounds:
    """How many rounds a comparison has."""

    least: int
    most: int


async def compare(bench: Bench, case: Case, rounds: Rounds) -> Iterator[Row]:
    """Measure a case. Return a row for each peer."""
    sides = {"": case.ours} | {peer.name: peer.side for peer in case.peers}
    runs = {name: Runs() for name in sides}
    others = OtherProcesses()
    if case.is_repeatable:
        for side in sides.values():
            await _run(bench, case.before, side)
    while len(runs[""].rates) < rounds.least or (
        len(runs[""].rates) < rounds.most and any(not _is_clear(runs[""], runs[peer.name], peer) for peer in case.peers)
    ):
        order = list(sides) if len(runs[""].rates) % 2 == 0 else list(reversed(sides))
        for name in order:
            rate, cpu, server = await _run(bench, case.before, sides[name])
            runs[name].rates.append(rate)
            runs[name].cpu.append(cpu)
            runs[name].server.append(server)
    return _rows(case, runs, others.share())


def ratio_and_spread(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the median of the ratios of the rounds, and its spread."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return statistics.median(ratios), 1.57 * (upper - lower) / len(ratios) ** 0.5


def _is_clear(ours: Runs, theirs: Runs, peer: Peer) -> bool:
    if peer.bar is None:
        return True
    ratio, spread = ratio_and_spread(ours.rates, theirs.rates)
    return spread <= abs(ratio - peer.bar)


def _rows(case: Case, runs: Mapping[str, Runs], others: float) -> Iterator[Row]:
    ours = runs[""]
    for peer in case.peers:
        theirs = runs[peer.name]
        ratio, spread = ratio_and_spread(ours.rates, theirs.rates)
        mine, other = statistics.median(ours.rates), statistics.median(theirs.rates)
        notes = [f"{len(ours.rates)} rounds"]
        for name, a, b in (("CPU", ours.cpu, theirs.cpu), ("server", ours.server, theirs.server)):
            if statistics.median(b) > 0:
                notes.append(f"{name} {statistics.median(a) / statistics.median(b):.2f} ×")
        if not _is_clear(ours, theirs, peer):
            notes.append("too close to tell")
        if others > _QUIET:
            notes.append(f"other processes used {others:.0%} of a core")
        yield Row(
            case.what,
            "rows/s",
            mine,
            {peer.name: other},
            ratio,
            "" if peer.bar is None else f"≥ {peer.bar:g}",
            None if peer.bar is None else ratio >= peer.bar,
            spread=spread,
            notes=", ".join(notes),
        )


async def _run(bench: Bench, before: Before, side: Side) -> tuple[float, float, float]:
    """Return the rows/s of one run, its seconds of CPU here, and its seconds in the server."""
    await before(bench)
    async with bench.database.engine.begin() as connection:
        await connection.execute(text("SELECT pg_stat_statements_reset()"))
    gc.collect()
    cpu, began = time.process_time(), time.perf_counter()
    done = await side()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    assert done == bench.rows, f"{done} rows instead of {bench.rows}"
    async with bench.database.engine.begin() as connection:
        server = await connection.scalar(text("SELECT sum(total_exec_time + total_plan_time) FROM pg_stat_statements"))
    return bench.rows / took, used, float(server or 0) / 1e3


class OtherProcesses:
    """Measures how busy the machine is with other processes than this one and those that it has started."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy = self._machine() - self._own()

    def share(self) -> float:
        """Return the share of one core that they have used since this object was made."""
        used = self._machine() - self._own() - self._busy
        return max(0.0, used / (time.perf_counter() - self._began))

    @staticmethod
    def _machine() -> float:
        times = psutil.cpu_times()
        return float(times.user + times.system)

    @staticmethod
    def _own() -> float:
        total = 0.0
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            # Of processes that have ended, their parent has the time.
            total += times.user + times.system + times.children_user + times.children_system
        return total


async def create_statistics(bench: Bench) -> None:
    """Create the extension that measures the time of statements."""
    async with bench.database.engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
