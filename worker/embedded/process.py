"""Starts a server process in its own session, on a free port; it ends when this process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def free_port(preferred: int = 0) -> int:
    """Return a TCP port of the loopback interface that is free right now: `preferred`, if it is."""
    with socket.socket() as probe:
        # Servers set it too: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            return free_port()
        port: int = probe.getsockname()[1]
        return port


def run_as(user: str | None) -> dict[str, object]:
    """Return the `subprocess` arguments that run a command as `user`; none when `user` is None."""
    if user is None:
        return {}
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def start(
    command: Sequence[str | Path], *, log: Path, user: str | None, death_signal: signal.Signals
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C reaches us first and we stop it in order.

    Linux sends `death_signal` to the server when this process dies, SIGKILL included, so that no server keeps running
    (prctl(2), PR_SET_PDEATHSIG; it is reset by a change of user, hence set after it).
    """

    def die_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal))

    with log.open("ab") as output:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            **run_as(user),
        )


def stop(process: subprocess.Popen[bytes], how: signal.Signals, *, seconds: float = 10.0) -> None:
    """Ask the server to stop with the signal `how`; after `seconds` end it with SIGKILL."""
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(seconds)


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of a server's log, for the message of an error."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return "(no log)"
