"""`worker doctor`: each check reports its problem and the next step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Column, Integer, MetaData, Table, delete, func, select, text

from tests.models import Author
from tests.support.command_line import CommandLine
from worker import JobContext, Settings, job, load_settings
from worker.db.engine import Database
from worker.doctor.checks import OF_POSTGRES, OF_REDIS, OF_SETTINGS, connections, findings
from worker.doctor.facts import Facts, MissingIndex, PostgresFacts, RedisFacts, gather
from worker.embedded import Services
from worker.embedded.valkey import EmbeddedValkey
from worker.ledger.outbox import OutboxState
from worker.queue.key_problems import wrong_type
from worker.testing.runner import JobRunner

REDIS = RedisFacts(
    info={"redis_version": "7.2.4", "role": "master", "redis_mode": "standalone", "maxmemory_policy": "noeviction"},
    config={"save": "3600 1"},
    no_tracking="",
    clock_ahead=0.0,
    workers=2,
)
POSTGRES = PostgresFacts(
    version=180_001,
    version_name="18.1",
    max_connections=100,
    reserved_connections=3,
    autovacuum=True,
    fsync=True,
    in_recovery=False,
    may_see_sessions=True,
    pooled=False,
    not_migrated="",
    clock_ahead=0.0,
    outbox=OutboxState(waiting=3, oldest_seconds=0.5, refused=0, problem=None),
)
GOOD = Facts(load_settings(environment={}), REDIS, POSTGRES, 5)


def settings(**sections: dict[str, Any]) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, settings=load_settings(environment={}, overrides=sections))


def redis(**values: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, redis=replace(REDIS, **values))


def info(**values: Any) -> Callable[[Facts], Facts]:
    return redis(info={**REDIS.info, **values})


def postgres(**values: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, postgres=replace(POSTGRES, **values))


def both(*changes: Callable[[Facts], Facts]) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


FAILURES = [
    ("jobs", "wrong", lambda facts: replace(facts, jobs="there is no package 'nojobs'")),
    ("jobs", "wrong", lambda facts: replace(facts, jobs=0)),
    ("pool", "warning", settings(database={"pool_size": 2, "max_overflow": 0})),
    ("lock timeout", "wrong", settings(database={"lock_timeout_seconds": 300, "statement_timeout_seconds": 300})),
    ("statement timeout", "wrong", settings(database={"statement_timeout_seconds": 1})),
    ("lease", "wrong", settings(worker={"lease_seconds": 5})),
    ("blocked loop", "warning", settings(worker={"loop_block_tolerance_seconds": 5})),
    ("results", "warning", settings(worker={"result_ttl_seconds": 0})),
    ("pickles", "warning", settings(worker={"accept_pickle": True})),
    ("redis", "wrong", lambda facts: replace(facts, redis="Redis at redis://x: refused")),
    ("redis version", "wrong", info(redis_version="6.0.16")),
    ("redis role", "wrong", info(role="slave")),
    ("redis role", "wrong", info(cluster_enabled=1, connected_slaves=1)),
    ("redis role", "warning", both(info(cluster_enabled=1), settings(redis={"url": "redis+cluster://h"}))),
    ("redis eviction", "wrong", info(maxmemory_policy="allkeys-lru", maxmemory=10**8)),
    ("redis eviction", "warning", info(maxmemory_policy="allkeys-lru", maxmemory=0)),
    ("redis memory", "wrong", info(maxmemory=100, used_memory=95)),
    ("redis persistence", "warning", redis(config={"save": ""})),
    ("redis persistence", "wrong", info(rdb_last_bgsave_status="err")),
    ("redis tracking", "warning", redis(no_tracking="NOPERM")),
    ("redis idle clients", "wrong", redis(config={"save": "3600 1", "timeout": "5"})),
    ("redis clock", "wrong", redis(clock_ahead=-3.0)),
    ("redis keys", "wrong", redis(key_problems=(wrong_type("worker:paused", "string"),))),
    ("postgres", "wrong", lambda facts: replace(facts, postgres="PostgreSQL at x: refused")),
    ("postgres version", "wrong", postgres(version=130_010)),
    ("postgres version", "warning", postgres(version=190_000)),
    ("postgres role", "wrong", postgres(in_recovery=True)),
    ("postgres ledger", "wrong", postgres(not_migrated="the database has ledger schema none")),
    ("postgres connections", "wrong", postgres(max_connections=20)),
    ("connections of all workers", "warning", redis(workers=10)),
    ("postgres frozen workers", "warning", settings(database={"idle_in_transaction_timeout_seconds": 0})),
    (
        "postgres frozen workers",
        "wrong",
        both(settings(database={"idle_in_transaction_timeout_seconds": 0}), postgres(pooled=True)),
    ),
    ("postgres throttles", "wrong", settings(throttle={"min_free_connections": 100})),
    (
        "postgres throttles",
        "warning",
        both(settings(throttle={"max_active_sessions": 5}), postgres(may_see_sessions=False)),
    ),
    ("postgres upkeep", "warning", postgres(fsync=False)),
    ("postgres upkeep", "warning", postgres(autovacuum=False)),
    ("postgres walks", "warning", postgres(missing_indexes=(MissingIndex("sorts", "CREATE INDEX"),))),
    ("postgres outbox", "warning", postgres(outbox=OutboxState(2, 11.0, 0, None))),
    ("postgres outbox", "warning", postgres(outbox=None)),
    ("postgres outbox", "wrong", postgres(outbox=OutboxState(0, 0.0, 1, "the payload is not JSON"))),
    ("postgres collations", "wrong", postgres(changed_collations=("collation x has changed",))),
    ("postgres clock", "wrong", postgres(clock_ahead=60.0)),
]


@pytest.mark.parametrize(
    ("check", "level", "change"), FAILURES, ids=[f"{name}: {level}" for name, level, _ in FAILURES]
)
def test_check_reports_its_problem_with_advice_and_no_other_check_does(
    check: str, level: str, change: Callable[[Facts], Facts]
) -> None:
    found = findings(change(GOOD))
    assert (found[check].level, bool(found[check].advice)) == (level, True)
    assert "wrong" not in {one.level for name, one in found.items() if name != check}


def test_checks_pass_on_good_servers_and_each_has_a_failure_here() -> None:
    assert {one.level for one in findings(GOOD).values()} == {"fine"}
    assert len(findings(GOOD)) == 2 + len(OF_SETTINGS) + len(OF_REDIS) + len(OF_POSTGRES)
    assert set(findings(GOOD)) <= {name for name, *_ in FAILURES}


async def test_gather_returns_the_facts_of_the_servers(tmp_path: Path, settings: Settings, database: Database) -> None:
    wrongly = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru", "timeout": "7"}
    valkey = EmbeddedValkey(tmp_path, settings=wrongly)
    valkey.start()
    try:
        there = settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": valkey.url})})
        facts = await gather(there)
    finally:
        valkey.stop()
    found = findings(facts)
    assert (found["redis eviction"].level, found["redis idle clients"].level) == ("wrong", "wrong")
    assert found["redis persistence"].level == "warning"
    for name in ("redis tracking", "redis clock", "redis role", "postgres ledger", "postgres role", "postgres clock"):
        assert found[name].level == "fine", (name, found[name])


async def test_doctor_exits_with_1_if_something_is_wrong(
    cli: CommandLine, servers: Services, database: Database, redis: Redis
) -> None:
    ran = await cli("doctor", "--json")
    assert ran.returncode == 0, ran.stdout
    assert json.loads(ran.stdout)["postgres ledger"]["level"] == "fine"
    ran = await cli("--set", "worker.lease_seconds=2", "doctor")
    assert ran.returncode == 1
    assert "lower the former, or raise the latter" in ran.stdout
    away = await cli("doctor", "--json", REDIS_URL="redis://127.0.0.1:1/0", DATABASE_URL="postgresql://127.0.0.1:1/x")
    found = json.loads(away.stdout)
    assert (away.returncode, found["redis"]["level"], found["postgres"]["level"]) == (1, "wrong", "wrong")


async def test_walks_without_an_index_are_reported_with_the_statement_that_makes_it(
    settings: Settings, database: Database
) -> None:
    async with database.transaction() as session:
        for sql in (
            'CREATE TABLE "Odd.Name" (id int PRIMARY KEY)',
            'CREATE TABLE "Odd Name" (b int NOT NULL, "A" int NOT NULL, UNIQUE ("A", b))',
            'CREATE TABLE leaf (id int PRIMARY KEY, "Author" int REFERENCES author)',
        ):
            await session.execute(text(sql))
    odd = Table("Odd Name", MetaData(), Column("b", Integer, primary_key=True), Column("A", Integer, primary_key=True))

    @job
    async def walk(ctx: JobContext) -> None:
        async for _ in ctx.chunks(select(odd), by=[odd.c.b, odd.c.A], allow_sort=True):
            pass
        async for _ in ctx.stream(select(Author.region, func.count()).group_by(Author.region).order_by(Author.region)):
            pass
        await ctx.sweep(delete(Author))

    await JobRunner(database, settings)(walk)
    facts = (await gather(settings)).postgres
    assert isinstance(facts, PostgresFacts)
    cures = sorted(one.cure for one in facts.missing_indexes)
    assert cures == [
        'CREATE INDEX CONCURRENTLY ON "Odd Name" (b, "A")',
        "CREATE INDEX CONCURRENTLY ON book (author_id)",
        'CREATE INDEX CONCURRENTLY ON leaf ("Author")',
    ]
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for cure in cures:
            await connection.execute(text(cure))
    facts = (await gather(settings)).postgres
    assert isinstance(facts, PostgresFacts)
    assert facts.missing_indexes == ()


def test_the_connections_of_a_worker_count_those_of_its_metrics() -> None:
    server = replace(POSTGRES, max_connections=36)  # a worker needs 33, and 3 are reserved
    for port, level in ((None, "fine"), (9464, "wrong")):
        assert connections(server, load_settings("/dev/null", {"metrics": {"port": port}}, {})).level == level
