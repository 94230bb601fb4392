"""The command line in this process: the same entry point as `python -m worker`, without a cold start."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from unittest.mock import patch

from tests.support.fork_server import ForkServer
from worker.cli import main
from worker.embedded import Services

Ran = subprocess.CompletedProcess[str]

_alone = threading.Lock()  # arguments, environment and streams belong to the whole process


class CommandLine:
    """Call it with arguments: `await cli("runs", "--json")`.

    Args:
        servers: The servers of the commands.
        real: start a process for each command. `worker run` needs that: it sets up signals and logs.
    """

    def __init__(self, servers: Services, *, real: bool = False) -> None:
        self._servers = servers
        self._real = real

    async def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        """Run one command in a thread; `environment` overrides that of the servers."""
        call = run_process if self._real else run_here
        return await asyncio.to_thread(call, arguments, stdin, self._servers.environment() | environment)


def run_process(arguments: Sequence[str], stdin: str, environment: Mapping[str, str]) -> Ran:
    """Run a command in a process of its own."""
    return ForkServer.get().run("worker", *arguments, env=dict(environment), stdin=stdin)


def run_here(arguments: Sequence[str], stdin: str, environment: Mapping[str, str]) -> Ran:
    """Run a command in this process. PYTHONIOENCODING is the encoding of its terminal."""
    command = ["worker", *arguments]
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    raw, raw_errors = io.BytesIO(), io.BytesIO()
    out, errors = io.TextIOWrapper(raw, encoding=encoding), io.TextIOWrapper(raw_errors, encoding=encoding)
    with (
        _alone,
        patch.object(sys, "argv", command),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        patch.dict(os.environ, environment, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        code = main()
    out.flush()
    errors.flush()
    return Ran(command, code, raw.getvalue().decode(encoding), raw_errors.getvalue().decode(encoding))


def error_line(ran: Ran) -> str:
    """Return the standard error of the command, which is one line without a traceback."""
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr
