"""Planted secrets are nowhere: in no key of Redis, no line of the log, no output, no traceback."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.embedded import Services
from worker.errors import InvalidArguments, ServerUnavailable
from worker.launch import run_until_drained
from worker.observe.logs import JsonFormatter
from worker.queue import keys

#: With characters that a URL must encode: each form of it is a secret.
DATABASE_SECRET = "db:s3cr#t/pl@nted?"
REDIS_SECRET = "rd:s3cr#t/pl@nted?"
ARGUMENT_SECRET = "arg-s3cret-planted"


def forms(secret: str) -> set[str]:
    """Return the forms in which a secret can appear, also the longest part that is the same in all."""
    encoded = {quote(secret, safe=""), quote(secret), quote_plus(secret), quote(secret, safe="").lower()}
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], *encoded, secret.split("#")[0]}


SECRETS = forms(DATABASE_SECRET) | forms(REDIS_SECRET) | forms(ARGUMENT_SECRET)


def assert_clean(text: str, place: object) -> None:
    found = sorted(secret for secret in SECRETS if secret in text)
    assert found == [], (place, found)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All lines of all loggers, as text and as JSON, at the level DEBUG."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers: list[logging.Handler] = [logging.StreamHandler(stream), logging.StreamHandler(stream)]
    handlers[1].setFormatter(JsonFormatter("north"))
    level = root.level
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


async def content(redis: Redis) -> str:
    """Return all keys and values of Redis."""
    found: list[object] = []
    for name in await redis.keys("*"):
        match await redis.type(name):
            case b"string":
                found += [name, await redis.get(name)]
            case b"hash":
                found += [name, await redis.hgetall(name)]
            case b"set":
                found += [name, await redis.smembers(name)]
            case b"zset":
                found += [name, await redis.zrange(name, 0, -1)]
            case b"stream":
                found += [name, await redis.xrange(name)]
            case other:
                raise AssertionError(other)
    return repr(found)


def planted(settings: Settings, servers: Services) -> Settings:
    """Return settings whose URLs hold the secrets: a user of PostgreSQL and of Redis with these passwords."""
    database = servers.database_url.rpartition("@")[2]
    redis = servers.redis_url.partition("://")[2].rpartition("@")[2]
    url = f"postgresql+asyncpg://planted:{quote(DATABASE_SECRET, safe='')}@{database}"
    update = {
        "database": settings.database.model_copy(update={"url": url}),
        "redis": settings.redis.model_copy(update={"url": f"redis://planted:{quote(REDIS_SECRET, safe='')}@{redis}"}),
    }
    return settings.model_copy(update=update)


@pytest.fixture
async def secret_settings(fast: Settings, servers: Services, database: Database, redis: Redis) -> Settings:
    """The servers of the tests, with a user whose password is a secret."""
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS planted"))
        password = DATABASE_SECRET.replace(":", "\\:")
        await connection.execute(text(f"CREATE ROLE planted LOGIN SUPERUSER PASSWORD '{password}'"))
    await redis.acl_setuser(
        "planted", enabled=True, passwords=[f"+{REDIS_SECRET}"], categories=["+@all"], keys=["*"], channels=["*"]
    )
    return planted(fast, servers)


@job(max_attempts=2)
async def connect(ctx: JobContext, url: str = "") -> None:
    """Fail in each way in which a driver may show its URL."""
    engine = create_async_engine(ctx.settings.database.url.rpartition("/")[0] + "/no_such_database")
    try:
        async with engine.connect():
            raise AssertionError("connected")
    finally:
        await engine.dispose()


@job(max_attempts=2)
async def use_settings(ctx: JobContext) -> None:
    """Fail with the settings in the error's chain of frames."""
    url = ctx.settings.database.url
    create_engine(url.replace("+asyncpg", "+no_such_driver"))


@job(max_attempts=2)
async def walk(ctx: JobContext) -> None:
    """Fail in a batch."""
    async for _ in ctx.chunks(select(Author), size=10):
        raise RuntimeError(f"settings {ctx.settings.log}")


