"""The files in deploy/ with roles and users are the output of `worker grants`, and servers read them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis
from sqlalchemy import text

from tests.support.command_line import CommandLine
from worker.db.engine import Database
from worker.db.grants import KINDS
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.queue.acl import USER_KINDS

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
ROLES = DEPLOY / "postgresql" / "roles.sql"
USERS = DEPLOY / "redis" / "users.acl"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for a server."""
    made = make_home()
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_the_file_of_roles_is_what_the_command_prints_and_postgresql_runs_it(
    cli: CommandLine, database: Database
) -> None:
    expected = ["-- Roles of least privilege: docs/how-to/least-privilege.md. They have no password yet.\n"]
    for kind in KINDS:
        printed = await cli("grants", kind, f"longhaul_{kind}")
        expected.append(f"CREATE ROLE longhaul_{kind} LOGIN;\n{printed.stdout}")
    assert ROLES.read_text() == "\n".join(expected), (
        "write the output of `worker grants` to deploy/postgresql/roles.sql"
    )
    async with database.engine.connect() as connection:
        for statement in ROLES.read_text().split(";\n"):
            await connection.execute(text(statement or "SELECT 1"))
        await connection.rollback()


async def test_the_file_of_users_is_what_the_command_prints_and_valkey_loads_it(cli: CommandLine, home: Path) -> None:
    printed = [(await cli("grants", kind, f"longhaul-{kind}", "--redis")).stdout for kind in USER_KINDS]
    assert USERS.read_text() == "".join(printed), (
        "write the output of `worker grants --redis` to deploy/redis/users.acl"
    )
    server = EmbeddedValkey(home, settings={"aclfile": str(shutil.copy(USERS, home))})
    server.start()
    try:
        with Redis(port=server.port) as admin:
            assert {line.split()[1] for line in admin.acl_list()} == {"default", *(f"longhaul-{k}" for k in USER_KINDS)}
            with (
                Redis(port=server.port, username="longhaul-client", password="") as client,
                pytest.raises(AuthenticationError),
            ):
                client.ping()
            admin.acl_setuser("longhaul-client", enabled=True, passwords=["+secret"])
            admin.acl_save()
            with Redis(port=server.port, username="longhaul-client", password="secret") as client:
                assert client.ping()
    finally:
        server.stop(immediate=True)


async def test_names_of_queues_and_of_users_are_checked(cli: CommandLine) -> None:
    printed = await cli("--set", "worker.queue=mail", "grants", "client", "me", "--redis")
    assert " ~mail " in printed.stdout and "arq:queue" not in printed.stdout
    printed = await cli("--set", 'worker.queues={"mail": 1, "arq:b": 2}', "grants", "worker", "me", "--redis")
    assert " ~arq:* ~worker:* ~mail " in printed.stdout
    printed = await cli("--set", "redis.namespace=shop", "grants", "client", "me", "--redis")
    assert " ~{shop}:arq:queue " in printed.stdout and " %R~{shop}:arq:result:* " in printed.stdout
    printed = await cli("--set", "redis.url=redis+cluster://h:1/", "grants", "reader", "me", "--redis")
    assert " %R~{longhaul}:worker:* " in printed.stdout and " +cluster|slots" in printed.stdout
    for arguments in (("worker", "a b"), ("worker", "a\nuser b on nopass"), ("enqueue", "me")):
        assert (await cli("grants", *arguments, "--redis")).returncode == 2
    assert (await cli("grants", "operator", "me")).returncode == 2
    for queue in ("a b", "a*", "[a]", "a?", "a\\\\b"):
        refused = await cli("--set", f"worker.queue={queue}", "grants", "client", "me", "--redis")
        assert (refused.returncode, refused.stdout) == (78, ""), queue


def test_the_tests_that_the_threat_model_names_exist() -> None:
    page = (DEPLOY.parent / "docs" / "explanation" / "threat-model.md").read_text()
    named = set(re.findall(r"`((?:tests|deploy)/[^`]+)`", page))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (DEPLOY.parent / path).exists()] == []
