"""The protocol through which the worker writes outcomes, and the format of the results that it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from worker.queue.result import Result, encode_result
from worker.runtime.execution import Execution
from worker.runtime.outcome import Outcome

#: Encodes the value of `arq:result:<id>` from an execution, its result, and the job's return value as JSON text.
ResultEncoder = Callable[[Execution, Result, str | None], bytes]


class JobCompleter(Protocol):
    """The protocol through which the worker writes outcomes: `Completer`, or a wrapper around it."""

    async def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Write the outcome of an execution."""


def encode_execution_result(execution: Execution, result: Result, result_json: str | None) -> bytes:
    """Return the value of `arq:result:<id>` for a run, in arq's format."""
    claim = execution.claim
    return encode_result(
        execution.payload,
        result,
        run_id=claim.run_id,
        queue=claim.queue,
        attempt=claim.attempt,
        started_ms=execution.started_ms,
        result_json=result_json,
    )
