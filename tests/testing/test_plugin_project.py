"""The pytest plugin in a project of its own, as its users run it: pytest in a process, with its own settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from worker.embedded import Services

TESTS = """
import os
import pytest
from sqlalchemy import MetaData, Table, Column, Integer, func, insert, select
from worker import job

metadata = MetaData()
item = Table("plugin_item", metadata, Column("id", Integer, primary_key=True))

@pytest.fixture
def longhaul_metadata():
    return metadata

@job
async def fill(ctx) -> int:
    async with ctx.transaction() as session:
        await session.execute(insert(item), [{"id": n} for n in range(3)])
        return await session.scalar(select(func.count()).select_from(item))

MARK
@pytest.mark.parametrize("time", [1, 2])
async def test_tables_are_there_and_empty(run_job, time):
    assert await run_job(fill) == 3

MARK
async def test_session(pg_session):
    assert await pg_session.scalar(select(func.count()).select_from(item)) == 0

MARK
async def test_queue(queue):
    assert (await queue.enqueue(fill)).is_new

def test_servers(longhaul_servers):
    assert longhaul_servers.database_url != os.environ["DATABASE_URL"]
    assert (longhaul_servers.postgres is None) == ("LONGHAUL_TEST_DATABASE_URL" in os.environ)
"""


def run_pytest(folder: Path, *, mode: str, marked: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in a process whose DATABASE_URL names a server that must not be used."""
    mark = "@pytest.mark.asyncio" if marked else ""
    folder.joinpath("test_them.py").write_text(TESTS.replace("MARK", mark))
    folder.joinpath("pytest.ini").write_text(f"[pytest]\nasyncio_mode = {mode}\n")
    forbidden = {"DATABASE_URL": "postgresql://nobody:x@127.0.0.1:1/production", "REDIS_URL": "redis://127.0.0.1:1/0"}
    arguments = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_them.py")
    path = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return ForkServer.get().run("pytest", *arguments, env=path | forbidden | environment, cwd=folder)


def test_plugin_starts_servers_of_its_own_and_makes_the_tables(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, mode="auto", marked=False)
    assert "5 passed" in run.stdout, run.stdout + run.stderr


def test_plugin_says_how_to_run_an_async_test_that_nothing_runs(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, mode="strict", marked=False)
    assert "4 errors" in run.stdout or "4 failed" in run.stdout, run.stdout
    assert 'set asyncio_mode = "auto"' in run.stdout
    assert "or mark it with @pytest.mark.asyncio" in run.stdout


@pytest.mark.parametrize(("mode", "marked"), [("auto", False), ("strict", True)])
def test_plugin_uses_the_servers_that_it_is_told_to_use(
    tmp_path: Path, servers: Services, mode: str, marked: bool
) -> None:
    told = {"LONGHAUL_TEST_DATABASE_URL": servers.database_url, "LONGHAUL_TEST_REDIS_URL": servers.redis_url}
    run = run_pytest(tmp_path, mode=mode, marked=marked, **told)
    assert "5 passed" in run.stdout, run.stdout + run.stderr
