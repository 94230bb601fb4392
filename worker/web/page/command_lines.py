"""Command lines that do what an order of the page does: `worker …`, and `redis-cli …` or `psql …`.

Each is made of the body that the order would send to the API. Where `redis-cli` cannot do the same, a line that begins
with `#` says so, and why.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.errors import RegistrationError, UnknownJob
from worker.queue import keys
from worker.queue.conditions import make_entry
from worker.queue.cron_lines import trigger_id
from worker.settings import Settings
from worker.web import bodies
from worker.web.backend import Backend
from worker.web.page.text import command

_NOW = "0"


def _no_redis(reason: str) -> str:
    """Return the line for an order that `redis-cli` cannot give. A shell takes it for a comment."""
    return f"# no redis-cli form: {reason}"


_CHOOSES = _no_redis("it takes ids, and does not find the letters of a job")
_CHECKPOINT = _no_redis("the checkpoint is in PostgreSQL")
_LETTERS = _no_redis("PostgreSQL has dead letters, too")
_ROWS = _no_redis("the rows are in PostgreSQL")
_RUNS_CODE = _no_redis("it runs the code of the job")
_LOCK = _no_redis("only a script takes the lock of a unique job")


async def make_commands(backend: Backend, operation: str, path: Mapping[str, str], body: Any) -> list[str]:
    """Return the command lines of an order.

    Args:
        backend: the servers.
        operation: the name of the operation.
        path: its path parameters.
        body: its body.
    """
    lines = CommandLines(backend.settings).make(operation, path, body)
    if operation in ("enqueue", "run_cron_job"):
        with contextlib.suppress(RegistrationError, UnknownJob):
            job = (await backend.load_jobs()).find(path.get("job") or body.job)
            if job.unique is not None or job.rules.once:  # two commands would pass by the lock
                lines = [lines[0], _LOCK]
    return lines


class CommandLines:
    """Makes command lines.

    Args:
        settings: the settings: keys have the prefix of the namespace.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def make(self, operation: str, path: Mapping[str, str], body: Any) -> list[str]:
        """Return the lines of an order.

        Args:
            operation: the name of the operation.
            path: its path parameters.
            body: its body.
        """
        return _LINES[operation](self, path, body)

    def _redis(self, verb: str, key: str, *words: Any) -> str:
        return command("redis-cli", verb, self._settings.redis.prefix + key, *words)

    # --- enqueue, cron, plan

    def enqueue(self, _: Mapping[str, str], body: bodies.EnqueueBody) -> list[str]:
        """Return the lines of `enqueue`."""
        options = _options(id=body.id, delay=body.delay_seconds, queue=body.queue, priority=body.priority)
        options += [] if body.at is None else ["--at", body.at.isoformat()]
        lines = [_worker("enqueue", [body.job, *_name_values(body.arguments)], *options)]
        due = body.at or (body.delay_seconds and datetime.now(UTC) + timedelta(seconds=body.delay_seconds))
        return lines + self._enqueue_in_redis(
            body.job,
            body.arguments,
            body.id or uuid.uuid4().hex,
            queue=body.queue,
            due=str(round(due.timestamp() * 1000)) if due else _NOW,
            priority=body.priority,
        )

    def _enqueue_in_redis(
        self,
        job: str,
        arguments: Mapping[str, Any],
        run_id: str,
        *,
        queue: str | None = None,
        due: str = _NOW,
        priority: int | None = None,
    ) -> list[str]:
        """Return the commands of the wire format."""
        queue = queue or self._settings.worker.queue
        payload = {"f": job, "k": arguments} | ({} if priority is None else {"p": priority})
        lines = [
            self._redis("SET", keys.JOB + run_id, json.dumps(payload, ensure_ascii=False)),
            self._redis("ZADD", queue, due, run_id),
        ]
        if priority:
            lines.append(self._redis("ZADD", keys.priority_line(queue, priority), due, run_id))
            lines.append(self._redis("ZADD", keys.PRIORITIES + queue, priority, priority))
        return lines

    def run_cron_job(self, path: Mapping[str, str], body: bodies.RunNowBody) -> list[str]:
        """Return the lines of `run_cron_job`."""
        job = path["job"]
        line = _worker("cron trigger", [job, *_name_values(body.arguments)])
        return [line, *self._enqueue_in_redis(job, body.arguments, trigger_id(job))]

    def plan_job(self, path: Mapping[str, str], body: bodies.PlanBody) -> list[str]:
        """Return the line of `plan_job`."""
        return [_worker("plan", [path["job"]], *_arguments(body.arguments)), _RUNS_CODE]

    def try_job(self, path: Mapping[str, str], body: bodies.TryBody) -> list[str]:
        """Return the line of `try_job`."""
        options = _options(batches=body.batches, rows=body.rows)
        return [_worker("try", [path["job"]], *_arguments(body.arguments), *options), _RUNS_CODE]

    # --- steer

    def pause(self, _: Mapping[str, str], body: bodies.PauseBody) -> list[str]:
        """Return the lines of `pause`."""
        return [_worker("pause", body.targets, *_where(body)), self._change_set("SADD", keys.PAUSED, body)]

    def resume(self, _: Mapping[str, str], body: bodies.PauseBody) -> list[str]:
        """Return the lines of `resume`."""
        return [_worker("resume", body.targets, *_where(body)), self._change_set("SREM", keys.PAUSED, body)]

    def _change_set(self, verb: str, key: str, body: bodies.PauseBody) -> str:
        entries = [make_entry(target, body.where) if body.where else target for target in body.targets]
        return self._redis(verb, key, *entries)

    def pace(self, _: Mapping[str, str], body: bodies.PaceBody) -> list[str]:
        """Return the lines of `pace`."""
        rate = body.rows_per_second
        option = ["--reset"] if rate is None else ["--max-rows-per-second", _number(rate)]
        return [_worker("pace", body.targets, *option), self._set_fields(keys.PACE, body.targets, rate)]

    def limit(self, _: Mapping[str, str], body: bodies.LimitBody) -> list[str]:
        """Return the lines of `limit`."""
        chosen: dict[str, tuple[str, float | None]] = {}
        if "concurrency" in body.model_fields_set:
            chosen["--running"] = keys.LIMITS, body.concurrency
        if "rate_per_second" in body.model_fields_set:
            chosen["--runs-per-second"] = keys.RATES, body.rate_per_second
        added = [word for name, (_, value) in chosen.items() if value is not None for word in (name, _number(value))]
        removed = [name for name, (_, value) in chosen.items() if value is None]
        lines = [_worker("limits set", [body.name], *added)] if added else []
        lines += [_worker("limits unset", [body.name], *removed)] if removed else []
        return lines + [self._set_fields(key, [body.name], value) for key, value in chosen.values()]

    def _set_fields(self, key: str, names: Sequence[str], value: float | None) -> str:
        if value is None:
            return self._redis("HDEL", key, *names)
        return self._redis("HSET", key, *(word for name in names for word in (name, _number(value))))

    def cancel(self, _: Mapping[str, str], body: bodies.RunsBody) -> list[str]:
        """Return the lines of `cancel`."""
        return [_worker("cancel", body.runs), self._redis("SADD", keys.CANCELLED, *body.runs)]

    def drain(self, _: Mapping[str, str], body: bodies.DrainBody) -> list[str]:
        """Return the lines of `drain`."""
        return [_worker("drain", body.workers), self._redis("SADD", keys.DRAINED, *body.workers)]

    # --- again, and away

    def retry(self, _: Mapping[str, str], body: bodies.RetryBody) -> list[str]:
        """Return the lines of `retry`."""
        if body.from_start:
            return [_worker("retry", body.runs, "--from-start", "--yes"), _CHECKPOINT]
        if body.accept_statement:
            return [_worker("retry", body.runs, "--accept-statement"), _CHECKPOINT]
        return self._retry(body.runs)

    def _retry(self, runs: Sequence[str]) -> list[str]:
        return [_worker("retry", runs), self._redis("SADD", keys.RETRIED, *runs)]

    def retry_dead_letters(self, _: Mapping[str, str], body: bodies.DeadLettersBody) -> list[str]:
        """Return the lines of `retry_dead_letters`."""
        return self._retry(body.runs) if body.runs is not None else [_worker("retry", (), *_choose(body)), _CHOOSES]

    def delete_dead_letters(self, _: Mapping[str, str], body: bodies.DeadLettersBody) -> list[str]:
        """Return the line of `delete_dead_letters`."""
        if body.runs is not None:
            return [_worker("dead delete", body.runs), _LETTERS]
        return [_worker("dead delete", (), *_choose(body), "--yes"), _LETTERS]

    def retry_quarantined(self, _: Mapping[str, str], body: bodies.RetryRowsBody) -> list[str]:
        """Return the line of `retry_quarantined`."""
        if body.runs is None:
            return [_worker("quarantine retry", (), *body.rows or ()), _ROWS]
        return [_worker("retry", body.runs, "--quarantined"), _ROWS]

    def discard_quarantined(self, _: Mapping[str, str], body: bodies.DiscardBody) -> list[str]:
        """Return the lines of `discard_quarantined`."""
        chosen = ["--run", body.run] if body.run is not None else body.rows or []
        return [_worker("quarantine delete", (), *chosen), _ROWS]

    def retry_outbox(self, _: Mapping[str, str], body: bodies.OutboxBody) -> list[str]:
        """Return the lines of `retry_outbox`."""
        return _change_outbox("retry", "UPDATE worker.outbox SET problem = NULL", body)

    def delete_outbox(self, _: Mapping[str, str], body: bodies.OutboxBody) -> list[str]:
        """Return the lines of `delete_outbox`."""
        return _change_outbox("delete", "DELETE FROM worker.outbox", body)


