"""A pytest plugin for authors of jobs: sessions, a queue, and `run_job`.

pytest loads it in every project of an environment that has Longhaul. Its fixtures need the extra `testing`. Without the
extra, a test that uses one of them fails with a message that names the extra; other tests are not affected.

| fixture | value |
| --- | --- |
| `longhaul_servers` | PostgreSQL and Valkey for the whole run: embedded, or LONGHAUL_TEST_DATABASE_URL and _REDIS_URL |
| `longhaul_settings` | settings for these servers |
| `longhaul_database` | a migrated `Database` with your tables |
| `longhaul_metadata` | your tables, for the database and the sessions: override it with your `Base.metadata` |
| `pg_session` | a session on PostgreSQL that is rolled back after the test, even if the test commits |
| `sqlite_session` | a session on an in-memory SQLite, for quick unit tests |
| `queue` | a `Client` on fakeredis: enqueued runs stay there |
| `enqueued` | what was enqueued: `enqueued.assert_one(job, user_id=7)`, and `await enqueued.run_all()` |
| `run_job` | `await run_job(job, days=90)` runs a job to its end in this process |

An `async def` test needs pytest-asyncio's `asyncio_mode = "auto"`, or the mark `asyncio`. Without them, a test that
uses one of these fixtures fails with a message that says so.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import pytest

FIXTURES = (
    "enqueued",
    "longhaul_database",
    "longhaul_metadata",
    "longhaul_servers",
    "longhaul_settings",
    "pg_session",
    "queue",
    "run_job",
    "sqlite_session",
)
#: Marks of the plugins that run an `async def` test.
_MARKS = ("asyncio", "anyio", "trio")

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

    for _name in FIXTURES:
        globals()[f"_stub_{_name}"] = _make_stub(_name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail an `async def` test that uses a fixture of this plugin, and that nothing would run."""
    function = getattr(item, "obj", None)
    used = [name for name in getattr(item, "fixturenames", ()) if name in FIXTURES]
    is_run = any(item.get_closest_marker(mark) for mark in _MARKS)
    if used and not is_run and inspect.iscoroutinefunction(function):
        pytest.fail(
            f"{item.name} is `async def` and uses the fixture {used[-1]} of longhaul-worker, but nothing runs it: set "
            f'asyncio_mode = "auto" under [tool.pytest.ini_options] in pyproject.toml, or mark it with '
            f"@pytest.mark.asyncio",
            pytrace=False,
        )
