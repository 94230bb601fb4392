"""Both servers together, or none where the environment names real ones."""

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
    """URLs of the servers in use, and the handles of those that we started (None: a server of yours)."""

    database_url: str
    redis_url: str
    postgres: EmbeddedPostgres | None
    valkey: EmbeddedValkey | None

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is to use these servers."""
        return {**os.environ, "DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}


@contextlib.contextmanager
def services(
    settings: Mapping[str, str] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    default_ports: bool = False,
) -> Iterator[Services]:
    """Start what DATABASE_URL and REDIS_URL do not name; stop and remove it on leaving.

    Args:
        settings: of the PostgreSQL that is started, over ours.
        environment: where these two are looked for; an empty one for servers that are nobody else's.
        default_ports: listen on 5432 and 6379 where they are free, so that `psql` and `redis-cli` need no URL.

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
