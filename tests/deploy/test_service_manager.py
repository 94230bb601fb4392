"""A worker reports to systemd: ready, alive from its event loop, and stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.waiting import until_true
from worker import Client, Settings
from worker.db.engine import Database
from worker.runtime.service_manager import ServiceManager


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The socket of a service manager, in Linux's abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0longhaul-{os.getpid()}")
        receiver.settimeout(60)
        yield receiver


def read_until(manager: socket.socket, report: str) -> list[str]:
    """Return the reports until one begins so."""
    seen: list[str] = []
    while not seen or not seen[-1].startswith(report):
        seen.append(manager.recv(4096).decode())
    return seen


def start(settings: Settings, manager: socket.socket, *options: str) -> ForkedProcess:
    """Start `worker run` as the service."""
    with Path(os.devnull).open("w") as nothing:
        return ForkServer.get().spawn(
            *("worker", "run", *options),
            env=environment(settings, manager),
            stdout=nothing.fileno(),
            stderr=nothing.fileno(),
        )


def environment(settings: Settings, manager: socket.socket) -> dict[str, str]:
    """Return the environment of a service of systemd with a watchdog of 0.3 s."""
    return os.environ | {
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["tests.deploy.service_jobs"]',
        "NOTIFY_SOCKET": "@" + manager.getsockname()[1:].decode(),
        "WATCHDOG_USEC": "300000",
    }


async def test_a_worker_is_ready_alive_while_its_event_loop_turns_and_stopping(
    settings: Settings, database: Database, client: Client, manager: socket.socket, tmp_path: Path
) -> None:
    process = start(settings, manager)
    try:
        first = await asyncio.to_thread(read_until, manager, "READY=1")
        assert len(first) == 1 and "\nSTATUS=worker " in first[0]  # nothing came before
        for _ in range(3):
            assert await asyncio.to_thread(read_until, manager, "WATCHDOG=1") == ["WATCHDOG=1"]
        run = await client.enqueue_by_name("block", {"folder": str(tmp_path)})
        await until_true((tmp_path / "blocked").exists)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                manager.recv(4096)  # what was sent before
        manager.settimeout(0.5)  # a blocked loop can send nothing, however long the test waits
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(manager.recv, 4096)
        manager.settimeout(60)
        (tmp_path / "go").touch()
        await run.result(timeout=60)
        await asyncio.to_thread(read_until, manager, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        assert "\nSTATUS=draining" in (await asyncio.to_thread(read_until, manager, "STOPPING=1"))[-1]
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()


@pytest.mark.long
async def test_a_supervisor_reports_for_its_processes(
    settings: Settings, database: Database, client: Client, manager: socket.socket
) -> None:
    process = start(settings, manager, "--processes", "2")
    try:
        assert (await asyncio.to_thread(manager.recv, 4096)).startswith(b"READY=1\nSTATUS=supervises")
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 4096) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()


def test_a_process_of_a_service_does_not_report_in_its_place() -> None:
    found = {"NOTIFY_SOCKET": "/run/none", "WATCHDOG_USEC": "90000000", "WATCHDOG_PID": str(os.getpid() + 1), "A": "b"}
    of_another = ServiceManager.from_environment(found)
    assert found == {"A": "b"}
    assert of_another.pause_seconds == 1.0  # the watchdog is that of another process
    of_another.report("READY=1")  # no receiver: logged, and no error
    assert ServiceManager.from_environment({"WATCHDOG_USEC": "900000"}).pause_seconds == pytest.approx(0.3)
