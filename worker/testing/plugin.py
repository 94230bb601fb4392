"""A pytest plugin for authors of jobs: sessions, a queue, and `run_job`.

pytest loads it in every project of an environment that has Longhaul. Its fixtures need the extra `testing`. Without the
extra, a test that uses one of them fails with a message that names the extra; other tests are not affected.

| fixture | value |
| --- | --- |
| `longhaul_servers` | PostgreSQL and Valkey for the whole run: embedded, or those of DATABASE_URL and REDIS_URL |
| `longhaul_settings` | settings for these servers |
| `longhaul_database` | a migrated `Database` |
| `longhaul_metadata` | your tables, for the two sessions below: override it with your `Base.metadata` |
| `pg_session` | a session on PostgreSQL that is rolled back after the test, even if the test commits |
| `sqlite_session` | a session on an in-memory SQLite, for quick unit tests |
| `queue` | a `Client` on fakeredis: enqueued runs stay there |
| `run_job` | `await run_job(job, days=90)` runs a job to its end in this process |
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

#: Packages of the extra `testing` that the fixtures need.
_NEEDED = ("pytest_asyncio", "fakeredis", "aiosqlite")
_MISSING = [name for name in _NEEDED if find_spec(name) is None]

if not _MISSING:
    pytest_plugins = ["worker.testing.fixtures"]
else:

    def _make_stub(name: str) -> object:
        @pytest.fixture(name=name)
        def stub() -> None:
            pytest.fail(
                f"the fixture {name} of longhaul-worker needs {', '.join(_MISSING)}: "
                f"pip install 'longhaul-worker[testing]'",
                pytrace=False,
            )

        return stub

    for _name in (
        "longhaul_database",
        "longhaul_metadata",
        "longhaul_servers",
        "longhaul_settings",
        "pg_session",
        "queue",
        "run_job",
        "sqlite_session",
    ):
        globals()[f"_stub_{_name}"] = _make_stub(_name)
