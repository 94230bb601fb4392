"""The rows of `make bench-queue`: what each measures, and its bar."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.report import Row, at_most, quick
from benchmarks.sides import OURS, Counters, Failed, Side
from worker.queue import keys

_RUN_SECONDS = 540
_SETTLE_SECONDS = 0.5
_WARM = 10
_HOUR = 3600.0
#: Keys that hold a job until its end is recorded.
_WAITING = {OURS: "arq:queue", "arq": "arq:queue", "saq": "saq:default:incomplete"}


class Scale:
    """The size of the benchmark: full, or reduced by QUICK=1."""

    def __init__(self) -> None:
        small = quick()
        self.rounds = 1 if small else 3
        self.ours = 10_000 if small else 100_000
        self.peers = 2_000 if small else 10_000
        self.stamps = 100 if small else 400
        self.one_by_one = 2_000 if small else 10_000
        self.memory_ours = 50_000 if small else 1_000_000
        self.memory_peers = 2_000 if small else 50_000
        self.waiting = 100_000 if small else 1_000_000
        self.depth_runs = 3 if small else 5
        self.idle_seconds = 5 if small else 10
        self.mirror_rounds = 3 if small else 7

    def jobs(self, side: Side) -> int:
        """Return the number of jobs for a side, so that fast and slow sides take about the same time."""
        return self.ours if side.name == OURS else self.peers


@dataclass(frozen=True)
class Ran:
    """The jobs that have run: their rate, the CPU seconds of their worker, and their cost on the server."""

    rate: float
    cpu_seconds: float
    count: int
    used: Counters


def run_jobs(
    side: Side, job: str, slots: int, count: int, *, bare: bool = False, metrics_port: int | None = None
) -> Ran:
    """Measure one worker that runs waiting jobs."""
    side.flush()
    side.enqueue(job, count)
    before = side.counters()
    with side.work(slots, job, expect=count, bare=bare, metrics_port=metrics_port) as working:
        begun = working.cpu_seconds()
        working.hear("count", _RUN_SECONDS)
        computed = working.cpu_seconds() - begun
        time.sleep(_SETTLE_SECONDS)  # until the last jobs have been acknowledged
        used = side.counters().since(before)
        ended = working.stop()
    left = side.redis.zcard(_WAITING[side.name]) if side.name in _WAITING else 0
    if left:
        raise Failed(f"{side.name}: {left} jobs have run and are in the queue still")
    return Ran(_rate(side, ended, count), computed, count, used)


def _rate(side: Side, tally: dict[str, int], count: int) -> float:
    if tally["count"] != count:
        raise Failed(f"{side.name}: {tally['count']} runs of {count} jobs")
    return (count - 1) / ((tally["last_ns"] - tally["first_ns"]) / 1e9)


class Bench:
    """The rows.

    Args:
        sides: the sides by name, ours first.
        scale: size of the benchmark.
        say: prints a line that is not a row.
    """

    def __init__(self, sides: dict[str, Side], scale: Scale, say: Callable[[str], None]) -> None:
        self.sides = sides
        self.ours = sides[OURS]
        self.scale = scale
        self._say = say
        self._ran: dict[str, Ran] = {}

    # --- measurement

    def in_turn(self, measure: Callable[[Side], dict[str, float]]) -> dict[str, dict[str, float]]:
        """Return for each figure its median of each side, measured in turn.

        A peer that fails has no figure. If our side fails, the row fails.
        """
        found: dict[str, dict[str, list[float]]] = {}
        failed: set[str] = set()
        for round_ in range(self.scale.rounds):
            order = list(self.sides.values())
            for side in order if round_ % 2 == 0 else reversed(order):
                if side.name in failed:
                    continue
                try:
                    for what, figure in measure(side).items():
                        found.setdefault(what, {}).setdefault(side.name, []).append(figure)
                except Failed as error:
                    if side.name == OURS:
                        raise
                    failed.add(side.name)
                    self._say(str(error))
        return {
            what: {name: statistics.median(each[name]) for name in self.sides if name in each}
            for what, each in found.items()
        }

    def _throughput(self, job: str, slots: int) -> dict[str, float]:
        def measure(side: Side) -> dict[str, float]:
            ran = run_jobs(side, job, slots, self.scale.jobs(side))
            if (job, slots) == ("empty", 100):
                self._ran[side.name] = ran
            return {"rate": ran.rate}

        return self.in_turn(measure)["rate"]

    # --- the rows

    def empty_100(self) -> Iterable[Row]:
        """1: empty jobs, 100 slots."""
        return _against("empty jobs, 100 slots", "jobs/s", self._throughput("empty", 100), arq=10, best=4)

    def empty_10(self) -> Iterable[Row]:
        """2: empty jobs, 10 slots."""
        return _against("empty jobs, 10 slots", "jobs/s", self._throughput("empty", 10), arq=6, best=3)

    def sleep_100(self) -> Iterable[Row]:
        """3: jobs that wait."""
        found = self._throughput("sleep", 100)
        yield from _against("jobs that sleep 10 ms, 100 slots", "jobs/s", found, arq=4, best=2.5)
        share = found[OURS] / 10_000
        yield Row("the same, beside the ideal 10,000", "jobs/s", found[OURS], {}, share, "≥ 0.6", share >= 0.6)

    def latency(self) -> Iterable[Row]:
        """4: latency from enqueue to the job's first line."""
        found = self.in_turn(lambda side: self._latencies(side, "one"))
        yield _limited("latency p50, own client", "ms", found["p50"], 2)
        yield _limited("latency p99, own client", "ms", found["p99"], 10)
        for way, client in (("arq", "arq's client"), ("raw", "redis-cli")):
            for events, limits in (("KEA", (2, 10)), ("", (100, 100))):
                told = "with" if events else "without"
                each = self._latencies(self.ours, way, events)
                yield at_most(f"latency p50, {client}, {told} keyspace events", "ms", each["p50"], limits[0])
                yield at_most(f"latency p99, {client}, {told} keyspace events", "ms", each["p99"], limits[1])

    def _latencies(self, side: Side, way: str, events: str = "") -> dict[str, float]:
        count = self.scale.stamps + _WARM
        side.flush()
        side.redis.config_set("notify-keyspace-events", events)
        try:
            with side.work(10, "stamp", expect=count) as working:
                time.sleep(1)  # until it is idle
                side.enqueue("stamp", count, way=way, pause=0.025)
                working.hear("count", 60)
                ended = working.stop()
        finally:
            side.redis.config_set("notify-keyspace-events", "")
        _rate(side, ended, count)
        taken = statistics.quantiles(ended["latencies_ns"][_WARM:], n=100)
        return {"p50": taken[49] / 1e6, "p99": taken[98] / 1e6}

    def one_by_one(self) -> Iterable[Row]:
        """5: enqueue, awaited."""

        def measure(side: Side) -> dict[str, float]:
            side.flush()
            done = side.enqueue("empty", self.scale.one_by_one, way="one")
            return {"rate": done.count / done.seconds}

        return _against("enqueue one by one", "jobs/s", self.in_turn(measure)["rate"], best=1)

    def many(self) -> Iterable[Row]:
        """6: enqueue 10,000 at once."""

        def measure(side: Side) -> dict[str, float]:
            side.flush()
            # arq has no call for many jobs: its calls are gathered. A pipeline without its client has a row without a
            # bar.
            done = side.enqueue("empty", 10_000, way="gather" if side.name == "arq" else "many")
            return {"rate": done.count / done.seconds, "block": done.longest_block_ms}

        found = self.in_turn(measure)
        yield from _against("enqueue 10,000 at once", "jobs/s", found["rate"], best=3)
        if "arq" in self.sides:
            self.sides["arq"].flush()
            by_hand = self.sides["arq"].enqueue("empty", 10_000)
            yield Row(
                "the same, beside PSETEX and ZADD in a pipeline by hand",
                "jobs/s",
                found["rate"][OURS],
                {"arq": by_hand.count / by_hand.seconds},
                found["rate"][OURS] * by_hand.seconds / by_hand.count,
            )
        yield _limited("longest block of the event loop in it", "ms", found["block"], 50)

    def round_trips(self) -> Iterable[Row]:
        """7: cost of a job on the server."""
        if not self._ran:
            self._throughput("empty", 100)
        reads = {name: ran.used.reads / ran.count for name, ran in self._ran.items()}
        commands = {name: ran.used.commands / ran.count for name, ran in self._ran.items()}
        yield _limited("round trips (reads from clients) a job, 100 slots", "", reads, 0.2)
        yield Row("commands a job, those of scripts included", "", commands.pop(OURS), commands)
        for name, ran in self._ran.items():
            most = ", ".join(f"{what} {n / ran.count:.2f}" for what, n in list(ran.used.calls.items())[:14])
            self._say(f"commands a job, {name}: {most}")

    def two_processes(self) -> Iterable[Row]:
        """8: a second process."""
        count = self.scale.ours
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(self.scale.rounds):
            for processes in found:
                found[processes].append(self._together(processes, count))
        one, two = statistics.median(found[1]), statistics.median(found[2])
        yield Row("two processes beside one", "jobs/s", two, {"one": one}, two / one, "≥ 1.3", two / one >= 1.3)

    def _together(self, processes: int, count: int) -> float:
        side = self.ours
        side.flush()
        with ExitStack() as stack:
            workings = [stack.enter_context(side.work(100)) for _ in range(processes)]
            time.sleep(_SETTLE_SECONDS)
            side.redis.sadd(keys.PAUSED, keys.ALL)  # all jobs are enqueued before the first is claimed
            side.enqueue("empty", count)
            side.redis.srem(keys.PAUSED, keys.ALL)
            done, deadline = 0, time.monotonic() + _RUN_SECONDS
            while done < count and time.monotonic() < deadline:
                time.sleep(0.1)
                done = sum(working.so_far() for working in workings)
            tallies = [tally for tally in (working.stop() for working in workings) if tally["count"]]
        whole = {
            "count": sum(tally["count"] for tally in tallies),
            "first_ns": min(tally["first_ns"] for tally in tallies),
            "last_ns": max(tally["last_ns"] for tally in tallies),
        }
        return _rate(side, whole, count)

    def memory(self) -> Iterable[Row]:
        """9: idle, and after many jobs."""
        idle: dict[str, float] = {}
        after: dict[str, float] = {}
        for name, side in self.sides.items():
            count = self.scale.memory_ours if name == OURS else self.scale.memory_peers
            side.flush()
            try:
                with side.work(100, expect=count) as working:
                    time.sleep(2)
                    began = working.rss_mb()
                    for first in range(0, count, 50_000):
                        side.enqueue("empty", min(50_000, count - first))
                    working.hear("count", 2 * _RUN_SECONDS)
                    time.sleep(2)
                    idle[name], after[name] = began, working.rss_mb()
            except Failed as error:
                if name == OURS:
                    raise
                self._say(str(error))
        growth = {name: after[name] - idle[name] for name in after}
        done = f"{self.scale.memory_ours:,} jobs (peers: {self.scale.memory_peers:,})"
        yield Row("memory of an idle worker", "MB", idle.pop(OURS), idle)
        yield Row(f"memory after {done}", "MB", after.pop(OURS), after)
        yield _limited("its growth", "MB", growth, 10)

    def depth(self) -> Iterable[Row]:
        """10: many waiting jobs."""

        def first_thousand() -> tuple[float, float]:
            before = self.ours.counters()
            with self.ours.work(100, expect=1_000) as working:
                told = working.hear("count", 60)
                ended = working.stop()
            used = self.ours.counters().since(before)
            seconds = (told["last_ns"] - told["first_ns"]) / 1e9
            return 1e6 * seconds / (told["count"] - 1), used.microseconds / ended["count"]

        def median(runs: list[tuple[float, float]]) -> tuple[float, float]:
            taken, server = zip(*runs, strict=True)
            return statistics.median(taken), statistics.median(server)

        few = []
        for _ in range(self.scale.depth_runs):
            self.ours.flush()
            self.ours.enqueue("empty", 1_000)
            few.append(first_thousand())
        self.ours.flush()
        for delay in (_HOUR, 0.0):
            for _ in range(0, self.scale.waiting, 50_000):
                self.ours.enqueue("empty", 50_000, delay=delay)
        (long, long_server), (short, short_server) = (
            median([first_thousand() for _ in range(self.scale.depth_runs)]),
            median(few),
        )
        self.ours.flush()
        what = f"1,000 jobs of {self.scale.waiting:,}, as many deferred"
        yield Row(what, "ms", long, {"of 1,000": short}, long / short, "≤ 1.5", long / short <= 1.5)
        ratio = long_server / short_server
        yield Row(
            "time of the server a job in it, start included", "µs", long_server, {"of 1,000": short_server}, ratio
        )

    def idle(self) -> Iterable[Row]:
        """11: cost of an idle worker with deferred jobs."""
        cpu: dict[str, float] = {}
        commands: dict[str, float] = {}
        for name, side in self.sides.items():
            if name == "taskiq":  # taskiq defers with another process
                continue
            side.flush()
            try:
                side.enqueue("empty", 1_000, delay=_HOUR)
                with side.work(100) as working:
                    time.sleep(3)
                    began, computed, counted = time.monotonic(), working.cpu_seconds(), side.counters()
                    time.sleep(self.scale.idle_seconds)
                    took = time.monotonic() - began
                    cpu[name] = 100 * (working.cpu_seconds() - computed) / took
                    commands[name] = side.counters().since(counted).commands / took
            except Failed as error:
                if name == OURS:
                    raise
                self._say(str(error))
        yield _limited("an idle worker with 1,000 deferred jobs", "% of a core", cpu, 1)
        yield _limited("the same", "commands/s", commands, 5)

    def mirror(self) -> Iterable[Row]:
        """12: cost of the mirror."""
        rates: dict[bool, list[float]] = {False: [], True: []}
        for round_ in range(self.scale.mirror_rounds):
            for bare in (False, True) if round_ % 2 == 0 else (True, False):
                rates[bare].append(run_jobs(self.ours, "empty", 100, self.scale.ours, bare=bare).rate)
        seen, unseen = (statistics.median(rates[bare]) for bare in (False, True))
        ratio = seen / unseen
        yield Row(
            "empty jobs, beside a worker without the mirror",
            "jobs/s",
            seen,
            {"without": unseen},
            ratio,
            "≥ 0.97",
            ratio >= 0.97,
        )


def _against(what: str, unit: str, found: dict[str, float], *, arq: float = 0, best: float = 0) -> Iterator[Row]:
    """Yield a row for each bar: a minimum ratio to arq, and to the best peer, if they were measured."""
    peers = {name: figure for name, figure in found.items() if name != OURS}
    bars = [("arq", arq)] if arq and "arq" in peers else []
    if best and peers:
        bars.append((max(peers, key=lambda name: peers[name]), best))
    if not bars:
        yield Row(what, unit, found[OURS], peers)
    for place, (name, least) in enumerate(bars):
        ratio = found[OURS] / peers[name]
        shown = peers if place == 0 else {name: peers[name]}
        yield Row(
            what if place == 0 else "the same", unit, found[OURS], shown, ratio, f"≥ {least:g} {name}", ratio >= least
        )


def _limited(what: str, unit: str, found: dict[str, float], limit: float) -> Row:
    row = at_most(what, unit, found[OURS], limit)
    row.peers = {name: figure for name, figure in found.items() if name != OURS}
    return row