async def test_failing_jobs_leave_no_secret_anywhere(
    secret_settings: Settings, redis: Redis, database: Database, log: io.StringIO
) -> None:
    await fill_authors(database, 20)
    jobs = (connect, use_settings, walk)
    async with Client(secret_settings) as client, working(with_worker(secret_settings, name="north"), *jobs):
        for one in jobs:
            run = await client.enqueue(one)
            with pytest.raises(JobFailed) as caught:
                await run.result(timeout=120)
            assert_clean(f"{caught.value!r} {caught.value}", one.name)
        await until(lambda: has_letters(redis, 3))
    lines = log.getvalue()
    assert "attempt failed" in lines and "Traceback" in lines
    assert_clean(lines, "log")
    assert_clean(await content(redis), "Redis")
    async with database.engine.connect() as connection:
        for table in ("run", "step", "quarantine"):
            rows = (await connection.execute(text(f"SELECT t::text FROM worker.{table} t"))).all()
            assert_clean(repr(rows), table)


async def has_letters(redis: Redis, count: int) -> bool:
    return int(await redis.hlen(keys.DEAD)) >= count


@pytest.mark.parametrize("what", ["refused", "wrong password", "no such host"])
async def test_connection_errors_leave_no_secret(
    secret_settings: Settings, database: Database, redis: Redis, log: io.StringIO, what: str
) -> None:
    url = secret_settings.database.url
    wrong = {
        "refused": f"postgresql+asyncpg://planted:{quote(DATABASE_SECRET, safe='')}@127.0.0.1:1/x",
        "wrong password": url.replace("planted:", "planted:x"),
        "no such host": f"postgresql+asyncpg://planted:{quote(DATABASE_SECRET, safe='')}@no-such-host.invalid/x",
    }[what]
    settings = secret_settings.model_copy(
        update={"database": secret_settings.database.model_copy(update={"url": wrong, "connect_timeout_seconds": 2.0})}
    )
    with pytest.raises(ServerUnavailable) as caught:
        await run_until_drained(settings, burst=True)
    assert_clean(f"{caught.value!r} {caught.value}", what)
    broken = secret_settings.redis.url.rpartition("@")[0] + "@127.0.0.1:1/0"
    away = secret_settings.model_copy(update={"redis": secret_settings.redis.model_copy(update={"url": broken})})
    with pytest.raises(ServerUnavailable) as caught:
        await run_until_drained(away, burst=True)
    assert_clean(f"{caught.value!r} {caught.value}", what)
    assert_clean(log.getvalue(), "log")


async def test_secret_argument_is_in_no_error(database: Database, client: Client, log: io.StringIO) -> None:
    @job
    async def send(ctx: JobContext, token: SecretStr, n: int = 0) -> None:
        """Take a secret."""

    with pytest.raises(InvalidArguments) as caught:
        await client.enqueue(send, token=SecretStr(ARGUMENT_SECRET))
    assert_clean(f"{caught.value!r} {caught.value}", "error")
    assert_clean(log.getvalue(), "log")


COMMANDS = [
    ("settings",),
    ("settings", "--json"),
    ("status",),
    ("status", "--json"),
    ("runs",),
    ("runs", "show", "no-such-run"),
    ("dead",),
    ("dead", "--json"),
    ("quarantine",),
    ("doctor",),
    ("doctor", "--json"),
    ("cron",),
    ("top", "--once", "--every", "0.1"),
    ("migrate",),
    ("pause", "x"),
    ("enqueue", "x"),
]


@pytest.mark.parametrize("state", ["works", "refused", "wrong password", "not a URL"])
async def test_no_command_prints_a_secret(
    secret_settings: Settings, cli: CommandLine, redis: Redis, database: Database, state: str
) -> None:
    urls = {
        "DATABASE_URL": secret_settings.database.url.replace("+asyncpg", ""),
        "REDIS_URL": secret_settings.redis.url,
    }
    if state == "refused":
        urls = {name: url.rpartition("@")[0] + "@127.0.0.1:1/0" for name, url in urls.items()}
    elif state == "wrong password":
        urls = {name: url.replace("planted:", "planted:x") for name, url in urls.items()}
    elif state == "not a URL":
        urls = dict.fromkeys(urls, f"mysql://planted:{DATABASE_SECRET}@h:port/d")
    for arguments in COMMANDS:
        ran = await cli(*arguments, **urls)
        assert_clean(ran.stdout + ran.stderr, (state, arguments))
        assert "Traceback" not in ran.stderr, (state, arguments, ran.stderr)
    assert_clean(await content(redis), "Redis")
