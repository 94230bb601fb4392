"""Planted secrets are in no output of the command line, whatever fails."""

from __future__ import annotations

import pytest

from tests.support.command_line import CommandLine
from worker.embedded import Services

SECRET = "pl4nted-s3cret"


@pytest.mark.parametrize("reachable", [True, False])
async def test_no_command_prints_a_password(cli: CommandLine, servers: Services, reachable: bool) -> None:
    redis = servers.redis_url.partition("://")[2].rpartition("@")[2] if reachable else "127.0.0.1:1/0"
    urls = {
        "DATABASE_URL": f"postgresql://someone:{SECRET}@127.0.0.1:1/nowhere",
        "REDIS_URL": f"redis://someone:{SECRET}@{redis}",
    }
    for arguments in (
        ("settings",),
        ("settings", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("status",),
        ("runs",),
        ("dead",),
        ("migrate",),
        ("pause", "*"),
        ("enqueue", "no_such_job"),
        ("top", "--once", "--every", "0.1"),
    ):
        ran = await cli(*arguments, **urls)
        assert SECRET not in ran.stdout + ran.stderr, arguments
        assert "Traceback" not in ran.stderr, arguments
    wrong = await cli("settings", DATABASE_URL=f"mysql://someone:{SECRET}@h/d")
    assert wrong.returncode == 78 and SECRET not in wrong.stderr
