"""Namespaces: several queues on one server, each with all of its keys under its own prefix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.faults.redis_scene import at
from tests.support.main_paths import limited, take_main_paths
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, Settings, SyncClient
from worker.db.engine import Database
from worker.errors import UsageError
from worker.queue import scripts
from worker.queue.namespace import _FIRST, Namespace

ONE = Namespace("{shop}:")


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
