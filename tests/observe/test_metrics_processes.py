"""The metrics of several processes behind one port: what their supervisor makes of their reports."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scrapes import parse, with_metrics
from worker import Settings
from worker.observe.metrics import processes
from worker.observe.metrics.observer import Metrics
from worker.observe.metrics.processes import ProcessMetrics
from worker.observe.metrics.snapshot import Snapshot, dump, keep_counts, load, merge
from worker.runtime.observer import RunInfo


def snapshot(runs: int, **gauges: float) -> Snapshot:
    """Return the values of a process that has run some jobs."""
    metrics = Metrics(["walk"], ["arq:queue"])
    for n in range(runs):
        run = RunInfo(f"r{n}", "walk", "arq:queue", 1, 1)
        metrics.started(run)
        metrics.ended(run, "succeeded")
    return {**metrics.snapshot(), **{f"longhaul_{name}": {(): value} for name, value in gauges.items()}}


def test_counts_add_up_and_the_state_of_the_servers_does_not() -> None:
    one, two = snapshot(2, slots=10, outbox_rows=5), snapshot(3, slots=10, outbox_rows=7)
    merged = merge([one, load(json.loads(dump(two)))])
    assert merged["longhaul_jobs_total"]["walk", "succeeded"] == 5
    counts = merged["longhaul_attempt_duration_seconds"]["walk",]
    assert isinstance(counts, list)
    assert sum(counts[:-1]) == 5
    assert merged["longhaul_slots"][()] == 20
    assert merged["longhaul_outbox_rows"][()] == 7
    kept = keep_counts(merged)
    assert "longhaul_slots" not in kept
    assert kept["longhaul_jobs_total"] == merged["longhaul_jobs_total"]
    assert "longhaul_last_success_timestamp_seconds" in kept


def test_what_another_version_reports_is_omitted() -> None:
    raw = json.loads(dump(snapshot(1)))
    raw |= {"longhaul_future_total": [[[], 1]], "longhaul_batch_duration_seconds": [[["walk"], [1, 2]]]}
    assert load(raw).keys() == snapshot(1).keys()


class Supervised:
    """A supervisor's port, and processes that report to it, in one thread.

    Args:
        metrics: the port.
    """

    def __init__(self, metrics: ProcessMetrics) -> None:
        self.metrics = metrics

    def report(self, process: socket.socket, values: Snapshot, *, live: bool = True) -> None:
        """Send a report."""
        well, ill = {"is_well": True, "checks": {"leases": "ok"}}, {"is_well": False, "checks": {"leases": "stalled"}}
        health = {"live": well if live else ill, "ready": {"is_well": True, "checks": {"worker": "ok"}}}
        process.sendall(f'{{"health": {json.dumps(health)}, "values": {dump(values)}}}\n'.encode())

    def connect(self) -> socket.socket:
        """Return the connection of a process."""
        process = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        process.connect(self.metrics.path)
        return process

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer."""
        with socket.create_connection(("127.0.0.1", self.metrics.port)) as asking:
            asking.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            asking.settimeout(0.01)
            answer = b""
            while True:
                self.metrics.wait(0.01)
                try:
                    part = asking.recv(65536)
                except TimeoutError:
                    continue
                if not part:
                    head, _, body = answer.partition(b"\r\n\r\n")
                    return int(head.split()[1]), body.decode()
                answer += part

    def until(self, path: str, status: int, text: str = "") -> str:
        """Ask until the answer is that one; fail after a minute."""
        ends_at = time.monotonic() + 60
        while time.monotonic() < ends_at:
            found, body = self.ask(path)
            if found == status and text in body:
                return body
        raise TimeoutError(f"{path}: {found} {body}")


@pytest.fixture
def supervised(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervised]:
    """A supervisor of two processes."""
    monkeypatch.setattr("worker.observe.metrics.endpoint._SHARED_SECONDS", 0.0)
    with ProcessMetrics(with_metrics(settings), 2) as metrics:
        yield Supervised(metrics)


def test_a_supervisor_answers_for_all_processes(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised.ask("/readyz") == (503, '{"status": "failing", "checks": {"processes": "0 of 2 run"}}\n')
    assert supervised.ask("/healthz")[0] == 200  # they have a minute to start
    with supervised.connect() as one, supervised.connect() as two:
        supervised.report(one, snapshot(2))
        supervised.report(two, snapshot(3))
        supervised.until("/readyz", 200)
        body = supervised.until("/metrics", 200, 'succeeded"} 5.0')
        assert parse(body)["longhaul_jobs_total", "walk", "succeeded"] == 5
        supervised.report(two, snapshot(3), live=False)
        supervised.until("/healthz", 503, "stalled")
        supervised.report(two, snapshot(4))
        supervised.until("/healthz", 200)
        monkeypatch.setattr(processes, "_SILENT_SECONDS", 0.0)
        supervised.until("/healthz", 503, "2 of 2 do not report")
        monkeypatch.undo()
        two.sendall(b"junk\n")  # its reports end, and its counts stay
        supervised.until("/readyz", 503, "1 of 2 run")
        supervised.until("/metrics", 200, 'succeeded"} 6.0')
    supervised.until("/metrics", 200, 'succeeded"} 6.0')
    monkeypatch.setattr(processes, "_START_SECONDS", -1.0)
    supervised.until("/healthz", 503, "0 of 2 run")


def test_the_socket_of_the_reports_is_for_its_user_alone(supervised: Supervised) -> None:
    assert Path(supervised.metrics.path).parent.stat().st_mode & 0o777 == 0o700
