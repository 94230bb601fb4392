"""Checks the keys in Redis against the schema, so that `worker doctor` reports keys that other clients wrote."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from redis.asyncio import Redis

from worker.queue import keys
from worker.queue.dead_letters import DeadLetter
from worker.queue.key_problems import KeyProblem, wrong_member, wrong_type, wrong_value
from worker.queue.overview import read_worker
from worker.queue.payload import read_run_id

#: Number of entries of one key to check: the first ones that Redis returns.
_MOST_ENTRIES = 1_000
_STRING_OF_RUN = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.RESULT)


async def find_key_problems(redis: Redis, queues: Iterable[str]) -> list[KeyProblem]:
    """Return the problems of the keys with fixed names, of the queues, and of the first runs in them.

    Args:
        redis: connection that returns bytes.
        queues: names of the queues.

    Raises:
        RedisError: Redis does not answer.
    """
    names = list(queues)
    wanted = {one.name: _type_answer(one.type) for one in keys.SCHEMA if "<" not in one.name}
    wanted.pop("arq:queue", None)
    for queue in names:
        wanted[queue] = wanted[keys.PRIORITIES + queue] = wanted[keys.RUNNING + queue] = "zset"
    found = await _types(redis, wanted)
    problems = [wrong_type(key, found[key]) for key, kind in wanted.items() if found[key] not in (kind, "none")]
    sound = {key for key, kind in wanted.items() if found[key] == kind}
    for key, is_valid in _FIELDS.items():
        if key in sound:
            problems += await _check_fields(redis, key, is_valid)
    for key in (keys.PAUSED, keys.CANCELLED, keys.DRAINED, keys.RETRIED):
        if key in sound:
            problems += await _check_members(redis, key)
    for queue in names:
        if queue in sound:
            problems += await _check_runs(redis, queue)
    return problems


async def _types(redis: Redis, names: Iterable[str | bytes]) -> dict[str | bytes, str]:
    asked = list(names)
    pipeline = redis.pipeline(transaction=False)
    for name in asked:
        pipeline.type(name)
    return {name: answer.decode() for name, answer in zip(asked, await pipeline.execute(), strict=True)}


async def _check_fields(redis: Redis, key: str, is_valid: Callable[[bytes], bool]) -> list[KeyProblem]:
    _, fields = await cast(Awaitable[tuple[int, dict[bytes, bytes]]], redis.hscan(key, count=_MOST_ENTRIES))
    return [
        wrong_value(key, value, field=field)
        for field, value in fields.items()
        if read_run_id(field) is None or not is_valid(value)
    ]


async def _check_members(redis: Redis, key: str) -> list[KeyProblem]:
    _, members = await cast(Awaitable[tuple[int, list[bytes]]], redis.sscan(key, count=_MOST_ENTRIES))
    return [wrong_member(key, member) for member in members if read_run_id(member) is None]


async def _check_runs(redis: Redis, queue: str) -> list[KeyProblem]:
    ids: list[bytes] = await redis.zrange(queue, 0, _MOST_ENTRIES - 1)
    problems = [wrong_member(queue, run_id, command="ZREM") for run_id in ids if read_run_id(run_id) is None]
    wanted = {prefix.encode() + run_id: "string" for run_id in ids for prefix in _STRING_OF_RUN}
    wanted |= {keys.RUN.encode() + run_id: "hash" for run_id in ids}
    found = await _types(redis, wanted)
    return problems + [wrong_type(key, found[key]) for key, kind in wanted.items() if found[key] not in (kind, "none")]


def _type_answer(kind: str) -> str:
    return keys.TYPE_ANSWERS.get(kind, kind)


def _is_number(low: float, high: float, *, whole: bool = False) -> Callable[[bytes], bool]:
    def is_valid(raw: bytes) -> bool:
        try:
            value = float(raw)
        except ValueError:
            return False
        return math.isfinite(value) and low <= value <= high and (not whole or value.is_integer())

    return is_valid


#: Hashes whose fields are names, and the required form of their values.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    keys.PACE: _is_number(1e-9, math.inf),
    keys.LIMITS: _is_number(0, 2**53 - 1, whole=True),
    keys.RATES: _is_number(1e-6, 1e9),
    keys.CRON: _is_number(0, 253_402_300_800_000, whole=True),
    keys.DEAD: lambda raw: DeadLetter.read("", raw) is not None,
    keys.WORKERS: lambda raw: read_worker(raw) is not None,
}
