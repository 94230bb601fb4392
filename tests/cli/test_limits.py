"""`worker limits` on the command line."""

from __future__ import annotations

import json

from redis.asyncio import Redis

from tests.support.command_line import CommandLine, error_line


async def test_limits_are_set_listed_and_unset(cli: CommandLine, redis: Redis) -> None:
    assert (await cli("limits")).stdout == "operators have set no limit\n"
    made = await cli("limits", "set", "index", "mail", "--running", "5", "--runs-per-second", "0.5")
    assert made.stdout == "limit of index, mail: 5 running, 0.5 runs/s\n"
    await cli("pace", "mail", "--max-rows-per-second", "9")
    assert json.loads((await cli("limits", "--json")).stdout) == {
        "running": {"index": 5, "mail": 5},
        "runs_per_second": {"index": 0.5, "mail": 0.5},
        "rows_per_second": {"mail": 9.0},
    }
    assert [line.split() for line in (await cli("limits")).stdout.splitlines()][1:] == [
        ["index", "5", "0.5"],
        ["mail", "5", "0.5", "9"],
    ]
    assert await redis.hgetall("worker:limits") == {b"index": b"5", b"mail": b"5"}
    assert (await cli("limits", "unset", "index", "mail")).stdout == "limit of index, mail: as the code sets it\n"
    assert await redis.exists("worker:limits", "worker:rates") == 0
    orders = [fields[b"order"] for _, fields in await redis.xrange("worker:orders")]
    assert orders == [b"limit", b"rate", b"pace", b"limit", b"rate"]
    unknown = await cli("limits", "unset", "index")
    assert (unknown.returncode, "no limit was set for index" in error_line(unknown)) == (1, True)
    assert (await cli("limits", "set", "index")).returncode == 2
