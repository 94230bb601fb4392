"""Arguments as the client enqueues them, by value and by name, and results of jobs."""

from __future__ import annotations

import json
import math
import warnings
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import (
    Field,
    SecretStr,
)

from tests.job.argument_types import Camel, Order, Private, appended
from worker import Client, InvalidArguments, JobContext, job
from worker.errors import UsageError

seen: list[tuple[UUID, list[str], UUID]] = []


@job
async def bill(ctx: JobContext, order: Order, key: UUID = Field(default_factory=uuid4)) -> None:  # noqa: B008
    """Record the arguments."""
    seen.append((order.id, order.lines, key))


async def test_default_factories_are_drawn_once_when_the_run_is_enqueued(queue: Client) -> None:
    order = appended()
    text = bill.encode_arguments_json((order,), {})
    first, second = (bill.decode_arguments([], json.loads(text)) for _ in range(2))
    assert first == second and first["order"] == order and first["order"].lines == ["bread"]


async def test_a_default_that_is_left_out_stays_that_of_the_worker() -> None:
    assert count.encode_arguments_json((), {}) == "{}"


@job(unique=True)
async def count(ctx: JobContext, tenant: str = "a", full: bool = False) -> None:
    """Do nothing."""


@job(unique=["region"])
async def refresh(ctx: JobContext, region: str = "eu", force: bool = False) -> None:
    """Do nothing."""


async def test_a_unique_run_is_the_same_with_and_without_its_defaults(queue: Client) -> None:
    one = await queue.enqueue(count)
    assert (await queue.enqueue(count, full=False)).id == one.id == (await queue.enqueue(count, "a", False)).id
    assert (await queue.enqueue(count, full=True)).id != one.id
    assert (await queue.enqueue(refresh)).id == (await queue.enqueue(refresh, region="eu", force=True)).id


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, [2.5, None]), [1, [2.5, None]]),
        ({"at": date(2026, 1, 2), "key": UUID(int=1)}, {"at": "2026-01-02", "key": str(UUID(int=1))}),
        (Camel(customerId=7), {"customer_id": 7}),
        ("Zürich", "Zürich"),
        (math.inf, "Infinity"),
    ],
)
async def test_arguments_by_name_are_json_values(queue: Client, value: Any, arrives: Any) -> None:
    run = await queue.enqueue("elsewhere", x=value)
    assert json.loads(await queue.redis.get(f"arq:job:{run.id}"))["k"] == {"x": arrives}


@pytest.mark.parametrize(
    "value",
    [
        SecretStr("correct horse"),
        {"deep": [SecretStr("correct horse")]},
        {1: 2},
        object(),
        Private(shown=1),
        pytest.param("\ud800", id="surrogate"),
        pytest.param(10**5000, id="long"),
    ],
)
async def test_arguments_by_name_that_json_would_change_are_refused(queue: Client, value: Any) -> None:
    for make in (
        lambda: queue.enqueue("elsewhere", x=value),
        lambda: queue.enqueue_many("elsewhere", [{"x": value}]),
    ):
        with pytest.raises(InvalidArguments, match=r"job elsewhere: x.*: ") as refused:
            await make()
        assert "correct horse" not in str(refused.value)


def test_a_coroutine_as_a_result_is_told_and_closed() -> None:
    def decorated(ctx: JobContext) -> Any:
        """Return what a plain decorator around an `async def` returns."""
        return later()

    made = job(decorated)
    with pytest.raises(UsageError, match="job decorated returned a coroutine that was not awaited: await it"):
        made.encode_result(decorated(None))  # type: ignore[arg-type]


async def later() -> None:
    """Do nothing."""


async def test_a_default_without_json_is_enqueued_without_a_warning(queue: Client) -> None:
    @job
    async def unset(ctx: JobContext, value: Any = object()) -> None:  # noqa: B008
        """Do nothing."""

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unset.codec.version and unset.codec.make_schema()
        await queue.enqueue(unset)
