"""PostgreSQL and Valkey of one pytest process; each xdist worker has its own servers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.pgbouncer import PgBouncer
from worker.embedded import EmbeddedPostgres, EmbeddedValkey, Services
from worker.embedded.directories import make_home

#: Names a folder with `initdb` and `postgres` of another version; `make test-matrix` sets it.
PROGRAMS_VARIABLE = "LONGHAUL_TEST_POSTGRES"
#: Settings of `pgbouncer.ini` as JSON: PostgreSQL is then behind a PgBouncer; tests/pgbouncer sets it.
PGBOUNCER_VARIABLE = "LONGHAUL_TEST_PGBOUNCER"


#: A folder in memory, and the bytes that the servers of a process may need in it. On a disk, the files of tables that
#: tests create and truncate cost a quarter of the whole time.
_MEMORY = "/dev/shm"
_NEEDED = 1 << 30
_SETTINGS = {"max_wal_size": "256MB"}


def _memory() -> list[str]:
    """Return the folder in memory if there is one, programs can run from it, and it is large enough for all of us."""
    try:
        size, options = shutil.disk_usage(_MEMORY), os.statvfs(_MEMORY).f_flag
    except (OSError, AttributeError):
        return []
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return [_MEMORY] if size.free >= processes * _NEEDED and not options & os.ST_NOEXEC else []


@contextlib.contextmanager
def own_servers() -> Iterator[Services]:
    """Start both servers, and stop them on leaving.

    DATABASE_URL and REDIS_URL are ignored: tests run FLUSHALL, CONFIG SET and ALTER SYSTEM.
    """
    programs = os.environ.get(PROGRAMS_VARIABLE)
    home = make_home(*_memory())
    postgres = EmbeddedPostgres(home, settings=_SETTINGS, programs=Path(programs) if programs else None)
    valkey = EmbeddedValkey(home)
    pooler = None
    try:
        valkey.start()
        postgres.start()
        url = postgres.url
        if PGBOUNCER_VARIABLE in os.environ:
            pooler = PgBouncer(home, url, json.loads(os.environ[PGBOUNCER_VARIABLE]))
            pooler.start()
            url = pooler.url
        yield Services(url, valkey.url, postgres, valkey)
    finally:
        if pooler is not None:
            pooler.stop()
        postgres.stop()
        valkey.stop()
        shutil.rmtree(home, ignore_errors=True)
