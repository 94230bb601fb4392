"""The row of `make bench-queue` for metrics: their cost, with a scrape each second."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import urllib.request
from collections.abc import Iterable, Iterator

from benchmarks.comparison import ratio_and_spread
from benchmarks.queue_rows import Bench, run_jobs
from benchmarks.report import Row
from benchmarks.sides import Failed

#: Metrics may cost 2 % of the throughput.
_BAR = 0.98
_SCRAPE_SECONDS = 1.0


def metrics_cost(bench: Bench) -> Iterable[Row]:
    """14: cost of metrics that are scraped each second."""
    with_, without = [], []
    least, most = bench.scale.mirror_rounds, 3 * bench.scale.mirror_rounds
    while len(with_) < least or (len(with_) < most and not _is_clear(with_, without)):
        order = (True, False) if len(with_) % 2 == 0 else (False, True)
        for has_metrics in order:
            (with_ if has_metrics else without).append(_rate(bench, has_metrics=has_metrics))
    ratio, spread = ratio_and_spread(with_, without)
    yield Row(
        "empty jobs, with metrics that are scraped each second",
        "jobs/s",
        statistics.median(with_),
        {"without": statistics.median(without)},
        ratio,
        f"≥ {_BAR}",
        ratio >= _BAR,
        spread=spread,
        notes=f"{len(with_)} rounds" + ("" if _is_clear(with_, without) else ", too close to tell"),
    )


def _is_clear(with_: list[float], without: list[float]) -> bool:
    ratio, spread = ratio_and_spread(with_, without)
    return spread <= abs(ratio - _BAR)


def _rate(bench: Bench, *, has_metrics: bool) -> float:
    if not has_metrics:
        return run_jobs(bench.ours, "empty", 100, bench.scale.ours).rate
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _scraping(port) as scrapes:
        rate = run_jobs(bench.ours, "empty", 100, bench.scale.ours, metrics_port=port).rate
    if not scrapes:
        raise Failed("longhaul: its metrics were never scraped")
    return rate


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
