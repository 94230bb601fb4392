"""acquire.lua: which job may begin now by the limits of its kind, and how long the others wait."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.queue.scripts.conftest import NOW, QUEUE, Scripts, StandingLimiter
from worker import Job, JobContext, job
from worker.queue import keys
from worker.queue.claims import Claim
from worker.runtime.limiter import Held

DAY_MS = 86_400_000
FOR_A_PLACE = Held(5.0, "limit")
PLACES, LINE = keys.LIMIT + "narrow", keys.HELD + "narrow"


@job(concurrency=2)
async def narrow(ctx: JobContext) -> None:
    """Two at once."""


@job(rate="10/second")
async def paced(ctx: JobContext) -> None:
    """One each 100 ms."""


@job(rate="10/second burst 3")
async def in_bursts(ctx: JobContext) -> None:
    """Three may come at once."""


@job(concurrency=1, rate="10/second")
async def both(ctx: JobContext) -> None:
    """One at once, one each 100 ms."""


def claim(run_id: str) -> Claim:
    return Claim(run_id, QUEUE, 0, b"", 1, number=7)


async def enter(scripts: Scripts, one: Job[[], None], run_id: str, *, after_ms: int = 0) -> Held | None:
    """Come with a job that this worker has."""
    await scripts.redis.set(keys.IN_PROGRESS + run_id, "north")
    limiter = StandingLimiter(scripts.redis, NOW + after_ms)
    return await limiter.acquire(one, claim(run_id), {})


# --- how many at once


async def test_as_many_enter_as_the_limit_says(scripts: Scripts) -> None:
    assert [await enter(scripts, narrow, run_id) for run_id in "abc"] == [None, None, FOR_A_PLACE]
    assert await scripts.redis.zrange(PLACES, 0, -1, withscores=True) == [(b"a", 7), (b"b", 7)]
    assert 604_000_000 < await scripts.redis.pttl(PLACES) <= 604_800_000


async def test_of_many_that_come_together_no_more_enter(scripts: Scripts) -> None:
    answers = await asyncio.gather(*(enter(scripts, narrow, f"r{n}") for n in range(20)))
    assert answers.count(None) == 2


async def test_who_has_to_wait_stands_in_line_by_when_it_first_came(scripts: Scripts) -> None:
    for place, run_id in enumerate("abcd"):
        await enter(scripts, narrow, run_id, after_ms=place)
    assert await enter(scripts, narrow, "c", after_ms=5_000) == FOR_A_PLACE  # it comes again
    assert await scripts.redis.zrange(LINE, 0, -1, withscores=True) == [(b"c", NOW + 2), (b"d", NOW + 3)]
    assert DAY_MS - 5_000 < await scripts.redis.pttl(LINE) <= DAY_MS


async def test_who_has_a_place_keeps_it_when_it_comes_again(scripts: Scripts) -> None:
    """The answer was lost, or its worker has died and the job is attempted again."""
    for run_id in "ab":
        await enter(scripts, narrow, run_id)
    assert await enter(scripts, narrow, "a") is None
    assert await scripts.redis.zcard(PLACES) == 2


async def test_the_place_of_one_whose_lease_is_gone_is_free(scripts: Scripts) -> None:
    for run_id in "abc":
        await enter(scripts, narrow, run_id)
    await scripts.redis.delete(keys.IN_PROGRESS + "a")
    assert await enter(scripts, narrow, "c") is None
    assert sorted(await scripts.redis.zrange(PLACES, 0, -1)) == [b"b", b"c"]
    assert await scripts.redis.exists(LINE) == 0  # and it stands in line no more


async def test_an_order_says_another_limit_and_what_is_no_number_says_none(scripts: Scripts) -> None:
    await scripts.redis.hset(keys.LIMITS, "narrow", "3")
    assert [await enter(scripts, narrow, run_id) for run_id in "abcd"] == [None, None, None, FOR_A_PLACE]
    await scripts.redis.hset(keys.LIMITS, "narrow", "many")
    assert await enter(scripts, narrow, "d") == FOR_A_PLACE


# --- how many a time


async def test_each_one_that_comes_too_early_has_its_own_moment(scripts: Scripts) -> None:
    waits = [await enter(scripts, paced, run_id) for run_id in "abc"]
    assert waits == [None, Held(0.1, "rate"), Held(0.2, "rate")]
    assert await scripts.redis.get(keys.RATE + "paced") == f"{NOW + 300}.000 100".encode()
    assert 1_000 < await scripts.redis.pttl(keys.RATE + "paced") <= 1_300


async def test_it_passes_at_its_moment_without_another_one_and_once(scripts: Scripts) -> None:
    for run_id in "ab":
        await enter(scripts, paced, run_id)
    assert DAY_MS - 5_000 < await scripts.redis.pttl(keys.RESERVED + "b") <= DAY_MS + 100
    assert await enter(scripts, paced, "b", after_ms=100) is None
    assert await scripts.redis.get(keys.RATE + "paced") == f"{NOW + 200}.000 100".encode()
    assert await enter(scripts, paced, "b", after_ms=101) == Held(0.099, "rate")


async def test_a_pause_lets_one_in_and_saves_nothing_up(scripts: Scripts) -> None:
    assert await enter(scripts, paced, "a") is None
    assert await enter(scripts, paced, "b", after_ms=5_000) is None
    assert await enter(scripts, paced, "c", after_ms=5_000) == Held(0.1, "rate")


async def test_a_burst_may_come_at_once(scripts: Scripts) -> None:
    waits = [await enter(scripts, in_bursts, run_id) for run_id in "abcd"]
    assert waits == [None, None, None, Held(0.1, "rate")]


@pytest.mark.parametrize(("order", "wait"), [("5", 0.2), ("0", 0.1), ("fast", 0.1)])
async def test_an_order_says_another_rate_where_it_is_one(scripts: Scripts, order: str, wait: float) -> None:
    await scripts.redis.hset(keys.RATES, "paced", order)
    await enter(scripts, paced, "a")
    assert await enter(scripts, paced, "b") == Held(wait, "rate")


async def test_a_run_that_is_woken_before_its_moment_waits_on(scripts: Scripts) -> None:
    """A place has become free, or a run with a place has moved others up."""
    await scripts.redis.hset(keys.LIMITS, "both", "1")
    for run_id in "abcd":
        await enter(scripts, both, run_id)
    await scripts.redis.hset(keys.LIMITS, "both", "4")
    assert [await enter(scripts, both, run_id, after_ms=10) for run_id in "bcd"] == [
        Held(wait, "rate") for wait in (0.09, 0.19, 0.29)
    ]
    assert await scripts.redis.zrange(keys.HELD + "both", 0, -1) == [], "they wait for no place"
    assert await enter(scripts, both, "c", after_ms=50) == Held(0.15, "rate")
    assert [await enter(scripts, both, run_id, after_ms=300) for run_id in "bcd"] == [None] * 3


@pytest.mark.parametrize(("order", "wait"), [("1000", 0.001), ("0.5", 2.0)])
async def test_moments_of_a_former_rate_do_not_count(scripts: Scripts, order: str, wait: float) -> None:
    for number in range(50):
        await enter(scripts, paced, f"r{number}")
    await scripts.redis.hset(keys.RATES, "paced", order)
    assert await enter(scripts, paced, "new") == Held(wait, "rate"), "behind one run, and not behind fifty"
    assert await enter(scripts, paced, "r40", after_ms=4_000) in (None, Held(pytest.approx(wait), "rate"))
    later = [await enter(scripts, paced, f"r{number}", after_ms=4_900) for number in range(45, 50)]
    waits = [0.0 if held is None else held.seconds for held in later]
    assert [b - a for a, b in itertools.pairwise(waits)] == [pytest.approx(wait)] * 4


async def test_who_waits_for_a_place_takes_no_moment(scripts: Scripts) -> None:
    assert await enter(scripts, both, "a") is None
    assert await enter(scripts, both, "b") == FOR_A_PLACE
    assert await scripts.redis.get(keys.RATE + "both") == f"{NOW + 100}.000 100".encode()


async def test_who_waits_for_its_moment_takes_no_place(scripts: Scripts) -> None:
    await enter(scripts, both, "a")
    await scripts.redis.delete(keys.LIMIT + "both")
    assert await enter(scripts, both, "b") == Held(0.1, "rate")
    assert await scripts.redis.exists(keys.LIMIT + "both") == 0


@job(rate="1/hour")
async def seldom(ctx: JobContext) -> None:
    """One an hour."""


async def test_hundreds_of_runs_under_a_low_rate_keep_their_moments(scripts: Scripts) -> None:
    """They are months ahead."""
    answers = [await enter(scripts, seldom, f"r{number}") for number in range(1_000)]
    assert answers[0] is None
    assert [answer.seconds for answer in answers[1:] if answer is not None] == [3600.0 * n for n in range(1, 1_000)]
