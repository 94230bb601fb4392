"""Embedded servers end with the process that started them, and are not started if the environment names others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from worker.embedded import EmbeddedValkey, services
from worker.embedded.directories import make_home, others_may_enter


def test_nothing_is_started_where_the_environment_names_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/db")
    monkeypatch.setenv("REDIS_URL", "redis://host/0")
    with services() as running:
        assert (running.postgres, running.valkey) == (None, None)
        assert (running.database_url, running.redis_url) == ("postgresql://host/db", "redis://host/0")


def test_a_folder_whose_owner_has_died_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o711)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("worker.embedded.directories.others_may_enter", lambda path: True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    abandoned, living, foreign = (
        tmp_path / f"longhaul-{name}" for name in (f"{dead.pid}-x", f"{os.getpid()}-x", "notes-x")
    )
    for folder in (abandoned, living, foreign):
        folder.mkdir()
    home = make_home()
    assert home.parent == tmp_path
    assert not abandoned.exists()
    assert living.exists()
    assert foreign.exists()


def test_permissions_above_are_looked_at_and_never_changed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not others_may_enter(closed / "below")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_a_server_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from worker.embedded import EmbeddedValkey\n"
        "valkey = EmbeddedValkey(pathlib.Path(sys.argv[1]))\n"
        "valkey.start()\n"
        "print(valkey.port, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        connection.settimeout(10)
        assert connection.recv(1) == b""  # the server is gone, and with it the connection
    parent.stdout.close()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path, settings={"maxmemory": "much"})
    with pytest.raises(RuntimeError, match="maxmemory"):
        valkey.start()


def test_servers_that_were_killed_are_started_again_at_their_urls() -> None:
    """Their owner is `make services`, whose URLs the user has exported."""
    command = [sys.executable, "-m", "worker.embedded"]
    names = ("DATABASE_URL", "REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        guard = threading.Timer(120, owner.kill)  # a line that never comes fails the test
        guard.start()
        try:
            urls = dict(owner.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in names)
            asyncio.run(write(urls))
            ended = {kill_child(owner.pid, program) for program in ("postgres", "valkey-server")}
            assert len(ended) == 2
            told = sorted(owner.stderr.readline() for _ in names)
            assert [line.partition(" has ended (signal 9). It was started again ")[0] for line in told] == [
                "# PostgreSQL",
                "# Valkey",
            ]
            assert asyncio.run(read(urls)) == (1, None)
        finally:
            guard.cancel()
            owner.terminate()  # a process in the background may ignore SIGINT
        assert owner.wait(60) == 130


async def write(urls: dict[str, str]) -> None:
    """Write a row and a key."""
    connection = await asyncpg.connect(urls["DATABASE_URL"])
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
    await connection.close()
    async with Redis.from_url(urls["REDIS_URL"]) as redis:
        await redis.set("kept", 1)


async def read(urls: dict[str, str]) -> tuple[Any, Any]:
    """Return the row and the key."""
    connection = await asyncpg.connect(urls["DATABASE_URL"])
    row = await connection.fetchval("SELECT number FROM kept")
    await connection.close()
    async with Redis.from_url(urls["REDIS_URL"]) as redis:
        return row, await redis.get("kept")


def kill_child(parent: int, program: str) -> int:
    """Kill the child of a process that runs a program."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = file.read_text().partition("(")[2].rsplit(")", 1)
        except OSError:
            continue  # it has ended
        if name == program and int(rest.split()[1]) == parent:
            os.kill(int(file.parent.name), signal.SIGKILL)
            return int(file.parent.name)
    raise AssertionError(f"no child runs {program}")
