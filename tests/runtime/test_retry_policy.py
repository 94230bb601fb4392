"""The decision about a failed run, and the error that it ends with."""

from __future__ import annotations

from worker import JobContext, Settings, job
from worker.runtime.retry_policy import decide


@job
async def fails(ctx: JobContext) -> None:
    """Fail."""


def test_the_error_of_the_last_attempt_names_its_number_among_all(settings: Settings) -> None:
    rules = settings.worker.model_copy(update={"max_attempts": 5})
    for number, words in ((5, "attempt 5, the last"), (6, "attempt 6, the last: 5 without progress")):
        decision = decide(ValueError("x"), fails, attempt=5, progressed=False, rules=rules, number=number)
        assert (decision.again, decision.error) == (False, f"ValueError: x ({words})")
