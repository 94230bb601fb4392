"""Everything that is known about one run: from its mirror, its payload and its dead letter in Redis, and the ledger."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.dead_letters import DeadLetter
from worker.queue.payload import decode_payload
from worker.queue.result import decode_result
from worker.queue.run import read_status
from worker.queue.run_reader import RunReader

if TYPE_CHECKING:
    from worker.ledger import Ledger, RunRecord


@dataclass(frozen=True)
class RunDetails:
    """A run.

    Attributes:
        id: id of the run.
        job: name of its job; empty if it is not known.
        state: its state in Redis, or in the ledger if Redis does not have the run any more.
        arguments: its arguments by name, preceded by a list of positional arguments if any; None if they are not known.
        result: what its job has returned, as a JSON value; None if it has not ended, or its result has expired.
        error: the error of the last attempt, in one line.
        traceback: the end of its traceback, if the run is dead.
        attempt: number of the last attempt; None if it is not known.
        queue: its queue.
        fields: the hash `worker:run:<id>`; empty if Redis does not have it.
        record: the run in the ledger, with its steps and ranges; None if its job has no durable loop, or the client
            has no database.
    """

    id: str
    job: str
    state: str
    arguments: Any
    result: Any
    error: str | None
    traceback: str | None
    attempt: int | None
    queue: str
    fields: dict[str, str]
    record: RunRecord | None


async def find_run(reader: RunReader, run_id: str, *, queue: str, ledger: Ledger | None) -> RunDetails | None:
    """Return a run; None if neither Redis nor the ledger has it.

    Args:
        reader: connection to Redis.
        run_id: id of the run.
        queue: its queue.
        ledger: the ledger; None to look in Redis alone.
    """
    pipeline = reader.redis.pipeline(transaction=True)
    pipeline.get(keys.RESULT + run_id)
    pipeline.exists(keys.IN_PROGRESS + run_id)
    pipeline.zscore(queue, run_id)
    pipeline.hgetall(keys.RUN + run_id)
    pipeline.get(keys.JOB + run_id)
    pipeline.hget(keys.DEAD, run_id)
    answers: list[Any] = await reader.command(cast(Awaitable[list[Any]], pipeline.execute()))
    result, running, score, mirror, payload, letter = answers
    state: str
    state, fields = read_status(result, bool(running), score, mirror)
    dead = None if letter is None else DeadLetter.read(run_id, letter)
    records = [] if ledger is None else await ledger.list_runs(run_id=run_id, limit=1)
    record = records[0] if records else None
    if state == "unknown":
        if dead is None and record is None:
            return None
        state = "dead" if record is None else record.state
    ended = None if result is None else decode_result(result)
    known_result = ended.value if ended is not None and ended.success else None
    error = fields.get("error") or (dead.error if dead else None) or (record.error if record else None)
    job = fields.get("job") or (dead.job if dead else "") or (record.job if record else "")
    attempt = fields.get("attempt", "")
    known = record.attempt if record else dead.attempts if dead else None
    arguments, job_in_queue = _read_arguments(payload or result)  # a result has all keys of the payload
    return RunDetails(
        id=run_id,
        job=job or job_in_queue,
        state=state,
        arguments=dead.arguments if dead and arguments is None else arguments,
        result=record.result if known_result is None and record else known_result,
        error=error or (str(ended.value) if ended is not None and not ended.success else None),
        traceback=dead.traceback if dead else None,
        attempt=int(attempt) if attempt.isdigit() and len(attempt) < 10 else known,
        queue=record.queue if record else queue,
        fields=fields,
        record=record,
    )


def _read_arguments(payload: bytes | None) -> tuple[Any, str]:
    """Return the arguments of a payload or result, and the name of its job."""
    if payload is None:
        return None, ""
    try:
        read = decode_payload(payload, accept_pickle=False)
    except InvalidPayload:
        return None, ""
    return [*read.args, read.kwargs] if read.args else read.kwargs, read.function
