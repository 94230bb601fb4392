"""`make demo`, `make services` and the Procfile, as a new user runs them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.embedded import Services
from worker.embedded.process import free_port

ROOT = Path(__file__).parent.parent
SECONDS = 120


def bare_environment() -> dict[str, str]:
    """Return the environment without the servers that the tests may have been given."""
    return {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}


def start(*command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command as a terminal would: in a group of its own that Ctrl-C reaches."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment or bare_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield its output; end it after the time limit."""
    assert process.stdout is not None
    guard = threading.Timer(SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
    guard.start()
    try:
        yield from process.stdout
    finally:
        guard.cancel()


def group(process: subprocess.Popen[str]) -> list[str]:
    """Return the processes of its session that still run."""
    ran = subprocess.run(["ps", "-o", "args=", "--sid", str(process.pid)], capture_output=True, text=True)
    return [line for line in ran.stdout.splitlines() if "<defunct>" not in line]


@pytest.mark.long
def test_the_demo_counts_nothing_doubled_missing_or_wrong() -> None:
    process = start(sys.executable, "-m", "demo")
    printed = list(lines(process))
    assert process.wait() == 0, "".join(printed)
    text = "".join(printed)
    assert printed[-1] == "doubled 0 · missing 0 · wrong 0\n"
    assert "234,908 places with 1,183,783 alternate names" in text
    killed = re.search(r"SIGKILL to worker \w+ \(pid \d+\) at (\d+) %", text)
    taken = re.search(r"takeover: ([\d.]+) s from the death", text)
    assert killed is not None
    assert 40 <= int(killed[1]) < 60
    assert taken is not None
    assert float(taken[1]) <= 15
    assert re.search(r"index_place_names +234,908 .* 1$", text, re.MULTILINE)


@pytest.mark.long
def test_the_demo_can_be_interrupted_in_the_middle() -> None:
    process = start(sys.executable, "-m", "demo")
    for line in lines(process):
        if "rows/s" in line:
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert group(process) == []


def test_services_print_their_urls_and_end_with_ctrl_c() -> None:
    process = start(sys.executable, "-m", "worker.embedded")
    printed = []
    for line in lines(process):
        printed.append(line)
        if line.startswith("# Both"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert [line.split("=")[0] for line in printed[:2]] == ["export DATABASE_URL", "export REDIS_URL"]
    assert printed[2].startswith(f"# redis-cli -u {printed[1].strip().partition('=')[2]} ")


def test_free_port_is_the_preferred_one_unless_somebody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


@pytest.mark.usefixtures("database")
def test_the_lines_of_the_procfile_run_under_honcho_as_they_stand(servers: Services) -> None:
    folder = Path(sys.executable).parent
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    environment = servers.environment() | path
    release = start(str(folder / "honcho"), "start", "release", environment=environment)
    printed = "".join(lines(release))
    assert release.wait() == 0, printed
    assert "schema worker is at revision" in printed
    worker = start(str(folder / "honcho"), "start", "worker", environment=environment)
    seen = []
    for line in lines(worker):
        seen.append(line)
        if "worker started" in line:
            worker.send_signal(signal.SIGTERM)
    worker.wait()
    assert "drain started reason=SIGTERM" in "".join(seen)
    assert "worker.1 stopped (rc=0)" in "".join(seen)
    assert group(worker) == []