def _change_outbox(verb: str, statement: str, body: bodies.OutboxBody) -> list[str]:
    chosen = ["--all"] if body.rows is None else body.rows
    where = "" if body.rows is None else f" AND id IN ({', '.join(map(str, body.rows))})"
    statement = f"{statement} WHERE problem IS NOT NULL{where}"
    return [_worker(f"outbox {verb}", (), *chosen), command("psql", "-c", statement), _ROWS]


def _worker(verb: str, names: Sequence[str], *options: Any) -> str:
    """Return a line of `worker`. A name that begins like an option comes behind `--`."""
    end = ["--"] if any(name.startswith("-") for name in names) else []
    return command("worker", *verb.split(), *options, *end, *names)


def _number(value: float) -> str:
    """Return a number with all of its digits; a whole one without an exponent, which commands would refuse."""
    return str(int(value)) if value == int(value) else f"{value:.12g}"


def _choose(body: bodies.DeadLettersBody) -> list[str]:
    return ["--all"] if body.job is None else ["--job", body.job]


def _options(**values: Any) -> list[Any]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", value)]


def _where(body: bodies.PauseBody) -> list[str]:
    return [word for pair in _name_values(body.where or {}) for word in ("--where", pair)]


def _arguments(arguments: Mapping[str, Any]) -> list[str]:
    return [word for pair in _name_values(arguments) for word in ("--arg", pair)]


def _name_values(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_write(value)}" for name, value in arguments.items()]


def _write(value: Any) -> str:
    """Return a value as the command line reads it: a text as it is, unless it would be read as JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value, ensure_ascii=False)


_LINES: dict[str, Callable[[CommandLines, Mapping[str, str], Any], list[str]]] = {
    name: getattr(CommandLines, name)
    for name in (
        "enqueue",
        "run_cron_job",
        "plan_job",
        "try_job",
        "pause",
        "resume",
        "pace",
        "limit",
        "cancel",
        "drain",
        "retry",
        "retry_dead_letters",
        "delete_dead_letters",
        "retry_quarantined",
        "discard_quarantined",
        "retry_outbox",
        "delete_outbox",
    )
}
