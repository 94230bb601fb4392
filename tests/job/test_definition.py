"""`Job`: its enqueue options, its calls, and their validators."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from worker import PREVIOUS_RESULT, Client, InvalidArguments, JobContext, job
from worker.job import arguments


@job
async def count(ctx: JobContext, days: int = 365, name: str = "all") -> int:
    """Count days."""
    return days


@job(unique=True)
async def once(ctx: JobContext) -> None:
    """Do nothing."""


async def test_options_share_the_compiled_validators(queue: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await queue.enqueue(count, days=1)

    def compile_again(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the validators were compiled again")

    monkeypatch.setattr(arguments, "create_model", compile_again)
    monkeypatch.setattr(arguments, "TypeAdapter", compile_again)
    run = await queue.enqueue(count.options(id="known"), days=2)
    assert run.id == "known" and count.options(delay=3).codec is count.codec


def test_call_leaves_room_for_the_previous_result() -> None:
    call = count.options(delay=5).call(days=PREVIOUS_RESULT, name="few")
    assert (call.result_as, json.loads(call.arguments)) == ("days", {"name": "few"})
    assert call.job.enqueue_options.delay == 5 and repr(PREVIOUS_RESULT) == "PREVIOUS_RESULT"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: once.call(), "a unique job can neither follow a run nor be a member of a group"),
        (lambda: count.options(id="one").call(), "a call takes no id="),
        (lambda: count.options(deadline=5).call(), "a call takes no deadline="),
        (lambda: count.call(PREVIOUS_RESULT), "give PREVIOUS_RESULT by name"),
        (lambda: count.call(days=PREVIOUS_RESULT, name=PREVIOUS_RESULT), "days and name cannot both be"),
        (lambda: count.call(days="many"), "days: "),
        (lambda: count.options(delay=1, at=datetime.now(UTC)), "give delay= or at=, not both"),
        (lambda: count.options(at=datetime(2026, 1, 1)), "has no time zone"),
        (lambda: count.options(then=count), "then= takes calls"),  # type: ignore[arg-type]
    ],
)
def test_call_and_options_refuse_what_cannot_work(make: Any, message: str) -> None:
    with pytest.raises((InvalidArguments, TypeError), match=message):
        make()
