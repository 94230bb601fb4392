"""A real PgBouncer in front of a server: Debian's, or the program named by PGBOUNCER."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.embedded import process
from worker.embedded.directories import make_data_dir, server_user


def program() -> str | None:
    """Return the path of PgBouncer, or None."""
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def version() -> tuple[int, int]:
    """Return major and minor version of that PgBouncer."""
    told = subprocess.run([str(program()), "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = told.split()[1].split(".")[:2]
    return int(major), int(minor)


class PgBouncer:
    """One PgBouncer in transaction mode, with three sessions of the server for all its clients.

    Args:
        home: folder made by `make_home`.
        server_url: the server behind it.
        settings: of `pgbouncer.ini`, over ours.

    Attributes:
        settings: the argument.
    """

    def __init__(self, home: Path, server_url: str, settings: Mapping[str, object]) -> None:
        self._folder = make_data_dir(home, f"pgbouncer-{process.free_port()}")
        self._log = home / f"{self._folder.name}.log"
        self._server = urlsplit(server_url)
        self.settings = dict(settings)
        self._settings = {"pool_mode": "transaction", "default_pool_size": 3, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = process.free_port()

    @property
    def url(self) -> str:
        """URL of the same database, through PgBouncer."""
        return f"postgresql://anybody@127.0.0.1:{self.port}{self._server.path}"

    def start(self) -> None:
        """Start it, as the servers' user: it refuses to run as root."""
        server = self._server
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "max_client_conn": 1000,
            "query_wait_timeout": 30,
            **self._settings,
        }
        password = unquote(server.password or "").replace("'", "''")
        target = f"host={server.hostname} port={server.port or 5432} user={server.username} password='{password}'"
        lines = ["[databases]", f"{server.path[1:]} = {target}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        file = self._folder / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        user = server_user()
        if user is not None:
            shutil.chown(file, user=user)
        self._process = process.start([str(program()), file], log=self._log, user=user, death_signal=signal.SIGTERM)
        while self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        raise RuntimeError(f"PgBouncer did not start:\n{self.log()}")

    def log(self) -> str:
        """Return its output."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            process.stop(self._process, signal.SIGTERM)
            self._process = None
