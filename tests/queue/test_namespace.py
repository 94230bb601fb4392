"""Namespaces: several queues on one server, each with all of its keys under its own prefix."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis
from sqlalchemy import select

from tests.faults.redis_scene import at
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.main_paths import fair_one, limited, only_one, take_main_paths
from tests.support.waiting import until, until_status, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, SyncClient, job
from worker.arq_compat import Worker
from worker.db.engine import Database
from worker.doctor import examine
from worker.errors import CorruptKey, RegistrationError, UsageError
from worker.ledger import Ledger
from worker.queue import scripts
from worker.queue.acl import acl_rules
from worker.queue.connection import connection_pool
from worker.queue.namespace import _FIRST, Namespace, script_in
from worker.runtime.rescuer import Rescuer

ONE = Namespace("{shop}:")
opened: dict[str, asyncio.Event] = {}


@pytest.fixture
def shop(fast: Settings) -> Settings:
    """The namespace `shop`."""
    return at(fast, f"{fast.redis.url}?namespace=shop")


@pytest.mark.long  # tests/faults/test_cluster.py does the same in a cluster
async def test_all_main_paths_touch_only_keys_of_the_namespace(
    fast: Settings, redis: Redis, database: Database
) -> None:
    await redis.execute_command("ACL SETUSER tenant reset on >secret ~{shop}:* &* +@all")
    await redis.execute_command("ACL LOG RESET")
    try:
        await take_main_paths(
            at(fast, fast.redis.url.replace("://", "://tenant:secret@") + "?namespace=shop"), database
        )
        assert await redis.acl_log() == []
    finally:
        await redis.execute_command("ACL DELUSER tenant")
    names = await redis.keys("*")
    assert len(names) > 20
    assert [name for name in names if not name.startswith(b"{shop}:")] == []


async def test_queues_of_two_namespaces_and_of_plain_names_do_not_see_each_other(
    fast: Settings, redis: Redis, shop: Settings, database: Database
) -> None:
    async with Client(fast) as plain, Client(shop) as client, working(shop, limited):
        waiting = await plain.enqueue(limited.options(id="one"), "plain")
        run = await client.enqueue(limited.options(id="one"), "shop")
        assert await run.result(timeout=120) == "shop"
        assert await waiting.status() == "waiting"
        assert [one.id for one in await plain.runs()] == ["one"]
        [ended] = await until(client.runs)
        assert (ended.id, ended.state) == ("one", "succeeded")
    assert await redis.exists("arq:job:one", "{shop}:arq:result:one") == 2


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        (("GET", "a"), ("GET", "{shop}:a")),
        (("get", b"a"), ("GET", b"{shop}:a")),
        ((b"SET", "a", "b"), ("SET", "{shop}:a", "b")),
        (("DEL", "a", b"b"), ("DEL", "{shop}:a", b"{shop}:b")),
        (("SCAN", "0", b"MATCH", "a*", b"COUNT", 9), ("SCAN", "0", b"MATCH", "{shop}:a*", b"COUNT", 9)),
        (("SCAN", "0"), ("SCAN", "0", "MATCH", "{shop}:*")),
        (("XREAD", b"STREAMS", "a", "b", 0, 1), ("XREAD", b"STREAMS", "{shop}:a", "{shop}:b", 0, 1)),
        (("XINFO STREAM", "a"), ("XINFO", "STREAM", "{shop}:a")),
        (("MEMORY", "USAGE", "a"), ("MEMORY", "USAGE", "{shop}:a")),
        (("CONFIG GET", "maxmemory"), ("CONFIG GET", "maxmemory")),
        (("MULTI",), ("MULTI",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)  # fmt: skip
def test_a_command_gets_the_prefix_before_its_keys(command: tuple[object, ...], sent: tuple[object, ...]) -> None:
    assert ONE.qualify(command) == sent


@pytest.mark.parametrize(
    "command",
    [("EVAL", "return 1", 0), ("SCRIPT LOAD", "return 1"), ("EVALSHA", "0" * 40, 0), ("FLUSHALL",), ("SORT", "a")],
    ids=lambda command: command[0],
)  # fmt: skip
async def test_a_command_whose_keys_are_not_known_is_not_sent(
    shop: Settings, redis: Redis, command: tuple[str, ...]
) -> None:
    async with Client(shop) as client:
        with pytest.raises(UsageError, match=r"\{shop\}"):
            await client.redis.execute_command(*command)
    with SyncClient(shop) as blocking, pytest.raises(UsageError, match=r"\{shop\}"):
        blocking.redis.execute_command(*command)


def test_the_scripts_call_only_commands_whose_keys_namespace_lua_knows() -> None:
    folder = Path(scripts.__file__).parent
    called = {
        name
        for path in folder.glob("*.lua")
        for name in re.findall(r"(?:call|pcall|try)\('([A-Z]+)'", path.read_text(encoding="utf-8"))
    }
    assert len(called) > 20
    assert called - _FIRST == {"TIME", "DEL", "EXISTS"}


async def test_a_connection_of_another_namespace_is_refused(shop: Settings, redis: Redis) -> None:
    with pytest.raises(UsageError, match="redis="):
        Client(shop, redis=redis)


async def test_a_bad_key_is_named_as_it_is_in_redis_with_its_cure(
    shop: Settings, redis: Redis, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.set("{shop}:worker:paused", "x")
    await redis.set("{shop}:arq:queue", "x")
    async with Client(shop) as client:
        with pytest.raises(CorruptKey, match=r"\{shop\}:arq:queue is a string"):
            await client.enqueue(limited)
    finding = (await examine(shop))["redis keys"]
    assert "{shop}:worker:paused is a string, not a set" in finding.message
    for cure in finding.advice.split("; "):
        await redis.execute_command(*shlex.split(cure)[1:])
    assert set(await redis.keys()) == {b"{shop}:broken:worker:paused", b"{shop}:broken:arq:queue"}
    assert (await examine(shop))["redis keys"].level == "fine"
    await redis.set("{shop}:worker:paused", "x")
    async with working(shop, limited):
        await until_true(lambda: any("key={shop}:worker:paused" in line for line in caplog.messages))


def _to_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


async def double(ctx: dict[Any, Any], number: int) -> int:
    """Be a function of arq."""
    return 2 * number


async def test_functions_of_arq_run_in_a_namespace(shop: Settings, redis: Redis) -> None:
    async with ArqRedis(connection_pool(shop), job_serializer=_to_json, job_deserializer=json.loads) as arq:
        enqueued = await arq.enqueue_job("double", 4)
        worker = Worker([double], settings=shop, burst=True, handle_signals=False)
        await worker.main()
        await worker.close()
        assert enqueued is not None
        assert (await enqueued.result_info()).result == 8  # type: ignore[union-attr]
    assert [name for name in await redis.keys() if not name.startswith(b"{shop}:")] == []
    with pytest.raises(RegistrationError, match="plain names"):
        Worker([double], settings=shop, redis_settings=RedisSettings(), handle_signals=False)


async def test_the_command_line_prints_names_with_the_prefix(cli: CommandLine, redis: Redis) -> None:
    listed = await cli("keys", "--json", LONGHAUL_REDIS__NAMESPACE="shop")
    assert {one["name"].partition(":")[0] for one in json.loads(listed.stdout)} == {"{shop}"}
    printed = await cli("keys", "--script", "cancel", LONGHAUL_REDIS__NAMESPACE="shop")
    assert "local NAMESPACE = '{shop}:'\n" in printed.stdout


async def test_a_client_in_a_namespace_needs_no_more_rights_than_its_keys(shop: Settings, redis: Redis) -> None:
    await redis.execute_command("ACL", "SETUSER", "tenant", *acl_rules("client", shop), ">secret")
    try:
        async with Client(at(shop, shop.redis.url.replace("://", "://tenant:secret@"))) as client:
            run = await client.enqueue(fair_one.options(delay=60), "north")
            assert await run.status() == "deferred"
            assert (await client.enqueue(only_one, "x")).id != (await client.enqueue(fair_one, "x")).id
    finally:
        await redis.execute_command("ACL", "DELUSER", "tenant")


@job
async def walk(ctx: JobContext) -> int:
    """Enter the ledger, and wait for the test."""
    async for batch in ctx.chunks(select(Author), size=4, lock=False):
        await opened["gate"].wait()
        assert batch
    return ctx.rows_done


async def test_namespaces_with_queues_of_their_own_share_one_ledger(
    fast: Settings, redis: Redis, database: Database
) -> None:
    await fill_authors(database, 4)
    opened["gate"] = asyncio.Event()
    here, there = (
        with_worker(at(fast, f"{fast.redis.url}?namespace={name}"), queue=name, lease_seconds=0.9) for name in "ab"
    )
    async with (
        Client(here) as one,
        Client(there) as other,
        working(here, walk, limited),
        working(there, walk, limited),
    ):
        run = await other.enqueue(walk)
        await until_status(run, "running")
        async with database.transaction() as session:
            relayed = [await client.enqueue_in(session, limited, "x") for client in (one, other)]
        assert [await each.result(timeout=120) for each in relayed] == ["x", "x"]
        await redis.delete(*await redis.keys("{b}:*"))  # the run is in the ledger alone
        rescuer = Rescuer(Ledger(database), one.store, here)
        rescuer._idle_seconds = 0.0
        assert await rescuer.run() == 0
        opened["gate"].set()
        assert await run.result(timeout=120) == 4
    assert await redis.keys("{a}:*:" + run.id) == []


async def test_another_language_enqueues_in_a_namespace_as_specified(
    shop: Settings, redis: Redis, database: Database
) -> None:
    payload = json.dumps({"f": "limited", "k": {"text": "from elsewhere"}})
    names = ["arq:queue", "worker:cancelled", "arq:queue", "worker:priorities:arq:queue", "worker:nothing"]
    prefixes = ["arq:job:", "arq:result:", "arq:in-progress:"]
    values = ["by-script", payload, 0, 0, *prefixes, "0", "", 0, 5, "worker:priority:", ""]
    await redis.eval(script_in("{shop}:", "enqueue"), 5, *(f"{{shop}}:{name}" for name in names), *values)
    await redis.set("{shop}:arq:job:by-hand", payload)
    await redis.zadd("{shop}:arq:queue", {"by-hand": 0})
    assert await redis.zrange("{shop}:worker:priority:5:arq:queue", 0, -1) == [b"by-script"]
    async with working(shop, limited), Client(shop) as client:
        for run_id in ("by-script", "by-hand"):
            assert await client.run(run_id).result(timeout=120) == "from elsewhere"


@job(once=True)
async def fill_column(ctx: JobContext) -> None:
    """Migrate data."""


@pytest.mark.parametrize("has_namespaces", [False, True])
async def test_two_applications_with_queues_of_their_own_share_ids_and_jobs_unless_they_have_namespaces(
    fast: Settings, redis: Redis, has_namespaces: bool
) -> None:
    first, second = (
        at(with_worker(fast, queue=name), fast.redis.url + (f"?namespace={name}" if has_namespaces else ""))
        for name in ("shop", "mail")
    )
    async with Client(first) as shop, Client(second) as mail:
        await shop.enqueue(fill_column)
        await shop.enqueue(only_one, "x")
        await shop.pause("only_one")
        assert (await mail.enqueue(fill_column)).is_new == has_namespaces
        assert (await mail.enqueue(only_one, "x")).is_new == has_namespaces
        assert ("only_one" in (await mail.status()).paused) != has_namespaces
        assert (await shop.status()).waiting == 2
        assert (await mail.status()).waiting == (2 if has_namespaces else 0)
