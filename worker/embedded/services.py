"""Starts both servers, unless the environment names existing ones."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.embedded.directories import make_home
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.valkey import EmbeddedValkey


@dataclass(frozen=True)
class Services:
    """URLs of the servers in use, and handles of the embedded ones (None for an existing server)."""

    database_url: str
    redis_url: str
    postgres: EmbeddedPostgres | None
    valkey: EmbeddedValkey | None

    def environment(self) -> dict[str, str]:
        """Return the environment for a process that uses these servers."""
        return {**os.environ, "DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}

    def restart_ended(self) -> list[str]:
        """Start embedded servers that have ended by themselves again, at their URLs. Return a line for each.

        Raises:
            RuntimeError: A server did not start.
        """
        lines = []
        for name, server, data in (
            ("PostgreSQL", self.postgres, "with its data"),
            ("Valkey", self.valkey, "without its data, which was in its memory"),
        ):
            code = None if server is None else server.exit_code
            if server is not None and code is not None:
                server.start()
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                lines.append(f"{name} has ended ({how}). It was started again at the same URL, {data}.")
        return lines


@contextlib.contextmanager
def services(
    settings: Mapping[str, str] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    default_ports: bool = False,
) -> Iterator[Services]:
    """Start the servers that DATABASE_URL and REDIS_URL do not name. Stop and remove them at the end of the block.

    Args:
        settings: server settings of the embedded PostgreSQL, which override the defaults.
        environment: the environment with these variables; an empty one to start both servers always.
        default_ports: listen on 5432 and 6379 if they are free, so that `psql` and `redis-cli` need no URL.

    Raises:
        RuntimeError: a server did not start, or its wheel is not installed.
    """
    database_url, redis_url = environment.get("DATABASE_URL"), environment.get("REDIS_URL")
    if database_url and redis_url:
        yield Services(database_url, redis_url, None, None)
        return
    home = make_home()
    postgres_port, valkey_port = (5432, 6379) if default_ports else (0, 0)
    postgres = None if database_url else EmbeddedPostgres(home, settings=settings, preferred_port=postgres_port)
    valkey = None if redis_url else EmbeddedValkey(home, preferred_port=valkey_port)
    try:
        for server in (valkey, postgres):
            if server is not None:
                server.start()
        yield Services(
            database_url or (postgres.url if postgres else ""),
            redis_url or (valkey.url if valkey else ""),
            postgres,
            valkey,
        )
    finally:
        for server in (postgres, valkey):
            if server is not None:
                server.stop()
        shutil.rmtree(home, ignore_errors=True)
