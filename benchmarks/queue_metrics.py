"""The row of `make bench-queue` for metrics: their cost, with a scrape each second."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator

from benchmarks.comparison import ratio_and_spread
from benchmarks.queue_rows import Bench, Ran, run_jobs
from benchmarks.report import Row
from benchmarks.sides import Failed
from worker.observe.metrics.exposition import Exposition
from worker.observe.metrics.observer import Metrics
from worker.runtime.observer import RunInfo

#: Metrics may cost 2 % of the throughput.
_BAR = 0.98
_SCRAPE_SECONDS = 1.0
_EVENTS = 50_000


def metrics_cost(bench: Bench) -> Iterable[Row]:
    """14: cost of metrics that are scraped each second.

    A worker with enough to do is limited by its core, so that its CPU time for a job is its throughput. That of two
    workers differs by more than the bar in each round, with and without metrics. So the bar is that of the added work
    alone: the events of a job and the rendering of a page each second, measured in this process, beside the CPU time
    of a job.
    """
    with_, without = list[Ran](), list[Ran]()
    added = list[float]()
    for round_ in range(bench.scale.mirror_rounds):
        for has_metrics in (True, False) if round_ % 2 == 0 else (False, True):
            (with_ if has_metrics else without).append(_run(bench, has_metrics=has_metrics))
        added.append(_added_work(without[-1].rate))
    job = statistics.median(_cpu(without))
    ratio, spread = ratio_and_spread(_cpu(without), _cpu(with_))
    rates, _ = ratio_and_spread([ran.rate for ran in with_], [ran.rate for ran in without])
    yield Row(
        "empty jobs, with metrics that are scraped each second",
        "µs of CPU a job",
        statistics.median(_cpu(with_)),
        {"without": job},
        ratio,
        spread=spread,
        notes=f"{len(with_)} rounds, jobs/s {rates:.2f} ×",
    )
    share = job / (job + statistics.median(added))
    what = "the added work alone"
    yield Row(what, "µs of CPU a job", statistics.median(added), {"a job": job}, share, f"≥ {_BAR}", share >= _BAR)


def _cpu(runs: list[Ran]) -> list[float]:
    return [1e6 * ran.cpu_seconds / ran.count for ran in runs]


def _added_work(jobs_per_second: float) -> float:
    """Return the CPU time in µs of the events of a job, and of its share of a page each second."""
    metrics, exposition, due = Metrics(["empty"], ["arq:queue"]), Exposition(), round(time.time() * 1000)
    runs = [RunInfo(f"{n:032x}", "empty", "arq:queue", 1, due, due_ms=due) for n in range(_EVENTS)]
    exposition.render(metrics.snapshot())
    began = time.process_time()
    for run in runs:
        metrics.started(run)
        metrics.ended(run, "succeeded")
    events = (time.process_time() - began) / len(runs)
    began = time.process_time()
    exposition.render(metrics.snapshot())
    return 1e6 * (events + (time.process_time() - began) / jobs_per_second)


def _run(bench: Bench, *, has_metrics: bool) -> Ran:
    if not has_metrics:
        return run_jobs(bench.ours, "empty", 100, bench.scale.ours)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _scraping(port) as scrapes:
        ran = run_jobs(bench.ours, "empty", 100, bench.scale.ours, metrics_port=port)
    if not scrapes:
        raise Failed("longhaul: its metrics were never scraped")
    return ran


@contextlib.contextmanager
def _scraping(port: int) -> Iterator[list[int]]:
    """Scrape the worker of a port each second. Yield the sizes of the answers."""
    ended, sizes = threading.Event(), list[int]()

    def scrape() -> None:
        while not ended.wait(_SCRAPE_SECONDS if sizes else 0.1):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
            ):
                sizes.append(len(answer.read()))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        ended.set()
        thread.join()
