"""The jobs of the soak: empty jobs, each with another outcome, and the number of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import select

from benchmarks.tables import Reader
from worker import Client, JobContext, NonRetryableError, job


@job
async def succeeds(ctx: JobContext, n: int) -> int:
    """Return."""
    return n


@job
async def fails(ctx: JobContext, n: int) -> None:
    """Fail for good."""
    raise NonRetryableError(f"number {n}")


@job(backoff=0.01)
async def is_tried_again(ctx: JobContext, n: int) -> None:
    """Fail once."""
    if ctx.attempt == 1:
        raise ValueError("not yet")


@job(unique=True)
async def is_unique(ctx: JobContext, n: int) -> None:
    """Unique by its number."""


@job(unique=True, unique_for=5)
async def is_unique_for_a_time(ctx: JobContext, n: int) -> None:
    """Unique by its number for five seconds."""


@job(concurrency=20, concurrency_key="tenant")
async def is_limited(ctx: JobContext, tenant: int) -> None:
    """Twenty at once for each tenant."""


@job(rate="5000/second burst 100", rate_key="tenant")
async def is_rated(ctx: JobContext, tenant: int) -> None:
    """Some at a time for each tenant."""


@job(priority=5)
async def goes_first(ctx: JobContext, n: int) -> None:
    """Before others."""


@job
async def walks(ctx: JobContext, n: int) -> int:
    """Walk a small table, which the ledger remembers."""
    async for _ in ctx.chunks(select(Reader.id), size=10):
        pass
    return ctx.rows_done


async def _cancelled(client: Client, numbers: range) -> None:
    for n in numbers:
        await (await client.enqueue(succeeds.options(delay=600), n)).cancel()


async def _unique(client: Client, numbers: range) -> None:
    for n in numbers:
        await client.enqueue(is_unique, n)
        await client.enqueue(is_unique, n)
        await client.enqueue(is_unique_for_a_time, n)


async def _groups(client: Client, numbers: range) -> None:
    for n in numbers:
        chain = succeeds.options(then=succeeds.call(n)).call(n)
        await client.group([chain, succeeds.call(n)], then=succeeds.call(n))


def _many(which: object, **arguments: Callable[[int], int]) -> Callable[[Client, range], Awaitable[object]]:
    async def enqueue(client: Client, numbers: range) -> None:
        calls = [{name: value(n) for name, value in arguments.items()} for n in numbers]
        await client.enqueue_many(which, calls)  # type: ignore[arg-type]

    return enqueue


def _itself(n: int) -> int:
    return n


def _tenant(n: int) -> int:
    return n % 500


#: For each way to enqueue: its numbers among 10,000 jobs, the jobs for each number, and the function.
MIX: tuple[tuple[int, int, Callable[[Client, range], Awaitable[object]]], ...] = (
    (20, 1, _many(fails, n=_itself)),
    (100, 1, _many(is_tried_again, n=_itself)),
    (20, 1, _cancelled),
    (20, 1, _many(succeeds.options(delay=0.05, expires=0.01), n=_itself)),
    (100, 2, _unique),
    (300, 1, _many(is_limited, tenant=_tenant)),
    (300, 1, _many(is_rated, tenant=_tenant)),
    (200, 1, _many(succeeds.options(delay=2), n=_itself)),
    (200, 1, _many(goes_first, n=_itself)),
    (5, 1, _many(walks, n=_itself)),
    (2, 4, _groups),
)
BLOCK = 10_000
_REST = BLOCK - sum(count * each for count, each, _ in MIX)


async def enqueue_block(client: Client, first: int) -> None:
    """Enqueue ten thousand jobs, of all kinds.

    Args:
        client: client of the queue.
        first: number of the first job; each number is used once in a soak.
    """
    at = first
    for count, _, enqueue in (*MIX, (_REST, 1, _many(succeeds, n=_itself))):
        await enqueue(client, range(at, at + count))
        at += count
