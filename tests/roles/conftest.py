"""A worker, a client and a reader, each under its role of PostgreSQL and its user of Redis."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import text

from tests.roles.jobs import GATE
from worker.db.engine import Database
from worker.db.grants import KINDS, grants
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.queue.acl import USER_KINDS, acl_rules
from worker.settings import Settings

PASSWORD = "just-for-this-test"
#: The rights on the application's own tables, which the jobs here need.
APPLICATION = ("GRANT USAGE ON SCHEMA public TO lh_worker", "GRANT SELECT, UPDATE ON author TO lh_worker")


def with_role(settings: Settings, kind: str) -> Settings:
    """Return settings with which a role connects to PostgreSQL."""
    parts = urlsplit(settings.database.url)
    url = urlunsplit(parts._replace(netloc=f"lh_{kind}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})


def with_user(settings: Settings, kind: str, port: int) -> Settings:
    """Return settings with which a user connects to Redis."""
    url = f"redis://lh-{kind}:{PASSWORD}@127.0.0.1:{port}/0"
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})


@dataclass(frozen=True)
class Limited:
    """The settings of each kind of process, and the connection of an administrator of Redis."""

    worker: Settings
    operator: Settings
    client: Settings
    reader: Settings
    admin: Redis


@pytest.fixture(scope="session")
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server whose users are those of these tests."""
    home = make_home()
    server = EmbeddedValkey(home)
    server.start()
    yield server
    server.stop(immediate=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest_asyncio.fixture
async def roles(database: Database) -> AsyncIterator[None]:
    """A role of each kind, with the grants that `worker grants` prints."""
    async with database.connection() as connection:
        for kind in KINDS:
            await connection.execute(text(f"CREATE ROLE lh_{kind} LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER"))
            for statement in grants(kind, f"lh_{kind}"):  # type: ignore[arg-type]
                await connection.execute(text(statement))
        for statement in APPLICATION:
            await connection.execute(text(statement))
    yield
    async with database.connection() as connection:
        for kind in KINDS:
            await connection.execute(text(f"DROP OWNED BY lh_{kind}"))
            await connection.execute(text(f"DROP ROLE lh_{kind}"))


@pytest_asyncio.fixture
async def limited(fast: Settings, roles: None, own_valkey: EmbeddedValkey) -> AsyncIterator[Limited]:
    """The settings of each kind of process, with empty servers."""
    GATE.clear()
    async with Redis(port=own_valkey.port) as admin:
        await admin.flushall()
        await admin.script_flush()
        await admin.execute_command("ACL", "LOG", "RESET")
        for kind in USER_KINDS:
            rules = acl_rules(kind, fast)  # type: ignore[arg-type]
            await admin.execute_command("ACL", "SETUSER", f"lh-{kind}", *rules, f">{PASSWORD}")
        roles_of = {kind: kind if kind in KINDS else "worker" for kind in USER_KINDS}
        made = {kind: with_user(with_role(fast, role), kind, own_valkey.port) for kind, role in roles_of.items()}
        yield Limited(**made, admin=admin)
        for kind in USER_KINDS:
            await admin.execute_command("ACL", "DELUSER", f"lh-{kind}")
