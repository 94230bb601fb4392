"""The servers of these tests are behind PgBouncer, and so are all other fixtures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.conftest import fleet  # noqa: F401 - a fixture
from tests.support.pgbouncer import PgBouncer, program, version
from worker.embedded import Services
from worker.embedded.directories import make_home

#: The first version that follows prepared statements through transactions.
_FOLLOWS_STATEMENTS = (1, 21)


@pytest.fixture(scope="module", params=["as it is", "no prepared statements"])
def pooler(request: pytest.FixtureRequest, longhaul_servers: Services) -> Iterator[PgBouncer]:
    """PgBouncer in front of the server: with its own defaults, and if they differ, with prepared statements off."""
    if program() is None:
        pytest.skip("there is no pgbouncer on PATH: apt-get install pgbouncer, or name one by PGBOUNCER")
    settings = {}
    if request.param == "no prepared statements":
        if version() < _FOLLOWS_STATEMENTS:
            pytest.skip("this PgBouncer knows no prepared statements: the other tests have shown what it does")
        settings["max_prepared_statements"] = 0
    home = make_home()
    started = PgBouncer(home, longhaul_servers.database_url, settings)
    started.start()
    yield started
    started.stop()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def servers(longhaul_servers: Services, pooler: PgBouncer) -> Services:
    """The same servers, PostgreSQL through PgBouncer."""
    return replace(longhaul_servers, database_url=pooler.url)
