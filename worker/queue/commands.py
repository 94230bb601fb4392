"""Operator commands: pause, resume, pace, limits, cancel, drain, retry, delete.

Each changes a plain key of Redis (see keys.py), as `redis-cli` could. `worker.runtime.operator_state` reads these keys
in the worker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from worker.errors import InvalidArguments
from worker.job.propagation import QUARANTINED_ROWS
from worker.queue import keys
from worker.queue.audit import Order, give_order, record_order, remove_marks, set_marks
from worker.queue.conditions import parse_entry
from worker.queue.dead_letters import DeadLetter, DeadLetterFilter, dead_letters, delete_dead
from worker.queue.payload import LONGEST_ID, decode_payload, derived_id, now_ms, read_run_id, without_expiry
from worker.queue.run_reader import RunReader
from worker.queue.store import QueueStore

if TYPE_CHECKING:
    from worker.ledger import Ledger

logger = logging.getLogger("longhaul.retry")

_MOST_QUARANTINED = 1_000_000


async def pause(reader: RunReader, targets: Sequence[str]) -> None:
    """Pause runs, jobs, queues, `*` for everything, or entries for runs with some arguments (conditions.py).

    Raises, as the other commands do:
        InvalidArguments: no target is given.
        ServerUnavailable: Redis does not answer.
    """
    _check_names("pause", targets)
    await give_order(reader, "pause", targets, lambda pipeline: pipeline.sadd(keys.PAUSED, *targets), mark="pause")


async def resume(reader: RunReader, targets: Sequence[str]) -> int:
    """Remove pauses. Returns how many of the targets were paused."""
    _check_targets("resume", targets)
    return await _take_back(reader, keys.PAUSED, targets, mark="pause")


async def pace(reader: RunReader, targets: Sequence[str], rows_per_second: float | None) -> None:
    """Limit the pace of walks; None removes the limit."""
    (_check_targets if rows_per_second is None else _check_names)("pace", targets)
    if rows_per_second is not None and not 0 < rows_per_second < math.inf:
        raise InvalidArguments(f"pace: {rows_per_second} is not a number of rows per second above 0")
    text = None if rows_per_second is None else f"{rows_per_second:.12g}"
    await _set_fields(reader, "pace", keys.PACE, targets, text, {"rows_per_second": rows_per_second})


@dataclass(frozen=True)
class OperatorLimits:
    """The limits that operators have set, each instead of that of the job or of the settings.

    Attributes:
        running: the most runs at once, by name of a job or a queue.
        runs_per_second: the most runs that begin in a second, by name of a job.
        rows_per_second: the pace of walks, by run id, name of a job, or `*` for every walk.
    """

    running: dict[str, int]
    runs_per_second: dict[str, float]
    rows_per_second: dict[str, float]


async def read_limits(reader: RunReader) -> OperatorLimits:
    """Return the limits that operators have set. Omit values that workers ignore because they are not numbers."""
    pipeline = reader.redis.pipeline(transaction=False)
    for key in (keys.LIMITS, keys.RATES, keys.PACE):
        pipeline.hgetall(key)
    running, rates, pace = await reader.command(pipeline.execute())
    return OperatorLimits(
        {name: int(value) for name, value in _numbers(running).items() if value.is_integer()},
        _numbers(rates),
        _numbers(pace),
    )


def _numbers(raw: Mapping[bytes, bytes]) -> dict[str, float]:
    found = {}
    for name, text in sorted(raw.items()):
        try:
            value = float(text)
        except ValueError:
            continue
        if 0 <= value < math.inf:
            found[name.decode(errors="backslashreplace")] = value
    return found


async def limit(reader: RunReader, targets: Sequence[str], running: int | None) -> None:
    """Limit how many runs of jobs or queues run at once; None removes the limit."""
    (_check_targets if running is None else _check_names)("limit", targets)
    if running is not None and (isinstance(running, bool) or not isinstance(running, int) or not 0 <= running < 2**53):
        raise InvalidArguments(f"limit: {running} is not a number of runs")
    text = None if running is None else str(running)
    await _set_fields(reader, "limit", keys.LIMITS, targets, text, {"running": running})


async def limit_rate(reader: RunReader, jobs: Sequence[str], runs_per_second: float | None) -> None:
    """Limit how many runs of jobs begin in a second; None removes the limit."""
    (_check_targets if runs_per_second is None else _check_names)("limit_rate", jobs)
    if runs_per_second is not None and not 1e-6 <= runs_per_second <= 1e9:
        raise InvalidArguments(f"limit_rate: {runs_per_second} is not a number of runs per second above 0")
    text = None if runs_per_second is None else f"{runs_per_second:.12g}"
    await _set_fields(reader, "rate", keys.RATES, jobs, text, {"runs_per_second": runs_per_second})


async def _set_fields(
    reader: RunReader,
    order: Order,
    key: str,
    names: Sequence[str],
    text: str | None,
    details: Mapping[str, Any],
) -> None:
    def add(pipeline: Pipeline) -> None:
        if text is None:
            pipeline.hdel(key, *names)
        else:
            pipeline.hset(key, mapping=dict.fromkeys(names, text))

    value = None if text is None else f"{float(text):.12g}"  # as the worker that checks it writes the number
    await give_order(reader, order, names, add, mark=order, value=value, details=details)


async def cancel(reader: RunReader, run_ids: Sequence[str], *, queue: str) -> list[str]:
    """Cancel runs of a queue. Return the ids that are neither waiting nor running."""
    _check_targets("cancel", run_ids)
    await reader.command(set_marks(reader.redis, "cancel", run_ids))
    gone = [run_id for run_id in run_ids if not await reader.command(reader.store.cancel(run_id, queue=queue))]
    await reader.command(remove_marks(reader.redis, "cancel", gone))
    missing = frozenset(gone)
    done = [run_id for run_id in run_ids if run_id not in missing]
    await reader.command(record_order(reader.redis, "cancel", done))
    return gone


async def cancel_matching(reader: RunReader, entries: Sequence[str]) -> None:
    """Cancel the runs of jobs with some arguments, now and later, until `stop_cancelling`."""
    _check_names("cancel", entries)
    await give_order(reader, "cancel", entries, lambda pipeline: pipeline.sadd(keys.CANCELLED, *entries), mark="cancel")


async def stop_cancelling(reader: RunReader, entries: Sequence[str]) -> int:
    """Remove what `cancel_matching` set. Returns how many of the entries were set."""
    return await _take_back(reader, keys.CANCELLED, entries, mark="cancel")


async def _take_back(reader: RunReader, key: str, targets: Sequence[str], *, mark: Order) -> int:
    """Remove targets from a set of orders: an entry also where the set has its arguments in another order."""
    names = list(targets)
    wanted = {parsed for target in targets if (parsed := _try_parse(target)) is not None}
    if wanted:
        members = await reader.command(cast(Awaitable[set[bytes]], reader.redis.smembers(key)))
        found = [member.decode(errors="replace") for member in members]
        names += sorted(one for one in found if one not in targets and _try_parse(one) in wanted)
    answer = await give_order(
        reader, "resume", names, lambda pipeline: pipeline.srem(key, *names), mark=mark, value=None
    )
    return int(answer)


def _try_parse(entry: str) -> tuple[str, frozenset[tuple[str, str]]] | None:
    """Return the job of an entry and the texts of its arguments; None for another target."""
    if "?" not in entry:
        return None
    try:
        condition = parse_entry(entry)
    except InvalidArguments:
        return None
    return condition.job, frozenset(condition.values.items())


async def drain(reader: RunReader, workers: Sequence[str]) -> list[str]:
    """Drain workers, as SIGTERM does. Return the names that no worker has: such an order would wait for a worker."""
    _check_targets("drain", workers)
    published = await reader.command(reader.store.read_workers())
    known = [name for name in dict.fromkeys(workers) if name.encode(errors="replace") in published]
    if known:
        await give_order(reader, "drain", known, lambda pipeline: pipeline.sadd(keys.DRAINED, *known), mark="drain")
    return [name for name in dict.fromkeys(workers) if name not in known]


async def request_retry(reader: RunReader, run_ids: Sequence[str]) -> None:
    """Request that workers run ended runs again. This needs no database: a worker updates the ledger."""
    _check_names("retry", run_ids)
    await give_order(reader, "retry", run_ids, lambda pipeline: pipeline.sadd(keys.RETRIED, *run_ids), mark="retry")


def _check_targets(command: str, targets: Sequence[str]) -> None:
    if not targets or "" in targets:
        raise InvalidArguments(f"{command}: give at least one name, none of them empty")


def _check_names(command: str, targets: Sequence[str]) -> None:
    """Raise `InvalidArguments` unless workers would obey an order for these names."""
    _check_targets(command, targets)
    for name in targets:
        if not isinstance(name, str) or read_run_id(name) is None:
            kind = "the condition" if isinstance(name, str) and "?" in name else "the name"
            raise InvalidArguments(
                f"{command}: {kind} {name!r:.100} must have 1 to {LONGEST_ID} printable characters, as workers need it"
            )


# --- retry, with the ledger


async def retry_run(
    redis: Redis, ledger: Ledger, run_id: str, *, from_start: bool, accept_statement: bool = False
) -> bool:
    """Put an ended run, or a dead letter, back into its queue.

    The ledger is written first. If this process dies before it writes to Redis, a worker's rescuer enqueues the run.

    Args:
        redis: connection to the queue.
        ledger: the runs with a durable loop.
        run_id: id of the run.
        from_start: whether to delete its checkpoints.
        accept_statement: whether its walks continue although their statements have changed.

    Returns:
        False if there is neither an ended run nor a dead letter with that id.
    """
    store = QueueStore(redis)
    # An operator's retry ignores the expiry and the deadline, even if the run failed because of them.
    spec = await ledger.retry(run_id, from_start=from_start, accept_statement=accept_statement, revise=without_expiry)
    if spec is not None:
        return await store.retry(run_id, spec.payload.encode(), queue=spec.queue, letter=False)
    raw = await cast(Awaitable[bytes | None], redis.hget(keys.DEAD, run_id))
    letter = None if raw is None else DeadLetter.read(run_id, raw)
    if letter is None or letter.in_ledger:
        return False
    try:
        payload = without_expiry(letter.payload.decode()).encode()
    except UnicodeDecodeError:
        payload = letter.payload  # a pickle, or unreadable bytes
    return await store.retry(run_id, payload, queue=letter.queue, letter=True)


async def retry_runs(
    redis: Redis, ledger: Ledger, run_ids: Sequence[str], *, from_start: bool = False, accept_statement: bool = False
) -> list[str]:
    """Put ended runs and dead letters back into their queues; see `retry_run`. Return the ids of those that were."""
    _check_targets("retry", run_ids)
    options = {"from_start": from_start, "accept_statement": accept_statement}
    done = [run_id for run_id in run_ids if await retry_run(redis, ledger, run_id, **options)]
    await record_order(redis, "retry", done, options)
    return done


async def retry_dead_letters(redis: Redis, ledger: Ledger, chosen: DeadLetterFilter) -> list[str]:
    """Put dead runs back into their queues. Return their ids."""
    letters = await dead_letters(redis, ledger, chosen)
    done = [letter.id for letter in letters if await retry_run(redis, ledger, letter.id, from_start=False)]
    await record_order(redis, "dead_letters_retry", done)
    return done


async def delete_dead_letters(redis: Redis, ledger: Ledger, chosen: DeadLetterFilter) -> list[str]:
    """Delete dead runs, with their checkpoints and quarantined rows. Return their ids."""
    letters = await dead_letters(redis, ledger, chosen)
    await delete_dead(redis, ledger, letters)
    await record_order(redis, "dead_letters_delete", [letter.id for letter in letters])
    return [letter.id for letter in letters]


def choose_dead_letters(
    command: str, ids: Sequence[str], job: str | None, before: datetime | None, everything: bool
) -> DeadLetterFilter:
    """Return the filter for the arguments of a command that changes dead letters.

    Raises:
        InvalidArguments: the arguments contradict each other, or are missing.
    """
    if bool(ids) + (job is not None or before is not None) + everything != 1:
        raise InvalidArguments(f"{command}: give run ids, or job= and before=, or everything=True")
    return DeadLetterFilter(tuple(ids) if ids else None, job, before)


async def retry_ordered(redis: Redis, ledger: Ledger, run_id: str) -> None:
    """Obey an entry of `worker:retry`. Several workers may do so at once.

    The script that requeues the run also removes the entry, so that the entry survives a worker that dies before.
    """
    done = await retry_run(redis, ledger, run_id, from_start=False)
    if done:
        logger.info("run enqueued again run=%s reason=worker:retry", run_id)
    elif await cast(Awaitable[int], redis.srem(keys.RETRIED, run_id)):
        logger.warning("worker:retry ignored run=%s reason=not an ended run or a dead letter", run_id)


async def discard_quarantined(reader: RunReader, ledger: Ledger, row_ids: list[int], run_id: str | None) -> int:
    """Delete quarantined rows: those with these ids, or all of a run. Return their number."""
    if (run_id is None) is (not row_ids):
        raise InvalidArguments("discard_quarantined: give ids of rows, or run_id=")
    count = await ledger.quarantine.delete_rows(run_id=run_id, row_ids=row_ids or None)
    if count:
        details = {"rows": count} if run_id is None else {"rows": count, "run": run_id}
        targets = row_ids if run_id is None else [run_id]
        await reader.command(record_order(reader.redis, "quarantine_discard", targets, details))
    return count


async def retry_quarantined(
    reader: RunReader, ledger: Ledger, run_id: str, row_ids: Sequence[int] = ()
) -> tuple[str, list[str]]:
    """Enqueue a run for each step of a run that has quarantined rows. It processes only these rows.

    Each row leaves the quarantine in the transaction that processes it.

    Args:
        reader: connection to Redis.
        ledger: the ledger.
        run_id: id of the run.
        row_ids: only the rows with these ids; by default all of them.

    Returns:
        The queue, and the ids of the new runs; none if the run has no quarantined rows.
    """
    known = await ledger.find(run_id)
    if known is None:
        return "", []
    payload = decode_payload(known.payload.encode(), accept_pickle=False)
    rows = await ledger.quarantine.list_rows(run_id=run_id, row_ids=row_ids or None, limit=_MOST_QUARANTINED)
    headers = {name: value for name, value in payload.headers.items() if name != QUARANTINED_ROWS}
    made = []
    for step in sorted({row.step for row in rows}):
        chosen = [row.id for row in rows if row.step == step] if row_ids else []
        again = payload._replace(
            in_ledger=False,
            pickled=False,
            attempt=None,
            quarantine_retry=(run_id, step),
            enqueued_ms=now_ms(),
            until_ms=0,
            deadline_ms=0,
            next_calls=(),
            group=None,
            headers=headers | ({QUARANTINED_ROWS: ",".join(map(str, chosen))} if chosen else {}),
        )
        new_id = derived_id("retry", ":".join([run_id, "retry", step, str(again.enqueued_ms), *map(str, chosen[:1])]))
        await reader.command(reader.store.enqueue(new_id, again.to_json(), queue=known.queue))
        made.append(new_id)
    if made:
        await reader.command(
            record_order(
                reader.redis,
                "quarantine_retry",
                [run_id],
                {"runs": made, **({"rows": len(row_ids)} if row_ids else {})},
            )
        )
    return known.queue, made
