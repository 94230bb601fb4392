"""Commands whose output cannot be written: one line, the documented exit code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.embedded import Services

COMMANDS = ["keys --json", "--help"]


def run(command: str, servers: Services, redirections: str) -> tuple[int, str]:
    """Run a command of which a shell redirects the streams. Return its exit code, and what standard error has."""
    script = f'exec "$0" -m worker {command} {redirections}'
    environment = os.environ | servers.environment()
    ran = subprocess.run(["sh", "-c", script, sys.executable], env=environment, capture_output=True, text=True)
    return ran.returncode, ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a file that is always full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error_in_one_line(servers: Services, command: str) -> None:
    assert run(command, servers, ">/dev/full") == (1, "worker: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("redirections", ["<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_not_needed(servers: Services, redirections: str) -> None:
    assert run("limits", servers, redirections) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_that_nothing_reads_ends_the_command_in_silence(servers: Services, command: str) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    arguments = [sys.executable, "-m", "worker", *command.split()]
    environment = os.environ | servers.environment()
    ran = subprocess.run(arguments, env=environment, stdout=writable, stderr=subprocess.PIPE, text=True)
    os.close(writable)
    assert (ran.returncode, ran.stderr) == (1, "")
