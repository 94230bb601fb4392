"""Sinks that are killed, or find the disk full, at each use of their directory: parts and manifest are right after."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from tests.sinks.killed import SINKS
from tests.sinks.test_parts import fill, read_export
from tests.support.clean_database import clean
from tests.support.fork_server import spawn_with_pipe
from worker.db.engine import Database
from worker.embedded import Services

ROWS = 25


async def export(servers: Services, kind: str, directory: Path, how: str, place: int) -> tuple[int, str]:
    """Run an attempt in a process of its own. Return its exit code, and the last line that it printed."""
    environment = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url, "PATH": ""}
    arguments = (kind, str(directory), how, str(place))
    process, output = await spawn_with_pipe("tests.sinks.broken_at", *arguments, env=environment)
    text = (await output.read()).decode()
    return await asyncio.to_thread(process.wait), text.strip().rpartition("\n")[2]


async def start_over(database: Database, servers: Services) -> None:
    """Leave nothing but the rows to export."""
    await database.engine.dispose()
    await asyncio.to_thread(clean, servers)
    await fill(database, ROWS)


async def ensure_exact(database: Database, servers: Services, kind: str, directory: Path, how: str, place: int) -> int:
    """Break an attempt, and let the next one end. Return the exit code of the first one."""
    await start_over(database, servers)
    code, _ = await export(servers, kind, directory, how, place)
    if code != 0:
        assert (await export(servers, kind, directory, how, 0))[0] == 0
    manifest, ids = read_export(directory)
    assert (manifest["complete"], ids) == (True, list(range(1, ROWS + 1))), f"{how} at use {place}"
    return code


async def count_uses(database: Database, servers: Services, kind: str, directory: Path) -> int:
    await start_over(database, servers)
    return int((await export(servers, kind, directory, "kill", 0))[1])


async def test_disk_that_is_full_for_the_last_manifest_costs_an_attempt(
    database: Database, servers: Services, tmp_path: Path
) -> None:
    uses = await count_uses(database, servers, "csv", tmp_path / "whole")
    assert await ensure_exact(database, servers, "csv", tmp_path / "full", "full", uses - 4) != 0


@pytest.mark.long
@pytest.mark.parametrize(("kind", "how"), list(itertools.product(SINKS, ("kill", "full"))))
async def test_parts_and_manifest_are_exact_wherever_an_attempt_breaks(
    database: Database, servers: Services, tmp_path: Path, kind: str, how: str
) -> None:
    uses = await count_uses(database, servers, kind, tmp_path / "whole")
    for place in range(1, uses + 1):
        code = await ensure_exact(database, servers, kind, tmp_path / str(place), how, place)
        assert code != 0 or how == "full"  # a full disk does not disturb what only reads or renames
